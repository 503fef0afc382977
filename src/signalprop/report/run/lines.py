"""Curves over steps: a user's numbers of several runs, and a statistic of chosen sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from signalprop.report import words
from signalprop.report.chart import MARKED, safe
from signalprop.report.run import colours, said
from signalprop.report.run.axes import stack, steps, total
from signalprop.report.run.curves import Curves, ordered
from signalprop.watching.file.result import Values
from signalprop.watching.statistics import is_log, spans_decades

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: names of scalars that get a panel of their own
PANELS = 12
GAP, TOP, BOTTOM = 34, 30, 44


def scalars(runs: Sequence[Curves], span: tuple[float, float] | None = None) -> go.Figure | None:
    """All scalars, one panel each, the runs over each other.

    Args:
        runs: their scalars.
        span: the steps in view; None for all.

    Returns:
        The figure; None where nothing was recorded.
    """
    import plotly.graph_objects as go

    names = ordered(list(dict.fromkeys(name for run in runs for name in run.scalars)))[:PANELS]
    if not names:
        return None
    heights = [118.0] * len(names)
    [panels] = stack(heights, 1, 1, gap=GAP, between=0, apart=0)
    figure = go.Figure()
    layout: dict[str, Any] = {}
    for name, panel in zip(names, panels, strict=True):
        here = [(k, run) for k, run in enumerate(runs) if name in run.scalars]
        log = spans_decades(np.concatenate([run.scalars[name][1] for _, run in here]))
        for k, run in here:
            at, values = run.scalars[name]
            good = np.isfinite(values) & ((values > 0) | (not log))
            figure.add_trace(
                go.Scatter(
                    x=at,
                    y=np.where(good, values, np.nan),
                    xaxis="x",
                    yaxis=panel.y,
                    name=safe(run.name),
                    legendgroup=str(k),
                    showlegend=len(runs) > 1 and name == names[0],
                    mode="lines+markers" if len(at) <= MARKED else "lines",
                    marker={"size": 4},
                    line={"color": colours.RUNS[k % len(colours.RUNS)], "width": 1.6,
                          "dash": colours.DASHES[k % 4]},
                    hovertemplate=f"{safe(name)} %{{y:.4g}} at step %{{x:,d}}<extra>"
                    f"{safe(run.name) if len(runs) > 1 else ''}</extra>",
                )
            )  # fmt: skip
        layout[panel.yaxis] = {
            "domain": [panel.bottom, panel.top],
            "anchor": "x",
            "zeroline": False,
            "automargin": True,
            "nticks": 4,
            "fixedrange": True,
        } | (
            {"type": "log", "dtick": 1, "exponentformat": "power"} if log else {"tickformat": "~g"}
        )
        layout.setdefault("annotations", []).append(_title(safe(name), panel.top))
    layout["xaxis"] = steps(panels, span, first=True)
    whole = total(heights, 1, gap=GAP, between=0)
    about = "Over the steps: " + ", ".join(words.clean(name) for name in names) + "."
    _finish(figure, layout, round(whole) + TOP + BOTTOM, "scalars", about)
    return figure


def sites(
    runs: Sequence[tuple[str, Values]], span: tuple[float, float] | None = None
) -> go.Figure | None:
    """A statistic of some sites, one line each; several runs differ by their dashes.

    Args:
        runs: name of every run, and what was read of it, of one statistic.
        span: the steps in view; None for all.

    Returns:
        The figure; None where there is no value. Where steps are joined, a pale band holds the
        lowest and the highest of few lines.
    """
    import plotly.graph_objects as go

    found = [(k, name, values) for k, (name, values) in enumerate(runs) if len(values.first)]
    if not found:
        return None
    figure = go.Figure()
    what = found[0][2].statistic
    log = found[0][2].log or is_log(what, found[0][2].mean)
    names = list(dict.fromkeys(site for _, _, values in found for site in values.sites))
    few = len(names) * len(found) <= 4
    for k, name, values in found:
        at = (values.first + values.last) / 2
        for j, site in enumerate(values.sites):
            colour = colours.SITES[names.index(site) % len(colours.SITES)]
            line = values.mean[:, j]
            if few and values.samples.max() > 1:
                _band(figure, at, values.low[:, j], values.high[:, j], colour, log=log)
            text = safe(words.shorten(words.clean(site), 40))
            text += f", {safe(name)}" if len(runs) > 1 else ""
            figure.add_trace(
                go.Scatter(
                    x=at,
                    y=np.where(np.isfinite(line) & ((line > 0) | (not log)), line, np.nan),
                    name=text,
                    mode="lines+markers" if len(at) <= MARKED else "lines",
                    marker={"size": 4},
                    line={"color": colour, "width": 1.8, "dash": colours.DASHES[k % 4]},
                    customdata=line,
                    hovertemplate="%{customdata:.3~g} at step %{x:,.0f}<extra>%{fullData.name}"
                    "</extra>",
                )
            )
    [panels] = stack([260], 1, 1, gap=0, between=0, apart=0)
    layout: dict[str, Any] = {
        "xaxis": steps(panels, span, first=True),
        "yaxis": {
            "zeroline": False,
            "automargin": True,
            "title": {"text": safe(said.label(what)), "standoff": 8},
        }
        | (
            {"type": "log", "exponentformat": "power", "nticks": 6} if log else {"tickformat": "~g"}
        ),
    }
    about = f"{said.label(what)} of {words.listed([words.clean(n) for n in names], 8)}."
    _finish(figure, layout, 260 + TOP + BOTTOM + 20, "sites", about)
    figure.update_layout(showlegend=True)
    return figure


def scale(*, log: bool, decades: bool = False) -> dict[str, Any]:
    """A log axis, or a plain one without prefixes such as µ.

    Args:
        log: which one.
        decades: whether only whole powers of ten are marked.

    Returns:
        For a layout.
    """
    if not log:
        return {"tickformat": "~g"}
    return {"type": "log", "exponentformat": "power"} | ({"dtick": 1} if decades else {"nticks": 6})


def _band(figure: go.Figure, at: Any, low: Any, high: Any, colour: str, *, log: bool) -> None:
    import plotly.graph_objects as go

    good = np.isfinite(low) & np.isfinite(high) & ((low > 0) | (not log))
    x = at[good]
    figure.add_trace(
        go.Scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([high[good], low[good][::-1]]),
            fill="toself",
            fillcolor=_pale(colour),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            name="range",
        )
    )


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def _title(text: str, top: float) -> dict[str, Any]:
    return {
        "text": text,
        "x": 0,
        "y": top,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "yshift": 3,
        "font": {"size": 13},
    }


def _finish(
    figure: go.Figure, layout: dict[str, Any], height: int, identity: str, about: str
) -> None:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 20, "r": 16, "t": TOP, "b": BOTTOM},
        font={"size": 12},
        hovermode="closest",
        hoverlabel={"align": "left"},
        dragmode="zoom",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        meta={"id": identity, "about": about},
        **layout,
    )
