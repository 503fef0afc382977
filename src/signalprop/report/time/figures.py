"""The time axis as figures: error signals step by step, and the gates of every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from signalprop.report import words
from signalprop.report.chart import COLOURS, DELTA, ERROR, LOG, MARKED, finish, finite, safe
from signalprop.report.spectra.ends import plain_layout, thinned
from signalprop.report.time import said
from signalprop.report.time.places import P, Placed
from signalprop.report.time.rows import Line

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: up to so many lines are told apart; of more some are drawn
LINES = 10
#: points of a line
POINTS = 2000
#: one for each layer, from the input up
PALETTE = (
    DELTA,
    COLOURS["weights"],
    COLOURS["slope"],
    COLOURS["normalisation"],
    COLOURS["attention"],
    COLOURS["skip"],
    ERROR,
    COLOURS["pooling"],
    COLOURS["other"],
)


def deltas(found: Sequence[Line]) -> go.Figure:
    """Rms of dL/dh_t, and of dL/dc_t where there are LSTMs, over the steps.

    Args:
        found: every layer and direction; at least one.

    Returns:
        One panel or two, one line for every layer and direction, dashed where it runs backwards.
    """
    from plotly.subplots import make_subplots

    shown = chosen(found)
    two = any(line.axis.c for line in shown)
    figure = make_subplots(rows=1 + two, cols=1, shared_xaxes=True, vertical_spacing=0.07)
    colours = paints(shown)
    for line, colour in zip(shown, colours, strict=True):
        _course(figure, line, line.axis.h, colour, 1)
        if line.axis.c:
            _course(figure, line, line.axis.c, colour, 2)
    _marks(figure, shown, two)
    for panel, what in enumerate(("dL/dh", "dL/dc")[: 1 + two], start=1):
        seen = [v for x in shown for v in (x.axis.c if panel == 2 else x.axis.h)]
        figure.update_yaxes(**logarithmic(seen, 2, f"rms of {what}"), row=panel, col=1)
    figure.update_xaxes(zeroline=False, tickformat=",d")
    figure.update_xaxes(
        title_text="step t, counted the way a layer runs", title_standoff=12, row=1 + two, col=1
    )
    figure.update_layout(**plain_layout(620 if two else 420))
    meta = {"id": "time", "about": f"Error signals of {_many(found)} over the steps. "}
    meta["about"] += said.headline(found)
    if len(shown) < len(found):
        meta["caption"] = (
            f"{len(shown)} of {len(found)} layers and directions, among them those in which dL/dh "
            "changes most."
        )
    figure.update_layout(meta=meta)
    legend(figure, [line.place.label for line in shown])
    return figure


def gates(found: Sequence[Line]) -> go.Figure | None:
    """Means of the gates, how often they are saturated, and how long they hold.

    Args:
        found: every layer and direction.

    Returns:
        Bars and marks over the layers; None where no gate was seen.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    mine = [line for line in found if line.axis.gates]
    if not mine:
        return None
    every = [gate for line in mine for gate in line.axis.gates]
    panels = ["mean"]
    if any(gate.saturated >= said.SATURATED for gate in every):
        panels.append("ends")
    spans = [gate.remembers for gate in every if gate.remembers is not None]
    if spans:
        panels.append("held")
    row = {name: i for i, name in enumerate(panels, start=1)}
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    names = list(dict.fromkeys(gate.name for gate in every))
    labels = [line.place.label for line in mine]
    for name, colour in zip(names, PALETTE[1:], strict=False):
        here = [next((g for g in line.axis.gates if g.name == name), None) for line in mine]
        means = [None if g is None else finite(g.mean) for g in here]
        ends = [None if g is None else finite(g.saturated) for g in here]
        held = [None if g is None else g.remembers for g in here]
        text = [
            "" if g is None else f"<b>{safe(label)}</b><br>{said.gate(g)}"
            for label, g in zip(labels, here, strict=True)
        ]
        common: dict[str, Any] = {
            "x": list(range(len(mine))),
            "name": f"{name} gate",
            "legendgroup": name,
            "offsetgroup": name,
            "customdata": text,
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {"color": colour, "line": {"width": 0}},
        }
        figure.add_trace(go.Bar(y=means, **common), row=1, col=1)
        if "ends" in row:
            bars = go.Bar(y=ends, showlegend=False, **common)
            figure.add_trace(bars, row=row["ends"], col=1)
        if any(span is not None for span in held):
            marks = common | {"marker": {"size": 8, "color": colour}}
            marks.pop("offsetgroup")
            figure.add_trace(
                go.Scatter(
                    y=[s if s is not None and 0 < s < math.inf else None for s in held],
                    mode="markers",
                    showlegend=False,
                    **marks,
                ),
                row=row["held"],
                col=1,
            )
    finish(figure, "gates", labels, "layers", 190 * len(panels) + 70, _gates_said(mine))
    figure.update_yaxes(range=[0, 1], title={"text": "mean", "standoff": 14}, row=1, col=1)
    if "ends" in row:
        title = {"text": "saturated", "standoff": 14}
        figure.update_yaxes(range=[0, 1], tickformat=".0%", title=title, row=row["ends"], col=1)
    if "held" in row:
        figure.update_yaxes(**logarithmic(spans, 1, "holds, steps"), row=row["held"], col=1)
    figure.update_layout(barmode="group", bargap=0.3)
    return figure


def logarithmic(values: Sequence[float], least: float, title: str) -> dict[str, Any]:
    """A log axis with all there is and a margin, of at least so many decades.

    Args:
        values: what is drawn; zeros and what is not finite have marks beyond the ends.
        least: decades; a flat course must not look like a cliff.
        title: what stands beside it.

    Returns:
        For `update_yaxes`.
    """
    logs = [math.log10(v) for v in values if 0 < v < math.inf] or [0.0]
    low, high = min(logs), max(logs)
    more = max(0.0, least - (high - low)) / 2
    margin = 0.08 * (high - low + 2 * more)
    low -= more + margin + 0.6 * any(v == 0 for v in values)
    high += more + margin + 0.6 * any(not math.isfinite(v) for v in values)
    named = {"text": title, "standoff": 14}
    return LOG | ticks(low, high) | {"range": [low, high], "automargin": True, "title": named}


def ticks(low: float, high: float) -> dict[str, Any]:
    """1, 2 and 5 of every decade where there are few; all of them in full.

    Args:
        low: lower end of a log axis, as a power of ten.
        high: its upper end.

    Returns:
        For `update_yaxes`; nothing where powers of ten are enough.
    """
    if high - low > 3:
        return {}
    powers = range(math.floor(low), math.ceil(high) + 1)
    at = [k * 10.0**p for p in powers for k in (1, 2, 5) if low <= p + math.log10(k) <= high]
    return {"tickvals": at, "ticktext": [words.number(t) for t in at]}


def chosen(found: Sequence[Line]) -> list[Line]:
    """The lines that are drawn: all of a few, else some, the strangest among them."""
    return some(found, [said.change(line.axis) for line in found])


def some(found: Sequence[P], sizes: Sequence[float]) -> list[P]:
    """All of a few; else some: the first and the last, and those of extreme sizes.

    Args:
        found: in their order.
        sizes: one each; nan says nothing.

    Returns:
        At most `LINES` of them, in the same order.
    """
    if len(found) <= LINES:
        return list(found)
    known = sorted((size, i) for i, size in enumerate(sizes) if not math.isnan(size))
    at = {0, len(found) - 1, *(known[k][1] for k in (0, -1) if known)}
    for i in thinned(len(found), LINES).tolist():
        if len(at) < LINES:
            at.add(i)
    return [found[i] for i in sorted(at)]


def paints(found: Sequence[Placed]) -> list[str]:
    """A colour for each; both directions of a layer have the same."""
    layers: dict[tuple[str, str], int] = {}
    for one in found:
        layers.setdefault((one.place.site, one.place.layer), len(layers))
    return [PALETTE[layers[one.place.site, one.place.layer] % len(PALETTE)] for one in found]


def legend(figure: go.Figure, names: Sequence[str]) -> None:
    """Names that do not fit beside each other stand below each other, right of the figure."""
    if len(names) < 2:
        figure.update_layout(showlegend=False)
    elif sum(len(name) + 6 for name in names) > 110:
        side = {"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"}
        figure.update_layout(legend=side)


def _course(
    figure: go.Figure, line: Line, values: Sequence[float], colour: str, panel: int
) -> None:
    import plotly.graph_objects as go

    steps = line.axis.steps
    at = thinned(len(steps), POINTS).tolist()
    name = safe(line.place.label)
    what = "dL/dc" if panel == 2 else "dL/dh"
    figure.add_trace(
        go.Scatter(
            x=[steps[i] for i in at],
            y=[v if 0 < (v := values[i]) < math.inf else None for i in at],
            name=name,
            legendgroup=name,
            showlegend=panel == 1,
            mode="lines+markers" if len(at) <= MARKED else "lines",
            line={"color": colour, "width": 2, "dash": "dash" if line.axis.reverse else "solid"},
            marker={"size": 5, "color": colour},
            customdata=[words.number(values[i]) for i in at],
            hovertemplate=f"<b>{name}</b> {safe(line.axis.op)}<br>{what} %{{customdata}} "
            "at step %{x}<extra></extra>",
        ),
        row=panel,
        col=1,
    )


def _marks(figure: go.Figure, found: Sequence[Line], two: bool) -> None:
    """What a log axis cannot show: exactly zero at the bottom, not finite at the top."""
    import plotly.graph_objects as go

    told: set[str] = set()
    for panel in (1, 2) if two else (1,):
        courses = [line.axis.c if panel == 2 else line.axis.h for line in found]
        seen = [v for course in courses for v in course if 0 < v < math.inf]
        low, high = min(seen, default=1e-3), max(seen, default=1.0)
        for name, symbol, colour, y, holds in (
            ("exactly zero", "triangle-down-open", COLOURS["other"], low / 3, lambda v: v == 0),
            ("not finite", "x", ERROR, high * 3, lambda v: not math.isfinite(v)),
        ):
            pairs = [
                (line.axis.steps[i], line.place.label)
                for line, course in zip(found, courses, strict=True)
                for i in thinned(len(course), MARKED).tolist()
                if course and holds(course[i])
            ]
            if not pairs:
                continue
            figure.add_trace(
                go.Scatter(
                    x=[t for t, _ in pairs],
                    y=[y] * len(pairs),
                    name=name,
                    showlegend=name not in told,
                    legendgroup=name,
                    mode="markers",
                    marker={"symbol": symbol, "size": 8, "color": colour},
                    customdata=[safe(label) for _, label in pairs],
                    hovertemplate=f"<b>%{{customdata}}</b><br>{name} at step %{{x}}<extra></extra>",
                ),
                row=panel,
                col=1,
            )
            told.add(name)


def _many(found: Sequence[Line]) -> str:
    return found[0].place.label if len(found) == 1 else f"{len(found)} layers and directions"


def _gates_said(found: Sequence[Line]) -> str:
    text = f"Gates of {_many(found)}."
    first = found[0]
    return f"{text} {first.place.label}: {said.gates(first.axis.gates).removeprefix('gates: ')}."
