"""The leading singular values of a Jacobian, roughly, for a handful of backward passes."""

from __future__ import annotations

import numpy as np
import torch

from signalprop.errors import SignalpropError
from signalprop.jacobian.operator import Operator, working


def sketch(op: Operator, *, count: int = 8, seed: int = 0) -> np.ndarray:
    """Singular values of J^T U, with U orthonormal and random: as many as columns of U.

    Exact where J has no more than `count` rows. Else J^T U has the rank of J up to `count`, and its
    values follow the leading ones of J from below, within a factor that does not depend on the
    depth (Halko, Martinsson & Tropp 2011, the range finder): good for how fast they fall, not for
    how large they are. No operation needs to be differentiated twice.

    Args:
        op: (m, n) per sample.
        count: how many vectors go through.
        seed: of U.

    Returns:
        (batch, min(count, m, n)), largest first.

    Raises:
        SignalpropError: it is not finite.

    Note:
        Cost: min(count, m) backward passes.
    """
    dtype = working(op.dtype)
    if op.rows <= count:
        directions = torch.eye(op.rows, dtype=dtype)
    else:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(op.rows, count, generator=generator, dtype=dtype)
        directions = torch.linalg.qr(drawn).Q
    reached = op.adjoint(directions.to(op.device).expand(op.batch, -1, -1))
    if not torch.isfinite(reached).all():
        raise SignalpropError("the Jacobian has entries that are inf or nan")
    return torch.linalg.svdvals(reached.double()).cpu().numpy()
