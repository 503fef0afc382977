"""The whole run in one figure: alerts, the loss, and layer x step below them, on one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from signalprop.report import words
from signalprop.report.chart import safe
from signalprop.report.run import above, colours, said
from signalprop.report.run.axes import Panel, labels, stack, steps, total
from signalprop.report.run.curves import Curves
from signalprop.report.run.even import grid
from signalprop.report.run.heat import INFINITE, ZERO, Heat, limits
from signalprop.report.run.overview import Told
from signalprop.watching.statistics import statistic

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: pixels between the panels of a run, and between runs one below the other
GAP, BETWEEN = 14, 74
#: pixels at the top and at the bottom
TOP, BOTTOM = 26, 44
#: sites of an alert that are marked
MARKS = 12
SPECIAL = "Grey: zero or less, on a log scale. Red: not finite. Blank: not measured."


@dataclass(frozen=True, eq=False)
class Part:
    """What is drawn of a run.

    Attributes:
        heats: the heat map; of several, of the same sites and steps, a menu shows one at a time.
        curves: its scalars.
        alerts: its alerts.
    """

    heats: Sequence[Heat]
    curves: Curves
    alerts: Sequence[Told] = ()

    @property
    def heat(self) -> Heat:
        """The one that is shown first."""
        return self.heats[0]


@dataclass(frozen=True)
class Look:
    """How a timeline is drawn.

    Attributes:
        across: runs side by side.
        label: characters of a site's name.
        span: the steps that are in view; None for all.
        limits: the heights between which the colours of the first heat map lie; None for those
            of what is drawn.
        chosen: names of sites that are marked.
        of: what is shown of steps that are joined.
    """

    across: int = 1
    label: int = 28
    span: tuple[float, float] | None = None
    limits: tuple[float, float] | None = None
    chosen: tuple[str, ...] = ()
    of: str = "mean"


def timeline(parts: Sequence[Part], look: Look | None = None) -> go.Figure:
    """Alerts, loss and heat map of one or several runs, with one colour scale.

    Args:
        parts: one each, of the same statistics; at least one.
        look: how it is drawn.

    Returns:
        A group of panels for each run; all zoom together. Every alert's mark has
        `[run, alert]` as its custom data.
    """
    import plotly.graph_objects as go

    look = look or Look()
    across = max(1, min(look.across, len(parts)))
    down = -(-len(parts) // across)
    lossy = any(part.curves.loss for part in parts)
    warned = any(part.alerts for part in parts)
    rows = max(len(part.heat.sites) for part in parts)
    heights = [26.0] * warned + [130.0] * lossy + [float(min(520, max(200, 15 * rows)))]
    # names of sites stand once where all runs have the same ones
    alike = len({part.heat.sites for part in parts}) == 1
    apart = 0.03 if alike else min(0.2, 0.007 * look.label)
    groups = stack(heights, across, down, gap=GAP, between=BETWEEN, apart=apart)
    span = look.span or _span(parts)
    figure = go.Figure()
    layout: dict[str, Any] = {}
    for number, (part, panels) in enumerate(zip(parts, groups, strict=False)):
        left = list(panels)
        if warned:
            above.strip(figure, layout, left.pop(0), part.alerts, number)
        if lossy:
            above.loss(figure, layout, left.pop(0), [p.curves for p in parts], number)
        _heat(figure, layout, left.pop(0), part, look)
        _marks(figure, panels[-1], part, number, look)
        layout[panels[-1].xaxis] = steps(panels, span, first=number == 0)
        if alike and number % across:
            for panel in panels:
                layout[panel.yaxis] |= {"showticklabels": False, "title": None}
        layout.setdefault("shapes", []).extend(_lines(part, panels))
    whole = total(heights, down, gap=GAP, between=BETWEEN)
    for k, first in enumerate(parts[0].heats):
        here = [part.heats[k] for part in parts]
        low, high = (look.limits if k == 0 else None) or limits(here)
        bar = colours.bar(first, low, high)
        # beside the first heat map only: it holds for all
        bar["colorbar"] |= {
            "len": heights[-1] / whole,
            "y": groups[0][-1].bottom,
            "yanchor": "bottom",
            "title": {"text": safe(_what(first)), "side": "right"},
        }
        layout[_coloraxis(k)] = bar
    figure.update_layout(
        template="none",
        height=round(whole) + TOP + BOTTOM,
        margin={"l": 20, "r": 10, "t": TOP, "b": BOTTOM},
        font={"size": 12},
        hovermode="closest",
        hoverlabel={"align": "left"},
        dragmode="zoom",
        showlegend=False,
        annotations=_titles(parts, groups),
        meta=_meta(parts, look.of),
        **layout,
    )
    return figure


def caption(heat: Heat, of: str = "mean", *, cells: bool = True) -> str:
    """What a column is, and what the special colours are where there are any.

    Args:
        heat: the heat map.
        of: what is shown of steps that are joined.
        cells: whether to speak of colours.

    Returns:
        Some short sentences.
    """
    most = int(heat.samples.max()) if len(heat.samples) else 1
    kind = {
        "mean": "geometric mean" if heat.geometric else "mean",
        "low": "lowest",
        "high": "highest",
    }
    text = "Every column is one sampled step."
    if most > 1:
        text = f"A column joins up to {most:,} sampled steps ({kind.get(of, of)})."
    if cells and (heat.special == ZERO).any():
        text += " Grey: zero, or less."
    if cells and (heat.special == INFINITE).any():
        text += " Red: not finite."
    return text


def _span(parts: Sequence[Part]) -> tuple[float, float] | None:
    ends = [edge for part in parts if len(part.heat.edges) for edge in part.heat.edges[[0, -1]]]
    ends += [float(a.step) for part in parts for a in part.alerts]
    return (float(min(ends)), float(max(ends))) if ends else None


def _heat(figure: go.Figure, layout: dict[str, Any], panel: Panel, part: Part, look: Look) -> None:
    import plotly.graph_objects as go

    names = labels(part.heat.sites, look.label)
    cells = grid(part.heat.edges)
    for k, heat in enumerate(part.heats):
        common: dict[str, Any] = {
            "y": names,
            "xaxis": panel.x,
            "yaxis": panel.y,
            "visible": k == 0,
        }
        if len(part.heats) > 1:
            common["meta"] = {"choice": k}
        drawn, value, special = heat.height, heat.value, heat.special
        if cells is None:
            common["x"] = heat.edges
        else:
            common["x0"], common["dx"], column = cells
            drawn, value, special = drawn[:, column], value[:, column], special[:, column]
        what = safe(said.label(heat.statistic))
        figure.add_trace(
            go.Heatmap(
                z=drawn,
                customdata=value,
                coloraxis=_coloraxis(k),
                name="heat",
                hovertemplate=f"<b>%{{y}}</b><br>{what} %{{customdata:.3~g}}<br>step %{{x:,.0f}}"
                "<extra></extra>",
                **common,
            )
        )
        if np.isfinite(special).any():
            figure.add_trace(
                go.Heatmap(
                    z=special,
                    zmin=0,
                    zmax=1,
                    colorscale=[list(pair) for pair in colours.SPECIAL],
                    showscale=False,
                    hoverinfo="skip",
                    name="special",
                    **common,
                )
            )
    layout[panel.yaxis] = {
        "domain": [panel.bottom, panel.top],
        "anchor": panel.x,
        "type": "category",
        "categoryorder": "array",
        "categoryarray": names,
        "autorange": "reversed",
        "automargin": True,
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }


def _coloraxis(number: int) -> str:
    return f"coloraxis{number + 1}" if number else "coloraxis"


def _what(heat: Heat) -> str:
    """What the colours say."""
    if heat.scale == "change":
        return f"{said.label(heat.statistic)}, change since the start"
    unit = statistic(heat.statistic).unit
    return said.label(heat.statistic) + (
        f", {unit}" if unit and not unit.startswith("share") else ""
    )


def _marks(figure: go.Figure, panel: Panel, part: Part, number: int, look: Look) -> None:
    """Where alerts are about: from the step where they set in to the one where they were told."""
    import plotly.graph_objects as go

    sites = part.heat.sites
    at = dict(zip(sites, labels(sites, look.label), strict=True))
    found = [(a, i, s) for i, a in enumerate(part.alerts) for s in a.sites[:MARKS] if s in at]
    if found:
        figure.add_trace(
            go.Scatter(
                x=[a.since for a, _, _ in found],
                y=[at[s] for _, _, s in found],
                xaxis=panel.x,
                yaxis=panel.y,
                mode="markers",
                name="places",
                marker={
                    "size": 10,
                    "color": [colours.SEVERITY[a.severity] for a, _, _ in found],
                    "symbol": [colours.SYMBOL[a.severity] for a, _, _ in found],
                    "line": {"width": 1.5, "color": "#ffffff"},
                },
                customdata=[[number, i] for _, i, _ in found],
                text=[above.hover(a) for a, _, _ in found],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    picked = [name for name in look.chosen if name in at]
    if picked:
        end = look.span[0] if look.span else part.heat.edges[0] if len(part.heat.edges) else 0
        figure.add_trace(
            go.Scatter(
                x=[float(end)] * len(picked),
                y=[at[name] for name in picked],
                xaxis=panel.x,
                yaxis=panel.y,
                mode="markers",
                name="chosen",
                cliponaxis=False,
                marker={
                    "size": 11,
                    "symbol": "square",
                    "color": [colours.SITES[i % len(colours.SITES)] for i in range(len(picked))],
                    "line": {"width": 1, "color": "#ffffff"},
                },
                hoverinfo="skip",
            )
        )


def _lines(part: Part, panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """A thin line through all panels where an issue set in."""
    return [
        {
            "type": "line",
            "x0": step,
            "x1": step,
            "y0": panels[-1].bottom,
            "y1": panels[0].top,
            "xref": panels[-1].x,
            "yref": "paper",
            "line": {"color": colours.SEVERITY["issue"], "width": 1, "dash": "dot"},
            "opacity": 0.7,
        }
        for step in sorted({a.since for a in part.alerts if a.severity == "issue"})[:MARKS]
    ]


def _titles(parts: Sequence[Part], groups: Sequence[Sequence[Panel]]) -> list[dict[str, Any]]:
    if len(parts) < 2:
        return []
    return [
        {
            "text": f"<b>{safe(part.heat.name)}</b>",
            "x": panels[0].left,
            "y": panels[0].top,
            "xref": "paper",
            "yref": "paper",
            "xanchor": "left",
            "yanchor": "bottom",
            "yshift": 4,
            "showarrow": False,
            "font": {"size": 13},
        }
        for part, panels in zip(parts, groups, strict=False)
    ]


def _meta(parts: Sequence[Part], of: str) -> dict[str, Any]:
    first = parts[0].heat
    about = f"{said.label(first.statistic)} of {words.plural(len(first.sites), 'site')} over "
    about += f"{words.plural(len(first.first), 'column')} of steps, below the loss"
    alerts = sum(len(part.alerts) for part in parts)
    about += f", with {words.plural(alerts, 'alert')}." if alerts else "."
    meta: dict[str, Any] = {"id": "timeline", "about": about, "caption": caption(first, of)}
    if len(parts[0].heats) > 1:
        meta["choices"] = [said.label(heat.statistic) for heat in parts[0].heats]
        # which cells are special differs between what the menu offers
        meta["caption"] = f"{caption(first, of, cells=False)} {SPECIAL}"
    return meta
