"""Sums over a tensor's elements in the range of float64, with no wait for the device."""

from __future__ import annotations

import math
import torch
from torch import Tensor

from signalprop.capture import statistics
from signalprop.capture.statistics import Scalar

#: sums of products of float32 within these bounds have lost nothing to under- or overflow
LEAST, MOST = 1e-28, 1e30
#: terms that float32 adds well: the product of two vectors adds many runs side by side
RUN = 1 << 22


def square_sum(x: Tensor) -> Scalar:
    """Sum of squares.

    Args:
        x: of any shape; complex numbers count as two.

    Returns:
        A number on a CPU, else a scalar on the tensor's device.
    """
    if x.dtype is torch.float32 and x.is_contiguous() and x.device.type == "cpu":
        flat = x.view(-1)
        if flat.shape[0] <= RUN:
            found = float(flat.dot(flat))
            if LEAST < found < MOST:
                return found
    if x.device.type == "cpu" or x.is_sparse:
        norm = float(statistics.norm(x))
        return norm * norm
    if x.is_complex():
        x = torch.view_as_real(x)
    return torch.linalg.vector_norm(x, dtype=statistics.accumulator(x.device)).square()


def dot(a: Tensor, b: Tensor) -> Scalar:
    """Sum of a * b.

    Args:
        a: of any shape, dense.
        b: of the same.

    Returns:
        A number on a CPU, else a scalar on the tensor's device.
    """
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.device.type != "cpu":
        return (a * b).sum(dtype=statistics.accumulator(a.device))
    a, b = a.reshape(-1), b.reshape(-1)
    if a.dtype == b.dtype == torch.float32 and a.shape[0] <= RUN:
        found = float(a.dot(b))
        if LEAST < abs(found) < MOST:
            return found
    return float(a.double().dot(b.double()))
