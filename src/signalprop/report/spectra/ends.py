"""The figure of the end-to-end spectrum: every singular value in decades, and what is sure of it.

The axis is linear in decades: a deep product has values that no float can hold.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from signalprop.jacobian.spectra import DeepSpectrum, Spectra, Spectrum
from signalprop.report import words
from signalprop.report.chart import COLOURS, DELTA, ERROR, MARKED
from signalprop.report.spectra.said import LN10, middle, middles, power, sides

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: points of a curve
POINTS = 600
#: decades that no network reaches
DEEP = 1e6
#: decades below which powers of ten are too few ticks
NARROW = 2.5


def ends(spectra: Spectra) -> go.Figure:
    """The singular values from one end to the other, sorted.

    Args:
        spectra: what was measured.

    Returns:
        One panel: the values with their errors, the log-spectrum by sweeps, the rounding.
    """
    import plotly.graph_objects as go

    s = spectra.between
    figure = go.Figure()
    resolution = middle(s.resolution)
    _rounding(figure, resolution)
    if spectra.samples > 1 and s.values.shape[1] > 1:
        _band(figure, s)
    _values(figure, s)
    _smallest(figure, s)
    _distribution(figure, s)
    if spectra.deep is not None and spectra.deep.log_values.shape[1]:
        _swept(figure, spectra.deep)
    figure.add_hline(y=0, line={"color": COLOURS["other"], "width": 1.5, "dash": "dash"})
    ahead = s.distribution is not None or s.smallest.shape[1] > 0
    count = sides(s) if ahead else s.values.shape[1]
    figure.update_xaxes(title_text=f"i, largest first, of {sides(s):,}", **places(count))
    low, high = _range(spectra)
    figure.update_yaxes(
        title={"text": "singular value", "standoff": 12},
        range=[low, high],
        automargin=True,
        zeroline=False,
        **_ticks(low, high),
    )
    figure.update_layout(**plain_layout(470))
    figure.update_layout(
        meta={
            "id": "ends",
            "about": f"Singular values of J from {words.clean(s.wrt)} to {words.clean(s.of)}, "
            "largest first, in decades.",
        }
    )
    return figure


def plain_layout(height: int) -> dict[str, Any]:
    """The layout of a figure whose axis holds no names."""
    return {
        "template": "none",
        "height": height,
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "font": {"size": 12},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        "margin": {"l": 70, "r": 20, "t": 50, "b": 60},
    }


def places(count: int) -> dict[str, Any]:
    """An axis of whole numbers from 1 to so many."""
    return {"zeroline": False, "tickformat": "d"} | ({"dtick": 1} if count <= 12 else {})


def thinned(count: int, points: int = POINTS) -> np.ndarray:
    """Places of so many values that are drawn, first and last among them."""
    return np.unique(np.round(np.linspace(0, count - 1, min(count, points))).astype(int))


def decades(values: np.ndarray) -> np.ndarray:
    """log10, nan where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(values)
    return np.where(np.isfinite(logs), logs, np.nan)


def points(values: np.ndarray) -> list[float | None]:
    """Values as a figure holds them."""
    return [float(v) if math.isfinite(v) else None for v in values]


def _rounding(figure: go.Figure, resolution: float | None) -> None:
    if not resolution or not math.isfinite(resolution):
        return
    y = math.log10(resolution)
    figure.add_hrect(
        y0=y - DEEP, y1=y, fillcolor=COLOURS["other"], opacity=0.14, line_width=0, layer="below"
    )
    figure.add_hline(
        y=y,
        line={"color": ERROR, "width": 1.5, "dash": "dot"},
        annotation={
            "text": f"below {words.number(resolution)}: lost in rounding",
            "xanchor": "left",
            "yanchor": "top",
            "x": 0.01,
        },
    )


def _values(figure: go.Figure, s: Spectrum) -> None:
    import plotly.graph_objects as go

    at = thinned(s.values.shape[1])
    values, errors = middles(s.values)[at], np.median(s.errors, axis=0)[at]
    sure = values > (middle(s.resolution) or 0.0)
    text = [
        f"s<sub>{i + 1}</sub> = {words.number(float(v))}, error {words.number(float(e))}"
        + ("" if known else "<br>lost in rounding: noise")
        for i, v, e, known in zip(at, values, errors, sure, strict=True)
    ]
    for mine, name, colour, symbol in (
        (sure, "measured, median of the samples", DELTA, "circle"),
        (~sure, "rounding noise", COLOURS["other"], "circle-open"),
    ):
        if not mine.any():
            continue
        y = decades(values[mine])
        figure.add_trace(
            go.Scatter(
                x=[int(i) + 1 for i in at[mine]],
                y=points(y),
                error_y=_bars(values[mine], errors[mine]) if symbol == "circle" else None,
                name=name,
                mode="lines+markers" if symbol == "circle" and len(at) <= MARKED else "markers",
                line={"color": colour, "width": 1.5},
                marker={"size": 7 if len(at) <= MARKED else 4, "symbol": symbol, "color": colour},
                customdata=[t for t, m in zip(text, mine, strict=True) if m],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )


def _bars(values: np.ndarray, errors: np.ndarray) -> dict[str, Any] | None:
    """Error bars in decades; none where they would not be seen."""
    errors = np.where(np.isfinite(errors), errors, 0.0)
    if not (errors > 0.01 * values).any():
        return None
    up = decades(values + errors) - decades(values)
    # a bar down to zero has no end on a log axis
    down = decades(values) - decades(np.maximum(values - errors, 1e-3 * values))
    return {
        "type": "data",
        "symmetric": False,
        "array": [float(v) for v in up],
        "arrayminus": [float(v) for v in down],
        "thickness": 1.2,
        "width": 3,
    }


def _band(figure: go.Figure, s: Spectrum) -> None:
    """From the smallest to the largest over the samples, above the rounding."""
    import plotly.graph_objects as go

    floor = middle(s.resolution) or 0.0
    at = thinned(s.values.shape[1])
    low, high = s.values.min(axis=0)[at], s.values.max(axis=0)[at]
    at = at[high > floor]
    if len(at) < 2:
        return
    high = decades(high[: len(at)])
    low = decades(np.maximum(low[: len(at)], floor))
    low = np.where(np.isnan(low), high, low)
    figure.add_trace(
        go.Scatter(
            x=[int(i) + 1 for i in (*at, *at[::-1])],
            y=points(np.concatenate([high, low[::-1]])),
            name="over the samples",
            mode="lines",
            fill="toself",
            line={"width": 0, "color": DELTA},
            fillcolor="rgba(139, 92, 246, 0.22)",
            hoverinfo="skip",
        )
    )


def _smallest(figure: go.Figure, s: Spectrum) -> None:
    import plotly.graph_objects as go

    count = s.smallest.shape[1]
    if not count or s.whole:
        return
    values = middles(s.smallest)
    figure.add_trace(
        go.Scatter(
            x=[sides(s) - i for i in range(count)],
            y=points(decades(values)),
            name="smallest",
            mode="markers",
            marker={"size": 7, "symbol": "square", "color": COLOURS["weights"]},
            customdata=[words.number(float(v)) for v in values],
            hovertemplate="s = %{customdata}<extra></extra>",
        )
    )


def _distribution(figure: go.Figure, s: Spectrum) -> None:
    """Estimated quantiles at the ranks where they lie."""
    import plotly.graph_objects as go

    found = s.distribution
    if found is None:
        return
    ranks = s.columns * (1 - found.shares) + 0.5
    values = middles(found.quantiles)
    mine = (ranks <= sides(s)) & (values > 0)
    figure.add_trace(
        go.Scatter(
            x=[float(r) for r in ranks[mine]],
            y=points(decades(values[mine])),
            name="distribution, estimated",
            mode="lines+markers",
            line={"color": COLOURS["normalisation"], "width": 1.5, "dash": "dot"},
            marker={"size": 6, "symbol": "square-open", "color": COLOURS["normalisation"]},
            customdata=[
                f"{words.share(float(share))} lie below {words.number(float(v))}"
                for share, v in zip(found.shares[mine], values[mine], strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )


def _swept(figure: go.Figure, deep: DeepSpectrum) -> None:
    import plotly.graph_objects as go

    at = thinned(deep.log_values.shape[1])
    logs = middles(deep.log_values)[at]
    errors = np.median(deep.errors, axis=0)[at]
    sweeps = words.plural(deep.sweeps, "sweep")
    figure.add_trace(
        go.Scatter(
            x=[int(i) + 1 for i in at],
            y=points(np.where(np.isfinite(logs), logs / LN10, np.nan)),
            name=f"log-spectrum of {words.plural(len(deep.sites) - 1, 'block')}, {sweeps}",
            mode="lines+markers" if len(at) <= MARKED else "lines",
            line={"color": COLOURS["slope"], "width": 1.5},
            marker={"size": 9, "symbol": "diamond-open", "color": COLOURS["slope"]},
            customdata=[
                f"s<sub>{i + 1}</sub> = {power(float(v))}, ln s = {words.nats(float(v))}"
                f"<br>error {words.number(float(e))} nats"
                for i, v, e in zip(at, logs, errors, strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    zero = int(np.median(np.isneginf(deep.log_values).sum(axis=1)))
    if zero:
        figure.add_annotation(
            text=f"{zero:,} exactly zero",
            x=1,
            xref="paper",
            xanchor="right",
            y=0,
            yref="paper",
            yanchor="bottom",
            showarrow=False,
        )


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Powers of ten, and 1, 2, 5 where there are too few of them."""
    if high - low > NARROW:
        whole = {"dtick": 1} if high - low < 10 else {}
        return {"tickprefix": "10<sup>", "ticksuffix": "</sup>", **whole}
    values = [k * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for k in (1, 2, 5)]
    if high - low < 0.5:
        values += [k / 10 for k in (6, 7, 8, 9, 11, 12, 13, 14, 15)]
    return {"tickvals": [math.log10(v) for v in values], "ticktext": [f"{v:g}" for v in values]}


def _range(spectra: Spectra) -> tuple[float, float]:
    """All that is drawn, and at least a decade around 1."""
    s = spectra.between
    seen = [decades(s.values).ravel(), decades(s.smallest).ravel(), np.array([0.0])]
    if s.distribution is not None:
        seen.append(decades(s.distribution.quantiles).ravel())
    if spectra.deep is not None:
        logs = spectra.deep.log_values
        seen.append(np.where(np.isfinite(logs), logs, np.nan).ravel() / LN10)
    if resolution := middle(s.resolution):
        low = min(np.nanmin(part) for part in seen if np.isfinite(part).any())
        if low < math.log10(resolution) + 3:  # the rounding matters here
            seen.append(np.array([math.log10(resolution) - 1]))
    known = np.concatenate(seen)
    known = known[np.isfinite(known)]
    low, high = float(known.min()), float(known.max())
    margin = max(0.1, 0.06 * (high - low))
    return low - margin, high + margin
