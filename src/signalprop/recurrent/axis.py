"""From what was written down to the time axis, as plain data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from signalprop.capture.statistics import accumulator
from signalprop.capture.time import Gate, TimeAxis
from signalprop.recurrent.borders import Chunked
from signalprop.recurrent.stepwise import Stepwise

#: names of the gates, in torch's order
GATES = {"lstm": ("input", "forget", "cell", "output"), "gru": ("reset", "update", "new")}
#: those that are no gate but a candidate
CANDIDATES = frozenset({"cell", "new"})


def of_steps(site: str, run: Stepwise) -> list[TimeAxis]:
    """The time axes of a call that was run step by step; those without a delta are left out."""
    found = []
    for (layer, direction), deltas in sorted(run.seen.items()):
        if deltas.h is None:
            continue
        h = _rms(deltas.h, deltas.mask)
        c = () if deltas.c is None else _rms(deltas.c, deltas.mask)
        steps = tuple(range(1, len(h) + 1))
        gates = () if deltas.gates is None else _gates(run.op, deltas.gates, deltas.mask)
        found.append(TimeAxis(site, run.op, layer, bool(direction), len(h), steps, h, c, gates))
    return found


def of_borders(site: str, run: Chunked) -> list[TimeAxis]:
    """The time axes of a call that was run in chunks; those without a delta are left out."""
    found = []
    for (layer, direction), borders in sorted(run.seen.items()):
        known = [(b.step, h, b.c()) for b in borders if (h := b.h()) is not None]
        if not known:
            continue
        h = _fetched(_size(x) for _, x, _ in known)
        cells = [c for _, _, c in known if c is not None]
        c = _fetched(_size(x) for x in cells) if len(cells) == len(known) else ()
        steps = tuple(t for t, _, _ in known)
        length = borders[-1].step
        gates = run.gates.get((layer, direction))
        told = () if gates is None else _gates(run.op, *gates)
        found.append(TimeAxis(site, run.op, layer, bool(direction), length, steps, h, c, told))
    return found


def _size(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=accumulator(x.device)) / max(x.numel(), 1) ** 0.5


def _fetched(values: Iterable[Tensor]) -> tuple[float, ...]:
    return tuple(torch.stack(list(values)).tolist())


def _rms(x: Tensor, mask: Tensor | None) -> tuple[float, ...]:
    if mask is None:
        count = torch.tensor(x.shape[1] * x.shape[2])
    else:
        x, count = torch.where(mask, x, 0), mask.sum((1, 2)).clamp_min(1) * x.shape[-1]
    norms = torch.linalg.vector_norm(x, dim=(1, 2), dtype=accumulator(x.device))
    return tuple((norms / count.to(norms).sqrt()).tolist())


def _gates(op: str, gates: Tensor, mask: Tensor | None) -> tuple[Gate, ...]:
    names = GATES.get(op, ())
    found = []
    for name, value in zip(names, gates.chunk(max(len(names), 1), -1), strict=True):
        if name in CANDIDATES:
            continue
        flat = (
            value.flatten(0, 1) if mask is None else value[mask.expand_as(value[..., :1])[..., 0]]
        )
        flat = flat.float()
        ends = ((flat < 0.01) | (flat > 0.99)).float().mean()
        remembers = None
        if name in ("forget", "update"):
            means = flat.mean(0).clamp(1e-30, 1 - 1e-7)
            remembers = float((-1 / means.log()).median())
        found.append(Gate(name, float(flat.mean()), float(ends), remembers))
    return tuple(found)
