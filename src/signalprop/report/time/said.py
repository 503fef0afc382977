"""What the time axis says, in words that every view shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from signalprop.capture.time import Gate, TimeAxis
from signalprop.report import words
from signalprop.report.time.places import middle
from signalprop.report.time.rows import Line, Row, rate

#: nats over a whole sequence below which an error signal keeps its size
KEPT = math.log(2)
#: share of a gate's values at its ends from which on it is named
SATURATED = 0.01


def headline(found: Sequence[Line]) -> str:
    """What becomes of the error signal over time, in one or two sentences.

    Args:
        found: every layer and direction.

    Returns:
        Sentences; empty where there is no time axis.
    """
    if not found:
        return ""
    seen = [line for line in found if any(line.axis.h)]
    if not seen:
        return "No error signal reaches any step: dL/dh is zero or unknown throughout."
    lost = min(seen, key=lambda line: _order(change(line.axis), math.inf))
    grown = max(seen, key=lambda line: _order(change(line.axis), -math.inf))
    told = [lost] if change(lost.axis) < -KEPT else []
    told += [grown] if change(grown.axis) > KEPT else []
    if told:
        return " ".join(_course(line, len(found) > 1) for line in told)
    which = "every layer" if len(found) > 1 else lost.place.label
    return f"dL/dh keeps its size in {which}{_spread(seen)}."


def change(axis: TimeAxis) -> float:
    """ln(dL/dh at the first step / dL/dh at the last), nats; negative is lost on the way back."""
    first, last = axis.h[0], axis.h[-1]
    if math.isnan(first) or math.isnan(last) or first == last == 0:
        return math.nan
    return _ln(first) - _ln(last) if math.isfinite(_ln(first) + _ln(last)) else _ends(first, last)


def nats(value: float) -> str:
    """Nats per step: what is little in a step is much over many, so it keeps a digit more."""
    if not math.isfinite(value) or abs(value) >= 0.0995:
        return words.nats(value, sign=True)
    text = f"{value:+.3f}"
    return "0.000" if text[1:] == "0.000" else text


def gates(found: Sequence[Gate]) -> str:
    """The gates of a row: means, how long the one that holds does, and which are saturated."""
    if not found:
        return ""
    parts = [
        f"{gate.name} {gate.mean:.2f}"
        + ("" if gate.remembers is None else f" (holds {held_for(gate.remembers)})")
        for gate in found
    ]
    at_ends = [f"{g.name} {words.share(g.saturated)}" for g in found if g.saturated >= SATURATED]
    ends = f"saturated {', '.join(at_ends)}" if at_ends else "none saturated"
    return f"gates: {', '.join(parts)}; {ends}"


def gate(found: Gate) -> str:
    """All of one gate, for a hover label."""
    text = f"{found.name} gate: mean {words.number(found.mean)}, "
    text += f"{words.share(found.saturated)} saturated"
    return text + ("" if found.remembers is None else f", holds {held_for(found.remembers)}")


def cell(row: Row) -> str:
    """dL/dc of a row of LSTMs, as its first and last step; else empty."""
    known = [line.axis for line in row.lines if line.axis.c]
    if not known:
        return ""
    first, last = (middle([axis.c[i] for axis in known]) for i in (0, -1))
    speed = rate(replace(known[0], h=known[0].c))
    told = f", {nats(speed)} nats per step" if speed is not None and len(known) == 1 else ""
    return f"dL/dc {words.number(first)} and {words.number(last)}{told}"


def held_for(steps: float) -> str:
    """A time constant: `1.4 steps`."""
    if not math.isfinite(steps):
        return "for ever" if steps > 0 else words.number(steps)
    text = f"{steps:.1f}" if steps < 10 else f"{steps:,.0f}"
    return f"{text} step{'' if text == '1.0' else 's'}"


def _course(line: Line, several: bool) -> str:
    axis = line.axis
    where = f"dL/dh of {line.place.label}" + f" ({axis.op})" * several
    if any(math.isnan(v) for v in axis.h):
        return f"{where} is not a number at some steps."
    first, last = axis.steps[0], axis.steps[-1]
    if axis.h[-1] == 0:
        return f"{where} is zero at step {last}, and {words.number(axis.h[0])} at step {first}."
    begin = f"{words.number(axis.h[-1])} at step {last}"
    if axis.h[0] == 0:
        gone = max(t for t, v in zip(axis.steps, axis.h, strict=True) if v == 0)
        end = f"falls on its way back from {begin} to exactly zero at step {gone} and before"
    else:
        way = "grows" if axis.h[0] > axis.h[-1] else "falls"
        end = f"{way} on its way back from {begin} to {words.number(axis.h[0])} at step {first}"
    return f"{where} {end}{_speed(axis)}."


def _speed(axis: TimeAxis) -> str:
    """The rate, where it says how the change came about."""
    value = rate(axis)
    if value is None or abs(value) * (axis.steps[-1] - axis.steps[0]) < KEPT:
        return ""
    return f", {nats(value)} nats per step"


def _spread(found: Sequence[Line]) -> str:
    rates = [r for line in found if (r := rate(line.axis)) is not None]
    if not rates:
        return ""
    low, high = nats(min(rates)), nats(max(rates))
    return f", {low} nats per step" if low == high else f", {low} to {high} nats per step"


def _order(value: float, unknown: float) -> float:
    return unknown if math.isnan(value) else value


def _ends(first: float, last: float) -> float:
    """With a zero or an infinity at one of the ends."""
    return math.inf if first > last else -math.inf if first < last else math.nan


def _ln(value: float) -> float:
    return math.log(value) if 0 < value < math.inf else math.inf if value > 0 else -math.inf
