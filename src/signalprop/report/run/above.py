"""What stands above a heat map: a mark for every alert, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from signalprop.report import words
from signalprop.report.chart import MARKED, safe
from signalprop.report.run import colours, said
from signalprop.report.run.axes import Panel
from signalprop.report.run.curves import Curves
from signalprop.report.run.overview import Told
from signalprop.watching.statistics import spans_decades

if TYPE_CHECKING:
    import plotly.graph_objects as go


def strip(
    figure: go.Figure, layout: dict[str, Any], panel: Panel, alerts: Sequence[Told], number: int
) -> None:
    """A mark for every alert, where it set in.

    Args:
        figure: it is added to.
        layout: gets the axis.
        panel: where.
        alerts: of the run.
        number: of the run in the figure.
    """
    import plotly.graph_objects as go

    figure.add_trace(
        go.Scatter(
            # without any point Plotly would leave the panel out, and its axis in the air
            x=[a.since for a in alerts] or [None],
            y=[0] * len(alerts) or [None],
            xaxis=panel.x,
            yaxis=panel.y,
            mode="markers",
            name="alerts",
            cliponaxis=False,
            marker={
                "size": 13,
                "color": [colours.SEVERITY[a.severity] for a in alerts],
                "symbol": [colours.SYMBOL[a.severity] for a in alerts],
                "line": {"width": 1, "color": "#ffffff"},
            },
            customdata=[[number, i] for i in range(len(alerts))],
            text=[hover(a) for a in alerts],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    layout[panel.yaxis] = {
        "domain": [panel.bottom, panel.top],
        "anchor": panel.x,
        "range": [-1, 1],
        "fixedrange": True,
        "zeroline": False,
        "showgrid": False,
        "tickvals": [0],
        "ticktext": ["alerts"],
        "automargin": True,
    }


def hover(alert: Told) -> str:
    """What is said of an alert where the mouse is over its mark."""
    lines = [f"<b>{safe(alert.code)} {safe(alert.title)}</b>", safe(said.when(alert))]
    lines += [safe(words.listed([words.shorten(s, 28) for s in alert.sites], 2))]
    return "<br>".join(line for line in lines if line)


def loss(
    figure: go.Figure,
    layout: dict[str, Any],
    panel: Panel,
    curves: Sequence[Curves],
    number: int,
) -> None:
    """The loss of a run.

    Args:
        figure: it is added to.
        layout: gets the axis.
        panel: where.
        curves: the scalars of all runs, which share a scale.
        number: of the run.
    """
    import plotly.graph_objects as go

    name = curves[number].loss
    at, values = curves[number].scalars[name] if name else (np.zeros(0), np.zeros(0))
    every = [one.scalars[one.loss][1] for one in curves if one.loss]
    whole = np.concatenate(every)
    log = spans_decades(whole)
    shown = np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)
    figure.add_trace(
        go.Scatter(
            x=at if len(at) else [None],
            y=shown if len(at) else [None],
            xaxis=panel.x,
            yaxis=panel.y,
            name="loss",
            mode="lines+markers" if len(at) <= MARKED else "lines",
            line={"color": colours.RUNS[number % len(colours.RUNS)], "width": 1.6},
            marker={"size": 4},
            hovertemplate=f"{safe(name or 'loss')} %{{y:.4g}} at step %{{x:,d}}<extra></extra>",
        )
    )
    lost = at[~np.isfinite(values)][:1]
    if len(lost):
        top = float(np.nanmax(shown)) if np.isfinite(shown).any() else 1.0
        figure.add_trace(
            go.Scatter(
                x=lost,
                y=[top],
                xaxis=panel.x,
                yaxis=panel.y,
                mode="markers",
                name="not finite",
                marker={"symbol": "x", "size": 10, "color": colours.SEVERITY["issue"]},
                hovertemplate="the loss is not finite from step %{x:,d} on<extra></extra>",
            )
        )
    layout[panel.yaxis] = {
        "domain": [panel.bottom, panel.top],
        "anchor": panel.x,
        "zeroline": False,
        "automargin": True,
        "nticks": 4,
        "title": {"text": safe(name or "loss"), "standoff": 8},
        "fixedrange": True,
    } | ({"type": "log", "dtick": 1, "exponentformat": "power"} if log else {"tickformat": "~g"})
    if len(curves) > 1:
        layout[panel.yaxis]["range"] = _range(whole, log=log)


def _range(values: NDArray[np.float64], *, log: bool) -> list[float]:
    """One scale for all runs."""
    seen = values[np.isfinite(values)]
    if not len(seen):
        return [0.0, 1.0]
    low, high = float(seen.min()), float(seen.max())
    if log:
        low, high = float(np.log10(low)), float(np.log10(high))
    more = 0.06 * (high - low) or 0.5
    return [low - more, high + more]
