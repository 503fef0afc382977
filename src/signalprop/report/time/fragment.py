"""What a notebook shows of the time axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from signalprop.capture.time import Horizon, TimeAxis
from signalprop.report import words
from signalprop.report.chart import DELTA
from signalprop.report.time import said
from signalprop.report.time.console import scale
from signalprop.report.time.horizon import said as credit
from signalprop.report.time.horizon.curves import bare
from signalprop.report.time.rows import Row, lines, rows

_WIDTH, _HEIGHT = 160, 22


def through(axes: Sequence[TimeAxis], horizons: Sequence[Horizon], lag: int | None) -> str:
    """The part of a trace's piece of HTML that tells about time.

    Args:
        axes: the time axis of every layer, direction and call.
        horizons: how far credit reaches, where it was measured.
        lag: over how many steps the task needs memory, where it is known.

    Returns:
        Sentences and a table; empty where there is no time axis.
    """
    found = lines(axes)
    reach = credit.sentence(bare(horizons), lag)
    told = f"<p>{_e(reach)}</p>" if reach else ""
    if not found:
        return told
    shown = rows(found)
    low, high = scale([v for row in shown for v in row.course(_WIDTH)])
    heads = ["layer", "cell", "steps", "dL/dh first", "last", "nats per step", "course", "gates"]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(_row(row, low, high) for row in shown)
    return (
        f"<p><b>Through time:</b> {_e(said.headline(found))}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f'<p class="sp-soft">dL/dh over the steps on a log scale, {words.number(low)} to '
        f"{words.number(high)}.</p>{told}"
    )


def curve(values: Sequence[float], low: float, high: float) -> str:
    """A small line on a log scale; where a value is zero or not finite there is none.

    Args:
        values: what to draw, evenly spaced.
        low: bottom of the scale.
        high: its top.

    Returns:
        An `svg`.
    """
    span = math.log(high / low) if high > low > 0 else 1.0
    parts, down = list[str](), False
    for i, value in enumerate(values):
        if not 0 < value < math.inf:
            down = False
            continue
        share = min(1.0, max(0.0, math.log(value / low) / span))
        x = 2 + i * (_WIDTH - 4) / max(1, len(values) - 1)
        parts.append(f"{'L' if down else 'M'}{x:.1f} {2 + (1 - share) * (_HEIGHT - 4):.1f}")
        down = True
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" aria-hidden="true"><path d="{" ".join(parts)}" '
        f'fill="none" stroke="{DELTA}" stroke-width="1.5"></path></svg>'
    )


def _row(row: Row, low: float, high: float) -> str:
    label = _e(words.shorten(row.label, 44))
    if len(row.lines) > 1:
        label += f' <span class="sp-soft">×{len(row.lines)}</span>'
    speed = said.nats(row.speed) if row.speed is not None else ""
    gates = ", ".join(f"{gate.name} {gate.mean:.2f}" for gate in row.gates)
    cells = (
        f"<td>{label}</td><td>{_e(row.op)}</td>"
        f'<td class="sp-n">{row.steps}</td><td class="sp-n">{words.number(row.first)}</td>'
        f'<td class="sp-n">{words.number(row.last)}</td><td class="sp-n">{speed}</td>'
        f"<td>{curve(row.course(_WIDTH // 2), low, high)}</td><td>{_e(gates)}</td>"
    )
    return f"<tr>{cells}</tr>"


def _e(text: str) -> str:
    return escape(words.clean(text))
