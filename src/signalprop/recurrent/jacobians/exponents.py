"""Lyapunov exponents of recurrent layers: QR of the step Jacobians, one after the other.

    lambda_i = lim 1/T sum over t of ln |R_ii(t)|,   J_t^T Q_t = Q_(t-1) R(t)

(Benettin, Galgani, Giorgilli & Strelcyn 1980; for recurrent nets Engelken, Wolf & Abbott 2023.) The
sweep goes back in time, as errors do. The product of the J_t and that of their transposes have the
same singular values, so the exponents are those of the state itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from signalprop.recurrent.horizon.result import Exponents
from signalprop.recurrent.jacobians.steps import Diagonal, Steps

#: the first steps of the sweep, in which its directions turn into place, are left out: 1 / this
SETTLE = 8
#: parts of the sweep whose spread gives the error
PARTS = 8


def exponents_of(steps: Steps, k: int, generator: torch.Generator) -> Exponents:
    """The k largest Lyapunov exponents, mean over the samples.

    Args:
        steps: the step Jacobians.
        k: how many, at most n.
        generator: of the first directions.

    Returns:
        They, in nats per step, with their standard errors.
    """
    k = min(k, steps.size)
    logs = _diagonal(steps) if isinstance(steps, Diagonal) else _sweep(steps, k, generator)
    # of each sample the steps that are its own, and late enough in the sweep
    at = torch.arange(1, steps.length + 1, device=steps.device)[:, None]
    settled = torch.where(steps.lengths > SETTLE, steps.lengths // SETTLE, 0)
    if isinstance(steps, Diagonal):
        settled = torch.zeros_like(settled)  # nothing has to turn
    used = (at <= steps.lengths - settled) & (at > 1)
    used = used if bool(used.any()) else at <= steps.lengths
    values = _mean(logs, used).sort(-1, descending=True)
    order = values.indices[:k]
    found = values.values[:k]
    parts = []
    for part in range(PARTS):
        low, high = (used.sum(0) * p // PARTS + 2 for p in (part, part + 1))
        inside = used & (at >= low) & (at < high)
        if bool(inside.any()):
            parts.append(_mean(logs, inside)[order])
    spread = torch.full_like(found, math.nan)
    if len(parts) > 1:
        some = torch.stack(parts)
        spread = some.std(0) / math.sqrt(len(parts))
    return Exponents(
        steps.place.site,
        steps.place.op,
        steps.place.layer,
        steps.place.reverse,
        tuple(found.tolist()),
        tuple(spread.tolist()),
        steps.size,
        int(used.sum(0).max()),
        steps.rows,
    )


def _mean(logs: Tensor, used: Tensor) -> Tensor:
    """Of every direction over all steps and samples that are used."""
    return torch.where(used[..., None], logs, 0).sum((0, 1)) / used.sum()


def _diagonal(steps: Diagonal) -> Tensor:
    """Exactly: ln |a|, whose units never mix."""
    return steps.a.abs().log()


def _sweep(steps: Steps, k: int, generator: torch.Generator) -> Tensor:
    """Ln |R_ii| of every step, (T, B, k)."""
    start = torch.randn(steps.rows, steps.size, k, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(start.to(steps.device))[0]
    logs = torch.zeros(steps.length, steps.rows, k, dtype=torch.float64, device=steps.device)
    noise = steps.size * torch.finfo(torch.float64).eps
    for t in range(steps.length, 1, -1):
        back = steps.back(t, q.permute(2, 0, 1)).permute(1, 2, 0)
        if k == 1:
            size = torch.linalg.vector_norm(back, dim=1, keepdim=True)
            q = torch.where(size > 0, back / size, q)
            logs[t - 1] = size[:, 0].log()
            continue
        q, r = torch.linalg.qr(back)
        sizes = r.diagonal(dim1=-2, dim2=-1).abs()
        lost = sizes <= noise * sizes.amax(-1, keepdim=True)  # a direction that J_t does not have
        logs[t - 1] = torch.where(lost, 0, sizes).log()
    return logs
