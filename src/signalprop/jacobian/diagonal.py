"""Jacobians of operations that work element by element: diagonal, so one pass says all."""

from __future__ import annotations

import torch
from torch import Tensor

from signalprop.jacobian.operator import Operator
from signalprop.jacobian.probes import generator_of, signs

#: how often chance is given to look like a diagonal
TRIES = 3


def diagonal_of(op: Operator, generator: torch.Generator | None = None) -> Tensor | None:
    """The diagonal of a square J, (batch, n), if it has nothing beside it.

    For a vector of signs u, u * J^T u is the diagonal, plus signed sums of what stands beside it,
    which differ from one u to the next. Three that agree leave no room for anything beside it, but
    by a chance of 4^-j where j rows have one such element each: it is meant for wide J.

    Args:
        op: (m, n) per sample.
        generator: of the signs.

    Returns:
        The diagonal, or None. Cost: three backward passes.
    """
    if op.rows != op.columns:
        return None
    u = signs(op, op.rows, TRIES, generator_of(generator))
    found = (op.adjoint(u) * u.to(op.device)).double()
    middle = found.mean(dim=2)
    apart = (found - middle[:, :, None]).abs().amax(dim=(1, 2))
    eps = torch.finfo(op.dtype).eps
    if (apart > 4 * eps * found.abs().amax(dim=(1, 2))).any():
        return None
    return middle
