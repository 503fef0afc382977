"""The depth of a network as a few rows: repeated blocks are folded, nothing is lost from the sum.

Plain data in, plain data out; the terminal, the notebook and the page draw it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from signalprop.capture.kinds import Kind
from signalprop.capture.trace import Block, Site, Trace
from signalprop.report import words
from signalprop.report.folding import REPEATS, reach, shared, stretches

#: up to so many steps are all shown
SHORT = 16
#: rows that one repeated stretch is drawn with, where the signal changes along it
SEGMENTS = 5
#: rows in all; beyond, the middle is one row
ROWS = 32


@dataclass(frozen=True)
class Row:
    """One row of the ladder.

    Attributes:
        label: its name: a site, a module, or a range of them.
        op: operations in it, e.g. `linear, sigmoid`.
        sites: names of the sites in it, in execution order.
        count: how many alike units are folded into it; 1 where nothing is folded.
        activation: activation rms at its output end; nan where not finite.
        delta: delta rms there (geometric mean over samples); None where the loss does not depend
            on it.
        activations: smallest and largest activation rms at the ends of the folded units.
        deltas: the same for delta.
        decay: in nats over the whole row; None at the first site, and where no spine is.
        each: mean, smallest and largest decay of the folded units; None where nothing is folded.
        parts: the decay by kind; adds up to `decay`.
        residual: whether every step of it is a residual block.
        gone: whether delta is already exactly zero at its output end.
    """

    label: str
    op: str
    sites: tuple[str, ...]
    count: int
    activation: float
    delta: float | None
    activations: tuple[float, float]
    deltas: tuple[float, float] | None
    decay: float | None
    each: tuple[float, float, float] | None
    parts: Mapping[Kind, float]
    residual: bool
    gone: bool

    @property
    def kind(self) -> str:
        """The kind of operation with the largest part of the decay; empty where there is none."""
        if self.decay is None or not self.parts or self.gone:
            return ""
        return max(self.parts, key=lambda kind: _size(self.parts[kind]))


@dataclass(frozen=True)
class Ladder:
    """All rows, from the input to the output.

    Attributes:
        rows: the rows in execution order.
        spine: whether the rows are blocks of the spine; else they are all sites.
        why: why not the spine; empty where it is.
    """

    rows: tuple[Row, ...]
    spine: bool
    why: str


@dataclass(frozen=True)
class _Step:
    """One block of the spine, or one site where there is no spine."""

    name: str
    op: str
    like: tuple[object, ...]
    sites: tuple[str, ...]
    activation: float
    delta: float | None
    decay: float | None
    parts: Mapping[Kind, float]
    residual: bool
    gone: bool


def ladder(trace: Trace, *, fold: bool = True) -> Ladder:
    """The rows of a trace.

    Args:
        trace: what was seen.
        fold: whether repeated blocks are folded once there are more than a few.

    Returns:
        Blocks of the spine, or all sites in execution order where the spine says little.
    """
    if trace.blocks and not trace.dense:
        why = ""
        steps = [_first(trace.sites[trace.spine[0]])]
        steps += [_of_block(trace, block) for block in trace.blocks]
    else:
        why = (
            "most lie inside one block, so the spine says little"
            if trace.dense
            else "there is no spine to walk"
        )
        steps = [_first(site) for site in trace.sites.values()]
    rows = _folded(steps) if fold and len(steps) > SHORT else [_row([step]) for step in steps]
    if fold and len(rows) > ROWS:
        rows = _without_middle(rows)
    return Ladder(tuple(rows), not why, why)


def _first(site: Site) -> _Step:
    delta = site.delta.geometric_mean if site.delta is not None else None
    return _Step(
        name=site.name,
        op=site.op,
        like=(site.op, site.shape[1:]),
        sites=(site.name,),
        activation=site.activation.rms if site.activation.finite else math.nan,
        delta=delta if site.delta is None or site.delta.finite else math.nan,
        decay=None,
        parts={},
        residual=False,
        gone=False,
    )


def _of_block(trace: Trace, block: Block) -> _Step:
    end = trace.sites[block.end]
    seen = _first(end)
    return _Step(
        name=block.end,
        op=seen.op,
        like=(
            end.op,
            end.shape[1:],
            block.residual,
            len(block.inner),
            *(step.node for step in block.steps),
        ),
        sites=(*block.inner, block.end),
        activation=seen.activation,
        delta=seen.delta,
        decay=block.decay,
        parts=block.parts,
        residual=block.residual,
        gone=end.delta is not None and end.delta.finite and end.delta.alive == 0,
    )


# ---- folding ---------------------------------------------------------------------------------


def _folded(steps: Sequence[_Step]) -> list[Row]:
    rows: list[Row] = []
    for units in stretches(steps):
        if len(units) <= REPEATS:
            rows += [_row(unit) for unit in units]
            continue
        rows.append(_row(units[0]))
        middle = units[1:-1]
        for part in _segments(middle):
            rows.append(_row(*part))
        rows.append(_row(units[-1]))
    return rows


def _segments(units: list[Sequence[_Step]]) -> list[list[Sequence[_Step]]]:
    """One row where the signal hardly changes, more where its course should be seen."""
    gone = sum(unit[-1].gone for unit in units)  # they lie at the input end
    parts = [units[:gone], units[gone:]]
    return [row for part in parts if part for row in _even(part)]


def _even(units: list[Sequence[_Step]]) -> list[list[Sequence[_Step]]]:
    decades = max(
        _decades(unit[-1].activation for unit in units),
        _decades(unit[-1].delta for unit in units),
    )
    count = max(1, min(SEGMENTS, math.ceil(decades), len(units) // 2))
    cuts = [round(i * len(units) / count) for i in range(count + 1)]
    return [units[a:b] for a, b in itertools.pairwise(cuts)]


def _decades(values: Iterable[float | None]) -> float:
    logs = [math.log10(v) for v in values if v is not None and 0 < v < math.inf]
    return max(logs) - min(logs) if logs else 0.0


def _without_middle(rows: list[Row]) -> list[Row]:
    keep = ROWS // 2
    hidden = rows[keep:-keep]
    return [*rows[:keep], _merged(hidden), *rows[-keep:]]


def _merged(rows: list[Row]) -> Row:
    deltas = [row.deltas for row in rows if row.deltas is not None]
    decays = [row.decay for row in rows if row.decay is not None]
    return Row(
        label=reach(rows[0].label, rows[-1].label),
        op="various",
        sites=tuple(name for row in rows for name in row.sites),
        count=sum(row.count for row in rows),
        activation=rows[-1].activation,
        delta=rows[-1].delta,
        activations=_span([v for row in rows for v in row.activations]),
        deltas=_span([v for delta in deltas for v in delta]) if deltas else None,
        decay=sum(decays) if decays else None,
        each=_each(decays),
        parts=_sum_of_parts([row.parts for row in rows]),
        residual=all(row.residual for row in rows),
        gone=rows[-1].gone,
    )


def _row(*units: Sequence[_Step]) -> Row:
    steps = [step for unit in units for step in unit]
    ends = [unit[-1] for unit in units]
    decays = [step.decay for step in steps if step.decay is not None]
    deltas = [step.delta for step in ends if step.delta is not None]
    by_unit = [_decay_of(unit) for unit in units]
    folded = len(units) > 1
    first, last = _name_of(units[0]), _name_of(units[-1])
    return Row(
        label=reach(first, last) if folded else first,
        op=", ".join(dict.fromkeys(step.op for step in units[0])),
        sites=tuple(name for step in steps for name in step.sites),
        count=len(units),
        activation=ends[-1].activation,
        delta=ends[-1].delta,
        activations=_span([step.activation for step in ends]),
        deltas=_span(deltas) if deltas else None,
        decay=sum(decays) if decays else None,
        each=_each([d for d in by_unit if d is not None]) if folded else None,
        parts=_sum_of_parts([step.parts for step in steps]),
        residual=all(step.residual for step in steps),
        gone=ends[-1].gone,
    )


def _each(decays: Sequence[float]) -> tuple[float, float, float] | None:
    if not decays:
        return None
    return sum(decays) / len(decays), min(decays), max(decays)


def _decay_of(unit: Sequence[_Step]) -> float | None:
    decays = [step.decay for step in unit if step.decay is not None]
    return sum(decays) if decays else None


def _sum_of_parts(parts: Iterable[Mapping[Kind, float]]) -> dict[Kind, float]:
    total: dict[Kind, float] = {}
    for part in parts:
        for kind, value in part.items():
            total[kind] = total.get(kind, 0.0) + value
    return total


def _span(values: Sequence[float]) -> tuple[float, float]:
    if not values or any(math.isnan(v) for v in values):
        return math.nan, math.nan
    return min(values), max(values)


def _size(value: float) -> float:
    return math.inf if math.isnan(value) else abs(value)


# ---- names -----------------------------------------------------------------------------------


def _name_of(unit: Sequence[_Step]) -> str:
    """The module that a unit is, where its sites have one in common; else its first and last."""
    names = [words.clean(step.name) for step in unit]
    if len(names) == 1:
        return names[0]
    common = shared(names)
    return ".".join(common) if common else reach(names[0], names[-1])
