"""The statistics of float32 tensors on a CPU, in numpy and in one pass through memory.

In the middle of a network's pass a call of numpy costs a fifth of one of torch, and what a
statistic costs is the reading of the tensor, not the arithmetic. So a tensor is taken in slabs of
rows that fit the processor's cache, and all is asked of a slab while it lies there. float32 adds
only what it adds exactly enough; every function returns None where it would not, and
`signalprop.capture.statistics` goes the wide way instead.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

#: row norms within these bounds are exact to float32: no square has under- or overflowed
SAFE_LOW, SAFE_HIGH = 1e-14, 1e15
#: the smallest row norm whose reciprocal float32 can still multiply by
_LEAST = 1e-30
#: elements of a slab
PIECE = 1 << 16
#: elements beyond which the temporary arrays would count in a pass's memory
_MOST = 1 << 22
#: float32 sums of squares go wrong in the fifth digit beyond some ten thousand terms
_RUN = 1 << 12
#: columns that a tensor is added in
_COLUMNS = 1 << 8
#: columns beyond which torch's product is the quicker
_WIDE = 1 << 10


def array_of(x: Tensor) -> np.ndarray | None:
    """The tensor's own memory, if the quick way may be tried."""
    quick = x.dtype is torch.float32 and x.device.type == "cpu" and x.numel() <= _MOST
    return x.numpy() if quick else None


def squares(rows: np.ndarray) -> np.ndarray:
    """Sum of squares of every row of (n, d), in runs short enough for float32."""
    n, width = rows.shape
    if width <= _RUN:
        return np.vecdot(rows, rows).astype(np.float64)
    whole = width - width % _RUN
    runs = rows[:, :whole].reshape(n, -1, _RUN)
    total = np.vecdot(runs, runs).sum(axis=1, dtype=np.float64)
    return total + np.vecdot(rows[:, whole:], rows[:, whole:]) if whole < width else total


def norms_of(rows: np.ndarray) -> np.ndarray | None:
    """L2 norm of every row of (n, d), in float64."""
    norms = np.sqrt(squares(rows))
    low = norms.min()
    if not norms.max() < SAFE_HIGH:  # nan, too
        return None
    if low > SAFE_LOW:
        return norms
    few = norms <= SAFE_LOW  # a sample that is learned, or padding
    wide = rows[few].astype(np.float64)
    norms[few] = np.sqrt(np.vecdot(wide, wide))
    return None if ((norms > 0) & (norms < _LEAST)).any() else norms


def row_norms(flat: Tensor) -> np.ndarray | None:
    """L2 norm of every row of (n, d), in float64."""
    rows = array_of(flat)
    if rows is None:
        return None
    with np.errstate(all="ignore"):
        return norms_of(rows)


def norm(x: Tensor) -> float | None:
    """L2 norm of all elements."""
    rows = array_of(x)
    if rows is None:
        return None
    with np.errstate(all="ignore"):
        whole = math.sqrt(squares(rows.reshape(1, -1))[0])
    return whole if SAFE_LOW < whole < SAFE_HIGH or (whole == 0 and not rows.any()) else None


def sums(flat: Tensor, *, total: bool) -> tuple[np.ndarray, int, float] | None:
    """Of (n, d) the norm of every row, how many elements are zero, and their sum if asked for."""
    rows = array_of(flat)
    if rows is None:
        return None
    step = max(1, PIECE // rows.shape[1])
    if len(rows) <= step:
        found = row_norms(flat)
        return None if found is None else (found, _zeros(rows), _total(rows) if total else 0.0)
    norms = np.empty(len(rows))
    nothing, added = 0, 0.0
    with np.errstate(all="ignore"):
        for i in range(0, len(rows), step):
            slab = rows[i : i + step]
            found = norms_of(slab)
            if found is None:
                return None
            norms[i : i + step] = found
            nothing += _zeros(slab)
            added += _total(slab) if total else 0.0
    return norms, nothing, added


def _zeros(rows: np.ndarray) -> int:
    if rows.size <= PIECE:
        return int(np.count_nonzero(rows == 0))
    # a large temporary is new memory every time, and costs more than the counting
    line = rows.reshape(-1)
    return sum(int(np.count_nonzero(line[i : i + PIECE] == 0)) for i in range(0, line.size, PIECE))


def _total(rows: np.ndarray) -> float:
    # many short columns: a product adds them side by side, several times as fast as a sum
    if rows.size % _COLUMNS == 0:
        rows = rows.reshape(-1, _COLUMNS)
    columns = np.ones(len(rows), np.float32) @ rows
    return float(columns.sum(dtype=np.float64))


def reciprocal(norms: np.ndarray) -> np.ndarray:
    """1 / norm, 0 where the norm is."""
    if norms.all():
        return 1 / norms
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)


def largest(x: Tensor, dim: int) -> np.ndarray | None:
    """The largest observation of every unit, which lie along one dimension."""
    values = array_of(x)
    if values is None:
        return None
    if dim == values.ndim - 1:
        return values.reshape(-1, values.shape[-1]).max(axis=0)
    # each unit's own values lie side by side: along them first, then over the rest
    values = values.reshape(*values.shape[: dim + 1], -1).max(axis=-1)
    return values.reshape(-1, values.shape[-1]).max(axis=0)


def gram(few: Tensor, norms: np.ndarray) -> np.ndarray:
    """Gram matrix of some rows with these norms, at unit length (zero for a row of zeros)."""
    if norms.min() <= SAFE_LOW:  # products of such rows would underflow
        few = few * torch.from_numpy(reciprocal(norms).astype(np.float32))[:, None]
    if few.shape[1] <= _WIDE:
        rows = few.numpy()
        products = (rows @ rows.T).astype(np.float64)
    else:
        runs = few.split(4 * _RUN, dim=1)
        products = np.stack([(run @ run.T).numpy() for run in runs]).sum(axis=0, dtype=np.float64)
    # by its own diagonal, whose float32 errors are those of its neighbours
    inverse = reciprocal(np.sqrt(products.diagonal()))
    return products * (inverse * inverse[:, None])


def resultant(few: Tensor, norms: np.ndarray) -> float:
    """Squared length of the sum of some rows with these norms, each scaled to unit length."""
    total = reciprocal(norms).astype(np.float32) @ few.numpy()
    return float(np.vecdot(total, total))


def token_resultants(x: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
    """Of every sample of (b, t, d) the squared length of its summed unit tokens, and their number.

    Returns:
        Two arrays of length b; tokens of zeros are left out.
    """
    rows = array_of(x)
    if rows is None:
        return None
    with np.errstate(all="ignore"):
        norms = norms_of(rows.reshape(-1, rows.shape[2]))
        if norms is None:
            return None
        inverse = reciprocal(norms).astype(np.float32).reshape(rows.shape[:2])
        total = (inverse[:, None, :] @ rows)[:, 0]
        return np.vecdot(total, total).astype(np.float64), np.count_nonzero(inverse, axis=1)
