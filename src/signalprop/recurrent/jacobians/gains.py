"""What single steps do: largest singular value and Frobenius norm of J_t, or all of its values.

Narrow states are measured from the matrix. Of wide ones the largest value comes from Golub-Kahan
bidiagonalisation (Golub & Kahan 1965), of all chosen steps and samples at a time, and the Frobenius
norm from orthonormal random directions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from signalprop.recurrent.horizon.result import Gains
from signalprop.recurrent.jacobians.steps import Steps

#: up to this size of the state J_t is written out
NARROW = 48
#: steps of the bidiagonalisation, and random directions of the Frobenius norm
DEEP, PROBES = 16, 16
#: samples that they are measured of, where not all singular values are asked for
FEW = 4
#: numbers that the Jacobians of one step may hold
ROOM = 1 << 24


def gains_of(
    steps: Steps, chosen: tuple[int, ...], *, spectra: bool, generator: torch.Generator
) -> Gains:
    """The gains of some steps.

    Args:
        steps: the step Jacobians.
        chosen: which t, from 1.
        spectra: whether to keep all singular values.
        generator: of random directions.

    Returns:
        They, over the samples that are still going.
    """
    count = steps.rows if spectra else min(steps.rows, FEW)
    rows = torch.linspace(0, steps.rows - 1, count).round().long().to(steps.device)
    values = None
    if spectra or steps.size <= NARROW:
        values = torch.stack([_values(steps, t, rows) for t in chosen])
        largest, squares = values[..., 0], values.square().mean(-1)
    else:
        largest, squares = _bounds(steps, chosen, rows, generator)
    going = torch.tensor(chosen, device=steps.device)[:, None] <= steps.lengths[rows]
    largest = torch.where(going, largest, math.nan)
    squares = torch.where(going, squares, math.nan)
    kept: np.ndarray | None = None
    if spectra and values is not None:
        kept = torch.where(going[..., None], values, math.nan).cpu().numpy()
    return Gains(
        steps.place.site,
        steps.place.op,
        steps.place.layer,
        steps.place.reverse,
        chosen,
        tuple(largest.nanmedian(-1).values.tolist()),
        tuple(squares.nanmean(-1).sqrt().tolist()),
        steps.size,
        count,
        steps.radius,
        kept,
    )


def _values(steps: Steps, t: int, rows: Tensor) -> Tensor:
    """All singular values of J_t of some samples, (B, n)."""
    some = max(1, ROOM // steps.size**2)
    return torch.cat([torch.linalg.svdvals(steps.matrix(t, part)) for part in rows.split(some)])


def _bounds(
    steps: Steps, chosen: tuple[int, ...], samples: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """s_1 and ||J||_F^2 / n of every step and sample, (steps, B) each."""
    parts = zip(*(steps.local(t) for t in chosen), strict=True)
    local = tuple(torch.cat([x[samples] for x in part]) for part in parts)
    rows, n = len(chosen) * len(samples), steps.size
    gauss = torch.randn(n, PROBES, generator=generator, dtype=torch.float64)
    probes = torch.linalg.qr(gauss)[0].t().to(steps.device)
    # of orthonormal directions: exact where they are all of them
    back = steps.backward(local, probes[:, None].expand(-1, rows, -1))
    squares = back.square().sum((0, 2)) / PROBES
    first = torch.randn(rows, n, generator=generator, dtype=torch.float64).to(steps.device)
    shape = len(chosen), len(samples)
    return _largest(steps, local, first).view(shape), squares.view(shape)


def _largest(steps: Steps, local: tuple[Tensor, ...], v: Tensor) -> Tensor:
    """s_1 of every row's J."""
    deep = min(DEEP, steps.size)
    v = _unit(v)[0]
    right, left = [v], list[Tensor]()
    corner = v.new_zeros(len(v), deep, deep)
    u = steps.forward(local, v)
    for k in range(deep):
        u, alpha = _unit(_apart(u, left))
        left.append(u)
        corner[:, k, k] = alpha
        if k + 1 == deep:
            break
        v, beta = _unit(_apart(steps.backward(local, u), right))
        right.append(v)
        corner[:, k, k + 1] = beta
        u = steps.forward(local, v) - beta[:, None] * u
    return torch.linalg.svdvals(corner)[:, 0]


def _apart(x: Tensor, others: list[Tensor]) -> Tensor:
    """Its part that is orthogonal to all others."""
    if not others:
        return x
    base = torch.stack(others, -1)
    for _ in range(2):
        x = x - (base @ (base.mT @ x[..., None]))[..., 0]
    return x


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Its direction, 0 where it has none, and its length."""
    size = torch.linalg.vector_norm(x, dim=-1)
    return torch.where(size[:, None] > 0, x / size[:, None], 0), size
