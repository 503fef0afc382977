"""The figure of the depth profile: how every direction fares from the input up."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from signalprop.jacobian.spectra import DeepSpectrum
from signalprop.report import words
from signalprop.report.chart import COLOURS, DELTA, finish
from signalprop.report.spectra.ends import points
from signalprop.report.spectra.said import LN10, along

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: up to so many directions are drawn each as a line
LINES = 12


def profile(deep: DeepSpectrum) -> go.Figure | None:
    """Running sum of ln |R_ii| of every direction over the depth.

    Args:
        deep: the log-spectrum.

    Returns:
        One panel: a line for each of a few directions, else bands with the first and the last;
        None where it was not measured.
    """
    from plotly.subplots import make_subplots

    if deep.profile is None or not deep.profile.shape[2]:
        return None
    ways = _middle(deep.profile)  # (sites, directions)
    figure = make_subplots(rows=1, cols=1)
    names = list(deep.sites)
    r = ways.shape[1]
    if r > LINES:
        ordered = np.sort(np.where(np.isnan(ways), -np.inf, ways), axis=1)[:, ::-1]
        _band(figure, "5 to 95% of the directions", ordered, 0.05, 0.16)
        _band(figure, "25 to 75%", ordered, 0.25, 0.3)
        _line(figure, "median", along(ordered, 0.5, axis=1), COLOURS["slope"], "dash")
        _line(figure, "first", ways[:, 0], DELTA, "solid")
        _line(figure, "last", ways[:, -1], COLOURS["weights"], "solid")
    else:
        for i in range(r):
            ends = {0: DELTA, r - 1: COLOURS["weights"]}
            _line(figure, f"direction {i + 1}", ways[:, i], ends.get(i, COLOURS["other"]), "solid")
            if i > 1 and i < r - 1:  # one entry for all between the first and the last
                figure.data[-1].update(showlegend=False)
        if r > 2:
            figure.data[1].update(name=f"directions 2 to {r - 1}" if r > 3 else "direction 2")
    lost = np.isneginf(deep.profile).any(axis=0).sum(axis=1)
    if lost[-1]:
        first = int(np.argmax(lost > 0))
        figure.add_vline(x=first, line={"color": COLOURS["other"], "width": 1, "dash": "dot"})
        figure.add_annotation(
            text=f"from here on {int(lost[-1]):,} of {r:,} directions are exactly zero",
            x=first,
            y=0.02,
            yref="y domain",
            xanchor="left" if first < len(names) / 2 else "right",
            yanchor="bottom",
            showarrow=False,
        )
    figure.add_hline(y=0, line={"color": COLOURS["other"], "width": 1.5, "dash": "dash"})
    figure.update_yaxes(title_text="running sum of ln |R_ii|, nats")
    about = f"How {words.plural(r, 'direction')} grow and shrink over the depth, from "
    about += f"{words.clean(names[0])} to {words.clean(names[-1])}, in nats."
    finish(figure, "profile", names, "sites of the spine, input to output", 460, about)
    figure.update_layout(showlegend=r > 1)
    return figure


def _middle(sums: np.ndarray) -> np.ndarray:
    """Median over the samples, nan where a direction is zero in all of them."""
    finite = np.where(np.isfinite(sums), sums, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all of them are nan
        return np.nanmedian(finite, axis=0)


def _line(figure: go.Figure, name: str, ys: np.ndarray, colour: str, dash: str) -> None:
    import plotly.graph_objects as go

    figure.add_trace(
        go.Scatter(
            x=list(range(len(ys))),
            y=points(ys),
            name=name,
            mode="lines",
            line={"color": colour, "width": 2, "dash": dash},
            customdata=[f"{y / LN10:+.1f} decades" for y in ys],
            hovertemplate=f"{name}: %{{y:.2f}} nats, %{{customdata}}<extra></extra>",
        )
    )


def _band(figure: go.Figure, name: str, ordered: np.ndarray, share: float, opacity: float) -> None:
    import plotly.graph_objects as go

    high, low = along(ordered, 1 - share, axis=1), along(ordered, share, axis=1)
    floor = float(ordered[np.isfinite(ordered)].min()) if np.isfinite(ordered).any() else 0.0
    high, low = np.maximum(high, floor), np.maximum(low, floor)
    x = list(range(len(high)))
    figure.add_trace(
        go.Scatter(
            x=[*x, *x[::-1]],
            y=points(np.concatenate([high, low[::-1]])),
            name=name,
            mode="lines",
            fill="toself",
            line={"width": 0, "color": DELTA},
            fillcolor=f"rgba(139, 92, 246, {opacity})",
            hoverinfo="skip",
        )
    )
