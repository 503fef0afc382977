"""What a notebook shows of a horizon: how far credit reaches, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from signalprop.report import words
from signalprop.report.fragment import STYLE
from signalprop.report.tables import e
from signalprop.report.time.console import scale
from signalprop.report.time.fragment import curve as line
from signalprop.report.time.horizon import said
from signalprop.report.time.horizon.curves import Curve, centre, curves, drawn
from signalprop.report.time.places import Group, groups
from signalprop.report.time.said import nats

if TYPE_CHECKING:
    from signalprop.recurrent.horizon.result import Horizons

#: points of a small curve
POINTS = 80


def fragment(found: Horizons) -> str:
    """A piece of HTML that stands in any page.

    Args:
        found: what was measured.

    Returns:
        A `div` with its own style; no script, no request.
    """
    parts = [f'<div class="sp-box"><p><b>{e(said.headline(found))}</b></p></div>']
    mine = curves(found)
    if mine:
        parts.append(_table(mine))
    parts += [f'<p class="sp-soft">Note: {e(words.clean(note))}</p>' for note in found.notes]
    return f'<div class="sp-report"><style>{STYLE}</style>{"".join(parts)}</div>'


def _table(mine: list[Curve]) -> str:
    until = drawn(mine)
    floor = min(curve.horizon.floor for curve in mine)
    low, high = scale([v for c in mine for v in c.course(POINTS, until) if v >= floor])
    heads = ["layer", "cell", "longest", "to 1/e", "to rounding", "nats per step", "credit"]
    heads += ["random gain", "at most"] if any(curve.gains for curve in mine) else []
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = ""
    for group in groups(mine):
        course = [0.0 if v < floor else v for v in group.members[0].course(POINTS, until)]
        body += _row(group, line(course, low, high), len(heads) > 7)
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f'<p class="sp-soft">Credit from lag 0 to {until:,} on a log scale, '
        f"{words.number(low)} to {words.number(high)}.</p>"
    )


def _row(group: Group[Curve], course: str, gains: bool) -> str:
    mine = [curve.horizon for curve in group.members]
    longest = max(curve.longest for curve in group.members)
    label = e(words.shorten(group.label, 44))
    if len(mine) > 1:
        label += f' <span class="sp-soft">×{len(mine)}</span>'
    speed = centre([curve.rate for curve in mine])
    numbers = [
        f"{longest:,}",
        e(said.until([curve.steps for curve in mine], longest)),
        e(said.until([curve.silent for curve in mine], longest)),
        "" if speed is None else nats(speed),
    ]
    cells = f"<td>{label}</td><td>{e(words.clean(mine[0].op))}</td>"
    cells += "".join(f'<td class="sp-n">{text}</td>' for text in numbers) + f"<td>{course}</td>"
    if gains:
        known = [curve.gains for curve in group.members if curve.gains is not None]
        for values in (
            [v for gain in known for v in gain.rms],
            [v for gain in known for v in gain.largest],
        ):
            middle = centre(values)
            text = "" if middle is None else words.number(middle)
            cells += f'<td class="sp-n">{text}</td>'
    return f"<tr>{cells}</tr>"
