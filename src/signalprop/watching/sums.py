"""Sums over a tensor's elements in the range of float64, with no wait for the device.

float32 tensors on a CPU are read by the compiled functions; where there are none, small ones by
numpy, whose calls cost a fraction of torch's.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from signalprop.capture import statistics
from signalprop.capture.statistics import Scalar
from signalprop.compiled import sums as compiled
from signalprop.compiled.sums import is_flat

#: sums of products of float32 within these bounds have lost nothing to under- or overflow
LEAST, MOST = 1e-28, 1e30
#: terms that float32 adds well: the product of two vectors adds many runs side by side
RUN = 1 << 22
#: elements up to which numpy is the quicker, and takes no threads of its own
SMALL = 1 << 13
Operand = NDArray[np.float32] | Tensor


def operand(x: Tensor) -> Operand:
    """What sums are taken of, if more than one: what kind of tensor it is, is asked once.

    Args:
        x: of any shape.

    Returns:
        Where `is_flat` is true its elements in one row, as an array where they are few; else the
        tensor, detached.
    """
    x = x.detach()
    if not is_flat(x):
        return x
    flat = x.view(-1)
    return flat.numpy() if flat.shape[0] <= SMALL else flat


def square_sum(x: Operand) -> Scalar:
    """Sum of squares.

    Args:
        x: of any shape; complex numbers count as two.

    Returns:
        A number on a CPU, else a scalar on the tensor's device.
    """
    if isinstance(x, Tensor):
        found = compiled.square_sum(x)
        if found is not None:
            return found
        x = operand(x)
    if not isinstance(x, Tensor):
        return dot(x, x)
    if x.ndim == 1 and is_flat(x) and x.shape[0] <= RUN:
        found = x.dot(x).item()
        if LEAST < found < MOST:
            return found
    if x.device.type == "cpu" or x.is_sparse:
        norm = float(statistics.norm(x))
        return norm * norm
    if x.is_complex():
        x = torch.view_as_real(x)
    return torch.linalg.vector_norm(x, dtype=statistics.accumulator(x.device)).square()


def dot(a: Operand, b: Operand) -> Scalar:
    """Sum of a * b.

    Args:
        a: of any shape, dense.
        b: of the same.

    Returns:
        A number on a CPU, else a scalar on the tensor's device.
    """
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return _dot(*(x if isinstance(x, Tensor) else torch.from_numpy(x) for x in (a, b)))
    with np.errstate(all="ignore"):  # what is not finite is a result here
        found = float(a.dot(b))
        if LEAST < found < MOST or LEAST < -found < MOST:
            return found
        return float(a.astype(np.float64).dot(b.astype(np.float64)))


def _dot(a: Tensor, b: Tensor) -> Scalar:
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if not a.is_cpu:
        return (a * b).sum(dtype=statistics.accumulator(a.device))
    if a.ndim != 1 or b.ndim != 1:
        a, b = a.reshape(-1), b.reshape(-1)
    if a.dtype is b.dtype is torch.float32 and a.shape[0] <= RUN:
        found = a.dot(b).item()
        if LEAST < found < MOST or LEAST < -found < MOST:
            return found
    return a.double().dot(b.double()).item()
