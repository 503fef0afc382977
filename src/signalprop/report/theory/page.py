"""The phase diagram as a page: a heat map of the trainable depth with the edge of chaos."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from signalprop.report import words
from signalprop.report.chart import COLOURS, ERROR
from signalprop.report.spectra.ends import plain_layout
from signalprop.report.theory import said
from signalprop.report.theory.result import PhaseView

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: deepest that the colours tell apart, log10
DEEPEST = 3.5
#: seen on the heat map, on light and on dark
PINK = "#f06ec2"


def heading(shown: PhaseView) -> str:
    """What is shown, in a few words."""
    return f"Phase diagram of {words.clean(shown.diagram.activation)}"


def blocks(shown: PhaseView) -> list[go.Figure | str]:
    """The page in reading order."""
    point = shown.point
    told = f"<p>{escape(said.point_sentence(point, shown.depth))}</p>" if point else ""
    head = (
        '<section class="verdict seen" aria-label="Verdict"><span class="word seen">theory</span>'
        f"<p>{escape(said.headline(shown))}</p>{told}</section>"
    )
    result: list[go.Figure | str] = [head]
    if point is not None:
        rows = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td class="n"><b>{escape(value)}</b></td>'
            f"<td class='wrap soft'>{escape(meaning)}</td></tr>"
            for name, value, meaning in said.facts(point, shown.depth)
        )
        result.append(f'<div class="table numbers"><table><tbody>{rows}</tbody></table></div>')
    result += [
        "<h2>Trainable depth</h2>",
        "<p class='soft'>Pre-activations of a network of infinite width at initialisation: weights "
        "of variance sigma_w^2 / n, biases of variance sigma_b^2. Left of the edge inputs become "
        "alike and gradients vanish, right of it inputs part and gradients explode; the depth over "
        "which a network forgets what it was given is longest at the edge. That networks train up "
        "to 6 xi_c is an observation (Schoenholz et al. 2017), not a theorem.</p>",
        diagram(shown),
    ]
    return result


def diagram(shown: PhaseView) -> go.Figure:
    """Heat map of 6 xi_c over (sigma_w^2, sigma_b^2), the edge, the depth, the point."""
    import plotly.graph_objects as go

    d = shown.diagram
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.clip(np.log10(d.trainable_depth), 0.0, DEEPEST)
    z = [[None if np.isnan(v) else float(v) for v in row] for row in level]
    x, y = d.weight_variances.tolist(), d.bias_variances.tolist()
    figure = go.Figure(
        go.Heatmap(
            x=x,
            y=y,
            z=z,
            zmin=0,
            zmax=DEEPEST,
            colorscale="Viridis",
            text=_hover(shown),
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=True,
            colorbar={
                "title": {"text": "6 xi_c, layers", "side": "right"},
                "tickvals": [0, 1, 2, 3],
                "ticktext": ["1", "10", "100", "1000"],
                "thickness": 14,
            },
        )
    )
    if shown.depth is not None:
        _contour(figure, x, y, z, shown.depth)
    across, weights = shown.edge
    if len(weights):
        figure.add_trace(
            go.Scatter(
                x=weights.tolist(),
                y=across.tolist(),
                name="edge of chaos, chi_1 = 1",
                mode="lines" if len(weights) > 1 else "markers",
                line={"color": ERROR, "width": 3},
                marker={"color": ERROR, "size": 12, "symbol": "diamond"},
                hovertemplate="edge: sigma_w^2 = %{x:.4f} at sigma_b^2 = %{y:.3f}<extra></extra>",
            )
        )
    if shown.point is not None:
        figure.add_trace(
            go.Scatter(
                x=[shown.point.weight_variance],
                y=[shown.point.bias_variance],
                name="the point asked for",
                mode="markers",
                marker={
                    "symbol": "circle",
                    "size": 13,
                    "color": "#ffffff",
                    "line": {"color": "#111111", "width": 3},
                },
                hovertemplate=f"{shown.point.phase}<extra></extra>",
            )
        )
    _names(figure, shown)
    figure.update_xaxes(title_text="sigma_w^2", zeroline=False, range=[0, x[-1]])
    low = 0.03 * y[-1]
    figure.update_yaxes(title_text="sigma_b^2", zeroline=False, range=[-low, y[-1]])
    figure.update_layout(**plain_layout(560))
    figure.update_layout(meta={"id": "phase", "about": said.headline(shown)})
    return figure


def _contour(figure: go.Figure, x: list[float], y: list[float], z: Any, depth: int) -> None:
    import plotly.graph_objects as go

    at = float(np.log10(depth))
    figure.add_trace(
        go.Contour(
            x=x,
            y=y,
            z=z,
            contours={"start": at, "end": at, "size": 1, "coloring": "none"},
            line={"color": PINK, "width": 2, "dash": "dash"},
            name=f"6 xi_c = {depth}",
            showlegend=True,
            showscale=False,
            hoverinfo="skip",
        )
    )


def _hover(shown: PhaseView) -> list[list[str]]:
    d = shown.diagram
    return [
        [
            f"<b>{d.phase[i, j]}</b><br>sigma_w^2 = {w:.3g}, sigma_b^2 = {b:.3g}"
            f"<br>q* = {words.number(float(d.q_star[i, j]))}, chi_1 = {d.chi_1[i, j]:.4g}"
            f"<br>c* = {said.layers(float(d.c_star[i, j]))}, "
            f"6 xi_c = {said.layers(float(d.trainable_depth[i, j]))}"
            for j, w in enumerate(d.weight_variances)
        ]
        for i, b in enumerate(d.bias_variances)
    ]


def _names(figure: go.Figure, shown: PhaseView) -> None:
    """The name of every phase that covers some of the diagram, in its middle."""
    d = shown.diagram
    for kind in np.unique(d.phase):
        rows, columns = np.nonzero(d.phase == kind)
        if kind == "critical" or len(rows) < 0.03 * d.phase.size:
            continue
        row = int(np.median(rows))
        across = columns[rows == row]
        dark = kind in ("ordered", "chaotic")  # on the heat map; else on the bare page
        figure.add_annotation(
            x=float(d.weight_variances[int(np.median(across))]),
            y=float(d.bias_variances[row]),
            text=f"<b>{kind}</b>",
            showarrow=False,
            bgcolor="rgba(0, 0, 0, 0.35)" if dark else None,
            font={"size": 16} | ({"color": "#ffffff"} if dark else {"color": COLOURS["other"]}),
        )
