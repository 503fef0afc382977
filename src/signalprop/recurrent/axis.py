"""The time axis of one recurrent layer, as plain data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from signalprop.recurrent.borders import Border
from signalprop.recurrent.cells.record import Deltas

#: names of the gates, in torch's order
GATES = {"lstm": ("input", "forget", "cell", "output"), "gru": ("reset", "update", "new")}
#: those that are no gate but a candidate
CANDIDATES = frozenset({"cell", "new"})


@dataclass(frozen=True)
class Gate:
    """One gate over all steps, samples and units.

    Attributes:
        name: `input`, `forget`, `output`, `reset` or `update`.
        mean: its mean.
        saturated: share within 1 percent of 0 or 1.
        remembers: -1 / ln of its mean over samples and steps, median over the units: steps until
            what the unit holds has fallen to 1/e; only of the gate that holds (`forget`, `update`),
            else None.
    """

    name: str
    mean: float
    saturated: float
    remembers: float | None


@dataclass(frozen=True)
class TimeAxis:
    """Deltas of one layer in one direction, step by step.

    Attributes:
        site: path of the module; `path#2` for its second call.
        op: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.
        layer: from 0.
        reverse: whether it runs from the end to the beginning; steps are counted the way it runs.
        length: steps of the longest sequence.
        steps: t of every value below: h_t is the state after t steps.
        h: rms of dL/dh_t over the units and the sequences that are still going.
        c: rms of dL/dc_t, of an LSTM; else empty.
        gates: facts of the gates; empty where they were not seen.
    """

    site: str
    op: str
    layer: int
    reverse: bool
    length: int
    steps: tuple[int, ...]
    h: tuple[float, ...]
    c: tuple[float, ...]
    gates: tuple[Gate, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """ln(|dL/dh_t| / |dL/dh_t'|) / (t' - t) of neighbours t < t', nats; negative: lost."""
        found = itertools.pairwise(zip(self.steps, self.h, strict=True))
        return tuple((_log(a) - _log(b)) / (t2 - t1) for (t1, a), (t2, b) in found)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def of_steps(site: str, op: str, seen: dict[tuple[int, int], Deltas]) -> list[TimeAxis]:
    """The time axes of a call that was run step by step; those without a delta are left out."""
    found = []
    for (layer, direction), deltas in sorted(seen.items()):
        if deltas.h is None:
            continue
        h = _rms(deltas.h, deltas.mask)
        c = () if deltas.c is None else _rms(deltas.c, deltas.mask)
        steps = tuple(range(1, len(h) + 1))
        gates = () if deltas.gates is None else _gates(op, deltas.gates, deltas.mask)
        found.append(TimeAxis(site, op, layer, bool(direction), len(h), steps, h, c, gates))
    return found


def of_borders(site: str, op: str, seen: dict[tuple[int, int], list[Border]]) -> list[TimeAxis]:
    """The time axes of a call that was run in chunks; those without a delta are left out."""
    found = []
    for (layer, direction), borders in sorted(seen.items()):
        known = [(b.step, h, b.c()) for b in borders if (h := b.h()) is not None]
        if not known:
            continue
        h = _fetched(_size(x) for _, x, _ in known)
        cells = [c for _, _, c in known if c is not None]
        c = _fetched(_size(x) for x in cells) if len(cells) == len(known) else ()
        steps = tuple(t for t, _, _ in known)
        length = borders[-1].step
        found.append(TimeAxis(site, op, layer, bool(direction), length, steps, h, c, ()))
    return found


def _size(x: Tensor) -> Tensor:
    return (
        x.float().square().mean().sqrt() if x.dtype != torch.float64 else x.square().mean().sqrt()
    )


def _fetched(values: Iterable[Tensor]) -> tuple[float, ...]:
    return tuple(torch.stack(list(values)).tolist())


def _rms(x: Tensor, mask: Tensor | None) -> tuple[float, ...]:
    squares = x.to(torch.promote_types(x.dtype, torch.float32)).square()
    if mask is None:
        return tuple(squares.mean((1, 2)).sqrt().tolist())
    squares = torch.where(mask, squares, 0)
    count = mask.sum((1, 2)).clamp_min(1) * x.shape[-1]
    return tuple((squares.sum((1, 2)) / count).sqrt().tolist())


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
