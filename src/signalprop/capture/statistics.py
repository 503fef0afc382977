"""The numbers kept of a tensor, reduced where it lies, with no wait for the device.

Sums are right over the range of float64 (float32 where a device has no other): a delta of 1e-25
squares to zero in float32, and the nets this tool is for have such deltas.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

#: samples used for the effective rank, whose Gram matrix is the dearest of the statistics
RANK_SAMPLES = 12
#: elements converted to float64 at a time, which bounds the memory of a traced pass
CHUNK = 1 << 22
#: a saturated entry has less than this share of the activation's largest slope
SATURATED_SLOPE = 0.05
#: a unit is saturated when this share of its observations is
SATURATED_OBSERVATIONS = 0.75


@dataclass(frozen=True)
class ActivationStats:
    """What was measured of one activation tensor `a`, over one batch.

    Attributes:
        rms: root mean square over all elements.
        mean: mean over all elements.
        variance: variance over all elements (population).
        zeros: share of elements that are exactly zero.
        effective_rank: participation ratio (sum s^2)^2 / sum s^4 of the singular values of the
            first 12 samples, each scaled to unit length; between 1 (all parallel) and their number.
        cosine: mean cosine between two samples of the batch; nan with a single sample.
        token_cosine: mean cosine between two positions of one sample, for (batch, tokens,
            features) tensors on a residual stream or after a normalisation, else None.
        saturated: share of units that are saturated in 3/4 of their observations, for activations
            with a bounded range, else None.
        dead: share of units that are zero for every observation, for rectifiers, else None.
        units: number of units that `dead` and `saturated` count, else None.
        finite: whether every element is finite.
    """

    rms: float
    mean: float
    variance: float
    zeros: float
    effective_rank: float
    cosine: float
    token_cosine: float | None
    saturated: float | None
    dead: float | None
    units: int | None
    finite: bool


@dataclass(frozen=True)
class DeltaStats:
    """What was measured of one error signal `delta = dL/da`, over one batch.

    Attributes:
        rms: root mean square over all elements.
        geometric_mean: exp of the mean over samples of ln rms(delta of the sample); samples
            whose delta is zero are left out.
        zeros: share of elements that are exactly zero.
        alive: share of samples whose delta is not exactly zero.
        cosine: mean cosine between the deltas of two samples; nan with a single sample.
        finite: whether every element is finite.
    """

    rms: float
    geometric_mean: float
    zeros: float
    alive: float
    cosine: float
    finite: bool


def accumulator(device: torch.device) -> torch.dtype:
    """The widest floating dtype a device can add in."""
    return torch.float32 if device.type == "mps" else torch.float64


def by_sample(x: Tensor, batch: int, batch_dim: int = 0) -> Tensor:
    """`x` as (samples, features); one row where no dimension is the batch.

    A first dimension that is a multiple of the batch (tokens folded into rows) is unfolded.

    Returns:
        A view where possible; complex numbers count as two features.
    """
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    if x.ndim == 0:
        return x.reshape(1, 1)
    if x.ndim > batch_dim and x.shape[batch_dim] == batch:
        return x.movedim(batch_dim, 0).reshape(batch, -1) if batch_dim else x.reshape(batch, -1)
    if x.shape[0] == batch:
        return x.reshape(batch, -1)
    if x.ndim > 1 and x.shape[1] == batch:
        return x.transpose(0, 1).reshape(batch, -1)
    if batch > 1 and x.ndim > 1 and x.shape[0] > batch and x.shape[0] % batch == 0:
        return x.reshape(batch, -1)
    return x.reshape(1, -1)


def is_folded(x: Tensor, batch: int, batch_dim: int = 0) -> bool:
    """Whether `by_sample` has to guess which rows belong to a sample."""
    if batch in x.shape[:2] or (x.ndim > batch_dim and x.shape[batch_dim] == batch):
        return False
    return batch > 1 and x.ndim > 1 and x.shape[0] > batch and x.shape[0] % batch == 0


# ---- two ways to add ---------------------------------------------------------------------------
# On a CPU, in the middle of a network's pass, a call of numpy costs a fifth of one of torch, and
# looking at its answer costs nothing. So float32 is added in numpy, and the rare tensor out of its
# range widened. On other devices a look would make the device wait: all is widened there, and what
# comes out stays there.

Scalar = Tensor | float
T = TypeVar("T")

#: row norms within these bounds are exact to float32: no square has under- or overflowed
_SAFE_LOW, _SAFE_HIGH = 1e-14, 1e15
#: the smallest row norm whose reciprocal float32 can still multiply by
_LEAST = 1e-30
#: elements compared at a time, so that the answer fits the processor's cache
_PIECE = 1 << 16
#: where 1 - cosine is below this, it is taken in float64
_NEARLY_ONE = 1e-3
#: float32 sums of squares go wrong in the fifth digit beyond some ten thousand terms
_RUN = 1 << 12
#: below this share of the mean square the variance is too small for float32 sums
_SAFE_VARIANCE = 1e-3


def _in_numpy(x: Tensor) -> np.ndarray | None:
    """The tensor's own memory, if the quick way may be tried."""
    quick = x.dtype is torch.float32 and x.device.type == "cpu" and x.numel() <= CHUNK
    return x.numpy() if quick else None


def _squares(rows: np.ndarray) -> np.ndarray:
    """Sum of squares of every row, in runs short enough for float32."""
    n, width = rows.shape
    if width <= _RUN:
        return np.vecdot(rows, rows).astype(np.float64)
    whole = width - width % _RUN
    runs = rows[:, :whole].reshape(n, -1, _RUN)
    total = np.vecdot(runs, runs).sum(axis=1, dtype=np.float64)
    return total + np.vecdot(rows[:, whole:], rows[:, whole:]) if whole < width else total


def _safe_norms(rows: np.ndarray | None) -> np.ndarray | None:
    """Row norms by the quick way; None where it must not be taken."""
    if rows is None:
        return None
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        norms = np.sqrt(_squares(rows))
    if norms.min() > _SAFE_LOW and norms.max() < _SAFE_HIGH:
        return norms
    if not norms.max() < _SAFE_HIGH:  # nan, too
        return None
    few = norms <= _SAFE_LOW  # a sample that is learned, or padding
    wide = rows[few].astype(np.float64)
    norms[few] = np.sqrt(np.vecdot(wide, wide))
    return None if ((norms > 0) & (norms < _LEAST)).any() else norms


def _inverse(norms: np.ndarray) -> np.ndarray:
    if norms.all():
        return 1 / norms
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)


def _parts(flat: Tensor) -> Iterator[Tensor]:
    """The columns in slices of bounded size, each widened only while it is looked at."""
    wide = accumulator(flat.device)
    if flat.numel() <= CHUNK:
        yield flat.to(wide)
        return
    for part in flat.split(max(1, CHUNK // flat.shape[0]), dim=1):
        yield part.to(wide)


def _wide_norms(flat: Tensor) -> Tensor:
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in _parts(flat)])
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(norms, dim=0)


def row_norms(flat: Tensor) -> Tensor:
    """L2 norm of every row of (samples, features), in the widest dtype."""
    safe = _safe_norms(_in_numpy(flat))
    return torch.from_numpy(safe) if safe is not None else _wide_norms(flat)


def norm(x: Tensor) -> Scalar:
    """L2 norm of all elements."""
    if x.is_sparse:
        x = x.coalesce().values()
    if x.is_complex():
        x = torch.view_as_real(x)
    flat = x.detach().reshape(1, -1)
    rows = _in_numpy(flat)
    if rows is not None:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            whole = math.sqrt(_squares(rows)[0])
        if _SAFE_LOW < whole < _SAFE_HIGH or (whole == 0 and not rows.any()):
            return whole
    return torch.linalg.vector_norm(_wide_norms(flat))


def mean(x: Tensor) -> Tensor:
    """Mean of all elements."""
    parts = [part.mean() * part.numel() for part in _parts(x.reshape(1, -1))]
    return torch.stack(parts).sum() / x.numel()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (population) of all elements, in two passes."""
    average = mean(x)
    squares = [(part - average).square().sum() for part in _parts(x.reshape(1, -1))]
    return average, (torch.stack(squares).sum() / x.numel()).sqrt()


def _zeros(rows: np.ndarray) -> int:
    # in pieces: a large temporary is new memory every time, and costs more than the counting
    line = rows.reshape(-1)
    pieces = range(0, line.size, _PIECE)
    return sum(int(np.count_nonzero(line[i : i + _PIECE] == 0)) for i in pieces)


def _full_precision(function: Callable[[Tensor], T]) -> Callable[[Tensor], T]:
    """The products of a statistic must not be taken in the low precision of a user's autocast."""

    @functools.wraps(function)
    def outside_autocast(x: Tensor) -> T:
        if not torch.is_autocast_enabled(x.device.type):
            return function(x)
        with torch.autocast(x.device.type, enabled=False):
            return function(x)

    return outside_autocast


@_full_precision
def activation_scalars(flat: Tensor) -> list[Scalar]:
    """[mean, mean square, zeros, resultant, live rows, sum of G^2, trace of G] of (n, d).

    The resultant is the squared length of the sum of all rows, each scaled to unit length; G is
    the Gram matrix of the first rows, scaled so too.

    Returns:
        Numbers, or scalars on the tensor's device.
    """
    rows = _in_numpy(flat)
    norms = _safe_norms(rows)
    if rows is None or norms is None:
        return _wide_activation_scalars(flat)
    n = rows.size
    square = float(norms @ norms) / n
    average = float(_combined(flat, rows, np.ones(len(rows))).sum()) / n
    if square - average * average < _SAFE_VARIANCE * square:
        average = float(mean(flat))
    inverse = _inverse(norms)
    few = flat[:RANK_SAMPLES]
    scale = inverse[:RANK_SAMPLES]
    if norms[:RANK_SAMPLES].min() <= _SAFE_LOW:  # products of such rows would underflow
        few = few * torch.from_numpy(scale.astype(np.float32))[:, None]
    gram = _gram(few)
    diagonal = gram.diagonal()
    scale = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
    return [
        average,
        square,
        _zeros(rows),
        _resultant(flat, rows, inverse),
        int(np.count_nonzero(inverse)),
        float(scale @ (gram * gram) @ scale),
        int(np.count_nonzero(scale)),
    ]


def _gram(few: Tensor) -> np.ndarray:
    if few.shape[1] <= 1024:
        rows = few.numpy()
        return (rows @ rows.T).astype(np.float64)
    runs = few.split(4 * _RUN, dim=1)
    grams = np.stack([(run @ run.T).numpy() for run in runs])  # here torch's product is quicker
    return grams.sum(axis=0, dtype=np.float64)


def _resultant(flat: Tensor, rows: np.ndarray, inverse: np.ndarray) -> float:
    total = _combined(flat, rows, inverse)
    return _exact_if_near(float(np.vecdot(total, total)), flat, inverse)


def _combined(flat: Tensor, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of all rows, each times its weight."""
    narrow = weights.astype(np.float32)
    if rows.size <= _PIECE:
        return narrow @ rows
    # beyond this numpy's product starts threads of its own, beside torch's
    return (torch.from_numpy(narrow) @ flat).numpy()


def _exact_if_near(resultant: float, flat: Tensor, inverse: np.ndarray) -> float:
    """Where the samples are all but alike, how much so is below float32's last digit."""
    n = int(np.count_nonzero(inverse))
    if n > 1 and n * n - resultant < _NEARLY_ONE * n * n:
        norms = _wide_norms(flat)
        return float(_wide_resultant(flat, torch.where(norms > 0, norms.reciprocal(), 0.0)))
    return resultant


def _wide_activation_scalars(flat: Tensor) -> list[Scalar]:
    norms = _wide_norms(flat)
    inverse = torch.where(norms > 0, norms.reciprocal(), 0.0)
    gram = _unit_gram(flat[:RANK_SAMPLES]).to(norms.dtype)
    return [
        mean(flat),
        norms.square().sum() / flat.numel(),
        flat.numel() - torch.count_nonzero(flat),
        _wide_resultant(flat, inverse),
        torch.count_nonzero(inverse),
        gram.square().sum(),
        gram.trace(),
    ]


def _unit_gram(few: Tensor) -> Tensor:
    """Gram matrix of the rows at unit length, however small or large they are."""
    few = few if few.dtype in (torch.float32, torch.float64) else few.float()
    for scale in (few.abs().amax(1), None):  # to a safe range first, then to unit length
        scale = torch.linalg.vector_norm(few, dim=1) if scale is None else scale
        few = few / torch.where(scale > 0, scale, 1.0)[:, None]
    return few @ few.T


def _wide_resultant(flat: Tensor, inverse: Tensor) -> Tensor:
    return torch.stack([(inverse @ part).square().sum() for part in _parts(flat)]).sum()


@_full_precision
def delta_scalars(flat: Tensor) -> tuple[Tensor, list[Scalar]]:
    """Row norms (n,) and [mean square, zeros, resultant] of a delta (n, d)."""
    rows = _in_numpy(flat)
    norms = _safe_norms(rows)
    if rows is not None and norms is not None:
        square = float(norms @ norms) / rows.size
        resultant = _resultant(flat, rows, _inverse(norms))
        return torch.from_numpy(norms), [square, _zeros(rows), resultant]
    wide = _wide_norms(flat)
    inverse = torch.where(wide > 0, wide.reciprocal(), 0.0)
    zeros = flat.numel() - torch.count_nonzero(flat)
    return wide, [wide.square().sum() / flat.numel(), zeros, _wide_resultant(flat, inverse)]


def mean_cosine(resultant: float, rows: int) -> float:
    """Mean pairwise cosine from the squared length of the sum of `rows` unit vectors."""
    if rows < 2:
        return math.nan
    return (resultant - rows) / (rows * (rows - 1))


@_full_precision
def token_cosine(x: Tensor) -> Tensor:
    """Mean over samples of the mean cosine between two of a sample's tokens; x (b, t, d)."""
    wide = x.to(accumulator(x.device)) if x.numel() <= CHUNK else x.float()
    norms = torch.linalg.vector_norm(wide, dim=2)
    inverse = torch.where(norms > 0, norms.reciprocal(), 0.0)
    total = torch.einsum("btd,bt->bd", wide, inverse).square().sum(1)
    live = torch.count_nonzero(norms, dim=1)  # a padded token may be zero
    pairs = live * (live - 1)
    return ((total - live) / torch.where(pairs > 0, pairs, torch.nan)).nanmean()


def dead_units(x: Tensor, unit_dim: int) -> Tensor:
    """How many units are not above zero for any observation."""
    others = [d for d in range(x.ndim) if d != unit_dim]
    large = x.device.type == "cpu" and x.numel() > _PIECE
    if large and bool((x[:8].amax(others) > 0).all()):
        return torch.tensor(0)  # a few samples have seen every unit alive
    return (x.amax(others) <= 0).sum()


#: |output| beyond which the slope is below SATURATED_SLOPE of its largest
_ENDS = {
    "sigmoid": math.sqrt(1 - SATURATED_SLOPE),  # of 2 y - 1: slope 4 y (1 - y) = 1 - (2 y - 1)^2
    "tanh": math.sqrt(1 - SATURATED_SLOPE),
    "softsign": 1 - math.sqrt(SATURATED_SLOPE),
    "erf": math.erf(math.sqrt(-math.log(SATURATED_SLOPE))),
}


def saturated_units(x: Tensor, op: str, unit_dim: int) -> Tensor:
    """How many units have lost their slope in 3/4 of their observations, told from the output."""
    if op in _ENDS:
        flat = (2 * x - 1 if op == "sigmoid" else x).abs() > _ENDS[op]
    elif op == "hardsigmoid":
        flat = (x <= 0) | (x >= 1)
    else:  # hardtanh, whatever its limits: the ends are where the values pile up
        flat = (x <= x.min()) | (x >= x.max())
    others = [d for d in range(x.ndim) if d != unit_dim]
    return (flat.to(torch.float32).mean(others) > SATURATED_OBSERVATIONS).sum()
