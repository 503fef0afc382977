"""The time axis as a few rows: calls that hand their state on are one line, alike lines one row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from signalprop.capture.time import Gate, TimeAxis
from signalprop.report.time.places import Place, groups, middle, module, placed

#: by how much a state may differ from what the next call was given, relatively
SAME = 1e-3


@dataclass(frozen=True)
class Line:
    """A layer in one direction over all calls that hand its state on.

    Attributes:
        place: where it is.
        axis: its calls one after the other, as one time axis.
        calls: how many they are.
    """

    place: Place
    axis: TimeAxis
    calls: int

    @property
    def name(self) -> str:
        """As `folding` wants it."""
        return self.place.label

    @property
    def like(self) -> tuple[object, ...]:
        """Equal for lines that are alike."""
        return self.axis.op, self.axis.reverse, self.axis.length, self.axis.steps, self.calls


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        label: a place, or a range of them.
        lines: what is folded into it.
        alike: whether they are of one kind.
    """

    label: str
    lines: tuple[Line, ...]
    alike: bool = True

    @property
    def rates(self) -> tuple[float, ...]:
        """`rate` of every line of which it is known."""
        return tuple(r for line in self.lines if (r := rate(line.axis)) is not None)

    @property
    def speed(self) -> float | None:
        """Their median; None where there is none."""
        return statistics.median(self.rates) if self.rates else None

    @property
    def op(self) -> str:
        """The cell of its lines."""
        return self.lines[0].axis.op if len({x.axis.op for x in self.lines}) == 1 else "various"

    @property
    def steps(self) -> str:
        """How many steps its lines have."""
        lengths = sorted({line.axis.length for line in self.lines})
        return f"{lengths[0]:,}" + (f" to {lengths[-1]:,}" if len(lengths) > 1 else "")

    @property
    def first(self) -> float:
        """dL/dh at the first step that is known, median of the lines."""
        return middle([line.axis.h[0] for line in self.lines])

    @property
    def last(self) -> float:
        """dL/dh at the last step, median of the lines."""
        return middle([line.axis.h[-1] for line in self.lines])

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The gates of all lines taken together."""
        return _together([line.axis for line in self.lines])

    def course(self, cells: int) -> list[float]:
        """dL/dh at so many steps, evenly spread from the first to the last; fewer if fewer."""
        each = [_course(line.axis, cells) for line in self.lines]
        return [middle(values) for values in zip(*each, strict=False)]


def rate(axis: TimeAxis) -> float | None:
    """Nats per step on the way back, median over the steps where it is finite; else None."""
    known = [r for r in axis.rates if math.isfinite(r)]
    return statistics.median(known) if known else None


def lines(axes: Sequence[TimeAxis]) -> list[Line]:
    """Every layer and direction, the calls that hand their state on as one.

    Args:
        axes: as they were measured, call after call.

    Returns:
        Lines in the order of their first calls.
    """
    chains: list[list[TimeAxis]] = []
    open_: dict[tuple[str, int, bool], list[TimeAxis]] = {}
    for axis in axes:
        if not axis.h:
            continue
        key = module(axis.site), axis.layer, axis.reverse
        chain = open_.get(key)
        if chain is not None and _hands_on(chain, axis):
            chain.append(axis)
            continue
        open_[key] = [axis]
        chains.append(open_[key])
    places = placed((c[0].site, c[0].layer, c[0].reverse) for c in chains)
    return [
        Line(place, _joined(chain), len(chain)) for place, chain in zip(places, chains, strict=True)
    ]


def rows(found: Sequence[Line], *, fold: bool = True) -> list[Row]:
    """The rows of a table of lines.

    Args:
        found: the lines.
        fold: whether alike lines are folded once there are more than a few.

    Returns:
        Rows in their order.
    """
    return [Row(group.label, group.members, group.alike) for group in groups(found, fold=fold)]


# ---- calls -----------------------------------------------------------------------------------


def _hands_on(chain: Sequence[TimeAxis], axis: TimeAxis) -> bool:
    """Whether a call got its state from the one before it."""
    # credit flows into it, and the first call was given no state; or into one of the same delta;
    # or all are single steps, which say nothing alone
    before = chain[-1]
    if not axis.steps or axis.steps[0] != 0 or not before.steps:
        return False
    if chain[0].steps[0] != 0 or before.length == axis.length == 1:
        return True
    pairs = [(before.h, axis.h), (before.c, axis.c)]
    return any(a and b and math.isclose(a[-1], b[0], rel_tol=SAME) for a, b in pairs)


def _joined(chain: Sequence[TimeAxis]) -> TimeAxis:
    first = chain[0]
    if len(chain) == 1:
        return first
    whole = all(len(axis.c) == len(axis.h) for axis in chain)
    steps, h, c = list[int](), list[float](), list[float]()
    start = 0
    for axis in chain:
        mine = slice(1 if steps and axis.steps[0] == 0 else 0, None)
        steps += [start + t for t in axis.steps[mine]]
        h += axis.h[mine]
        c += axis.c[mine] if whole else ()
        start += axis.length
    return replace(
        first,
        length=start,
        steps=tuple(steps),
        h=tuple(h),
        c=tuple(c),
        gates=_together(chain),
    )


def _together(axes: Sequence[TimeAxis]) -> tuple[Gate, ...]:
    """Gates of several axes as one, each counted by its steps."""
    known = [axis for axis in axes if axis.gates]
    if len(known) < 2:
        return known[0].gates if known else ()
    result = []
    weights = [float(axis.length) for axis in known]
    for gates in zip(*(axis.gates for axis in known), strict=False):
        held = [gate.remembers for gate in gates if gate.remembers is not None]
        result.append(
            Gate(
                gates[0].name,
                statistics.fmean([gate.mean for gate in gates], weights),
                statistics.fmean([gate.saturated for gate in gates], weights),
                statistics.median(held) if held else None,
            )
        )
    return tuple(result)


def _course(axis: TimeAxis, cells: int) -> list[float]:
    """Steps are not always evenly spaced, so every cell takes the nearest one that is known."""
    if len(axis.steps) <= 1 or cells <= 1:
        return list(axis.h[:1])
    count = min(cells, len(axis.steps))
    low, high = axis.steps[0], axis.steps[-1]
    wanted = [low + i * (high - low) / (count - 1) for i in range(count)]
    nearest = list(_nearest(axis.steps, wanted))
    return [axis.h[i] for i in nearest]


def _nearest(steps: Sequence[int], wanted: Sequence[float]) -> Iterator[int]:
    i = 0
    for t in wanted:
        while i + 1 < len(steps) and abs(steps[i + 1] - t) <= abs(steps[i] - t):
            i += 1
        yield i
