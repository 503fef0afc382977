"""What follows from the singular values of a matrix: volume, condition, distortion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Values:
    """Singular values of a batch of matrices, largest first, and how far to trust them.

    Attributes:
        values: (batch, k), float64.
        errors: (batch, k), estimate of |value - truth|; inf where nothing is known.
        reliable: (batch, k); False: the value is below the rounding of the largest one, it is noise
            and only says "less than `errors`".
        method: "exact" or "krylov".
        converged: (batch,), whether every value is as exact as was asked.
        vectors: how many vectors went through the operator.
    """

    values: Tensor
    errors: Tensor
    reliable: Tensor
    method: str
    converged: Tensor
    vectors: int


def frobenius(s: Tensor) -> Tensor:
    """||J||_F = sqrt(sum s^2), of all singular values (..., k)."""
    return torch.linalg.vector_norm(s, dim=-1)


def condition(s: Tensor) -> Tensor:
    """s_1 / s_k of all singular values (..., k), largest first; inf for a singular matrix."""
    return torch.where(s[..., -1] > 0, s[..., 0] / s[..., -1], torch.inf)


def log_volume(s: Tensor) -> Tensor:
    """Sum of log s_i in nats over all singular values (..., k): log|det| for a square matrix.

    By how much a unit cube's volume grows, or for m != n the volume that stays after the directions
    that have to be lost; -inf for a singular matrix.

    Args:
        s: all singular values (..., k).

    Returns:
        (...,)
    """
    return s.log().sum(-1)


def log_volume_error(values: Values) -> Tensor:
    """How far `log_volume` may be off: sum of error / value; inf where a value is noise."""
    share = values.errors / values.values.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(values.reliable, share, torch.inf).sum(-1)


def distortion(s: Tensor, n: int) -> Tensor:
    """How far J is from a multiple of an isometry, root mean square over directions.

    ||J^T J / (||J||_F^2 / n) - I||_F / sqrt(n) = sqrt(n sum s^4 / (sum s^2)^2 - 1): 0 for a
    multiple of an isometry, sqrt(n - 1) for rank one, nan for zero. The spread of the squared
    singular values over their mean.

    Args:
        s: all singular values (..., k).
        n: dimension of the input side; more than k values count as zeros.

    Returns:
        (...,)
    """
    size = s.amax(-1, keepdim=True)
    squares = (s / size).square()
    mean = squares.sum(-1, keepdim=True) / n
    spread = (squares - mean).square().sum(-1) + (n - s.shape[-1]) * mean[..., 0].square()
    return (spread / n).sqrt() / mean[..., 0]


def angle_distortion(s: Tensor, n: int) -> Tensor:
    """By how much an angle of 90 degrees can change, in radians, for the worst pair of directions.

    arcsin((s_1^2 - s_n^2) / (s_1^2 + s_n^2)) (Wielandt's inequality; Horn & Johnson, Matrix
    Analysis, 7.4.12): 0 for a multiple of an isometry, pi/2 where a direction is lost.

    Args:
        s: all singular values (..., k), largest first.
        n: dimension of the input side; with more than k there is a direction that is lost.

    Returns:
        (...,), nan for a zero matrix.
    """
    last = s[..., -1] / s[..., 0] if n <= s.shape[-1] else torch.zeros_like(s[..., 0])
    ratio = last.square()
    found = torch.asin(((1 - ratio) / (1 + ratio)).clamp(max=1))
    return torch.where(s[..., 0] > 0, found, torch.nan)
