"""Singular values of a batch of matrices, and how far to trust them."""

from __future__ import annotations

from dataclasses import dataclass

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
