"""The figure of the step Jacobians' singular values, of one layer at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from signalprop.report import words
from signalprop.report.chart import COLOURS, DELTA, safe
from signalprop.report.spectra.ends import plain_layout, points
from signalprop.report.time.figures import logarithmic, some
from signalprop.report.time.horizon.curves import Curve

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from signalprop.recurrent.horizon.result import Gains

#: values below this share of the largest are drawn as if they were that large
DEEP = 1e-8
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def spectra(found: Sequence[Curve]) -> go.Figure | None:
    """All singular values of J_t over the steps, as bands.

    Args:
        found: every layer and direction.

    Returns:
        One panel with a menu of layers; None where the values were not asked for. `layout.meta`
        names the choices, and every trace's `meta` says which one it belongs to.
    """
    import plotly.graph_objects as go

    known = [c for c in found if c.gains is not None and c.gains.values is not None]
    if not known:
        return None
    shown = some(known, [curve.horizon.rate for curve in known])
    figure = go.Figure()
    seen: list[float] = [1.0]
    for choice, curve in enumerate(shown):
        assert curve.gains is not None
        bands = quantiles(curve.gains)
        seen += [float(v) for v in bands[np.isfinite(bands)]]
        for trace in _traces(curve.gains, bands):
            trace.update(visible=choice == 0, meta={"choice": choice})
            figure.add_trace(trace)
    figure.add_hline(y=1, line={"color": COLOURS["other"], "width": 1.5, "dash": "dash"})
    figure.update_xaxes(
        title_text="step t, counted the way a layer runs", zeroline=False, tickformat=",d"
    )
    figure.update_yaxes(**logarithmic(seen, 1, "singular value"))
    figure.update_layout(**plain_layout(430))
    about = f"Singular values of the step Jacobians of {words.plural(len(known), 'layer')}"
    figure.update_layout(
        meta={
            "id": "steps",
            "about": f"{about} over the steps, as bands of 5 to 95 and 25 to 75 percent.",
            "choices": [safe(curve.place.label) for curve in shown],
            "chosen": 0,
            "choose": "Layer",
        }
    )
    return figure


def quantiles(gains: Gains) -> np.ndarray:
    """Quantiles of a layer's singular values at every step, and the largest one.

    Args:
        gains: with their values.

    Returns:
        (steps, 6), floored at `DEEP` of the largest of all.
    """
    values = gains.values
    assert values is not None
    flat = values.reshape(len(values), -1)
    flat = np.where(np.isfinite(flat), flat, np.nan)
    top = float(np.nanmax(flat)) if np.isfinite(flat).any() else 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step of which nothing is finite
        made = [*np.nanquantile(flat, QUANTILES, axis=1), np.nanmax(flat, axis=1)]
    return np.maximum(np.stack(made, axis=1), DEEP * top)


def _traces(gains: Gains, bands: np.ndarray) -> list[go.Scatter]:
    import plotly.graph_objects as go

    steps = list(gains.steps)
    low, quarter, median, upper, high, largest = bands.T
    made = []
    for name, bottom, top, opacity in (
        ("5 to 95%", low, high, 0.18),
        ("25 to 75%", quarter, upper, 0.34),
    ):
        made.append(
            go.Scatter(
                x=[*steps, *steps[::-1]],
                y=points(np.concatenate([top, bottom[::-1]])),
                name=name,
                mode="lines",
                fill="toself",
                line={"width": 0, "color": DELTA},
                fillcolor=f"rgba(139, 92, 246, {opacity})",
                hoverinfo="skip",
            )
        )
    for name, values, colour in (
        ("median", median, COLOURS["slope"]),
        ("largest", largest, COLOURS["weights"]),
    ):
        made.append(
            go.Scatter(
                x=steps,
                y=points(values),
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": 5, "color": colour},
                customdata=[words.number(float(v)) for v in values],
                hovertemplate=f"{name} %{{customdata}} at step %{{x}}<extra></extra>",
            )
        )
    return made
