"""Orthonormal bases that grow, one per sample, with directions that are only rounding left out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from signalprop.jacobian.operator import Operator


def negligible(dtype: torch.dtype) -> float:
    """Relative length below which a direction that is new after projection is rounding.

    Args:
        dtype: of the operator's arithmetic.

    Returns:
        1e-5 in float32, 2e-14 in float64; a few roundings in half precision.
    """
    eps = torch.finfo(dtype).eps
    return 100 * eps if eps < 1e-5 else 4 * eps


def rounding(op: Operator) -> float:
    """Relative to the largest, how far a singular value may be off for rounding alone.

    4 eps sqrt(max(m, n)): an SVD moves every value by a small multiple of eps s_1 (Anderson et al.,
    LAPACK Users' Guide, 4.9), and so does the arithmetic of some tens of layers, as measured; of
    layers that cancel each other it cannot know.

    Args:
        op: (m, n) per sample.

    Returns:
        The share of s_1.
    """
    return 4 * torch.finfo(op.dtype).eps * max(op.rows, op.columns) ** 0.5


class Block(NamedTuple):
    """W = old @ along + basis @ own + rest.

    Attributes:
        basis: (batch, n, b), orthonormal and orthogonal to the old; left-out columns are zero.
        along: (batch, old columns, b).
        own: (batch, b, b); rows of left-out columns are zero.
        rest: (batch, b, b), the rows of `own` with what was left out: W's whole remainder in some
            orthonormal coordinates.
        kept: (batch, b), which columns of the basis are there.
    """

    basis: Tensor
    along: Tensor
    own: Tensor
    rest: Tensor
    kept: Tensor


def orthonormal(W: Tensor, old: Tensor | None, floor: Tensor) -> Block:
    """New directions of W beside an orthonormal basis.

    Projected out twice ("twice is enough", Parlett 1998, 6.9), then QR and the singular values of
    R: unlike columns of a QR, directions can be left out of it without losing what others have
    along them.

    Args:
        W: (batch, n, b).
        old: (batch, n, c), orthonormal or zero columns; None for none.
        floor: (batch,), length at and below which a direction is left out.

    Returns:
        The directions and the coordinates of W.
    """
    if old is None:
        along = W.new_zeros((len(W), 0, W.shape[2]))
    else:
        along = old.mT @ W
        W = W - old @ along
        again = old.mT @ W
        W, along = W - old @ again, along + again
    Q, R = torch.linalg.qr(W)
    P, s, Vh = torch.linalg.svd(R)
    kept = s > floor[:, None]
    rest = s[:, :, None] * Vh
    basis = (Q @ P) * kept[:, None, :]
    if old is not None:  # a short direction, made long, has its rounding made long with it
        basis = basis - old @ (old.mT @ basis)
    return Block(basis, along, rest * kept[:, :, None], rest, kept)
