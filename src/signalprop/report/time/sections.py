"""What a page tells about time: sentence, figures, and a table of layers and directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from signalprop.capture.time import Horizon, TimeAxis
from signalprop.report import words
from signalprop.report.tables import cell, e, number, share, table
from signalprop.report.time import figures, said
from signalprop.report.time.horizon import figures as credit_figures
from signalprop.report.time.horizon import said as credit
from signalprop.report.time.horizon.curves import bare
from signalprop.report.time.rows import Line, lines, rate

if TYPE_CHECKING:
    import plotly.graph_objects as go

HOLD = (
    "Saturated: within 1% of 0 or 1. The gate that keeps a value holds it until 1/e of it is left: "
    "-1 / ln of the gate's mean."
)


def through(
    axes: Sequence[TimeAxis], horizons: Sequence[Horizon], lag: int | None
) -> list[go.Figure | str]:
    """The part of a trace's page that tells about time.

    Args:
        axes: the time axis of every layer, direction and call.
        horizons: how far credit reaches, where it was measured.
        lag: over how many steps the task needs memory, where it is known.

    Returns:
        Blocks for `html.page`; none where there is no time axis.
    """
    found = lines(axes)
    result: list[go.Figure | str] = ["<h2>Through time</h2>"] if found or horizons else []
    if found:
        result += [
            f"<p>{e(said.headline(found))}</p>",
            f"<p class='soft'>{e(_how(found))}</p>",
            figures.deltas(found),
        ]
    if horizons:
        curves = bare(horizons)
        told = e(credit.sentence(curves, lag))
        result += [f"<h2>Horizon</h2><p>{told}</p>", credit_figures.credit(curves, lag)]
    gated = figures.gates(found)
    if gated is not None:
        result += [f"<h2>Gates</h2><p class='soft'>{HOLD}</p>", gated]
    if found:
        result.append(_table(found))
    return result


def _how(found: Sequence[Line]) -> str:
    text = "The size of the error signal at every step that was seen: rms over units and samples, "
    text += "of all of the loss that depends on the step. "
    calls = sum(line.calls for line in found)
    if calls > len(found):
        text += f"{calls} calls that hand their state on are shown as {len(found)}. "
    return text + "Drag to zoom, double-click to go back; hover for all numbers."


def _table(found: Sequence[Line]) -> str:
    names = list(dict.fromkeys(g.name for line in found for g in line.axis.gates))
    heads = [
        ("layer", ""), ("cell", ""), ("direction", ""), ("calls", "n"), ("steps", "n"),
        ("dL/dh first", "n"), ("dL/dh last", "n"), ("change, nats", "n"), ("nats per step", "n"),
        ("dL/dc first", "n"), ("dL/dc last", "n"),
        *((title, "n") for n in names for title in (f"{n} gate", f"{n} saturated")),
        *([("holds, steps", "n")] if names else []),
    ]  # fmt: skip
    return table("Over time", "through", heads, [_row(i, x, names) for i, x in enumerate(found)])


def _row(i: int, line: Line, names: Sequence[str]) -> tuple[str, str, list[str]]:
    axis, change, speed = line.axis, said.change(line.axis), rate(line.axis)
    gates = {gate.name: gate for gate in axis.gates}
    held = next((g.remembers for g in axis.gates if g.remembers is not None), None)
    ends = (axis.c[0], axis.c[-1]) if axis.c else (None, None)
    cells = [
        cell(line.place.label, code=True),
        cell(axis.op),
        cell("reverse" if axis.reverse else "forward"),
        number(float(line.calls), f"{line.calls:,}"),
        number(float(axis.length), f"{axis.length:,}"),
        number(axis.h[0]),
        number(axis.h[-1]),
        number(change, words.nats(change, sign=True)),
        number(speed, "" if speed is None else said.nats(speed)),
        *(number(v, "" if v is None else None) for v in ends),
    ]
    for name in names:
        gate = gates.get(name)
        cells += [number(gate.mean if gate else None), share(gate.saturated if gate else None)]
    if names:
        cells.append(number(held, "" if held is None else said.held_for(held)))
    bad = not all(math.isfinite(v) for v in (*axis.h, *axis.c))
    return f"t{i}", "bad" if bad else "", cells
