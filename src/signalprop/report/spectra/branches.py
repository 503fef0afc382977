"""The figure of residual blocks as I + X, with the bounds that hold and the one that does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from signalprop.jacobian.bounds import Band, ky_fan_band, printed_band, weyl_band
from signalprop.jacobian.spectra import BlockSpectrum, Spectrum
from signalprop.report import words
from signalprop.report.chart import COLOURS, DELTA, ERROR, MARKED, safe
from signalprop.report.spectra.ends import places, plain_layout, points, thinned
from signalprop.report.spectra.said import middle, middles

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: blocks in the menu, and points of a curve
CHOICES, POINTS = 40, 160
#: by how much a value may lie outside of a bound in float32
SLACK = 1e-5


def branches(blocks: Sequence[BlockSpectrum]) -> go.Figure | None:
    """s_i(I + X) of one residual block, chosen by a menu, between its Ky Fan bounds.

    Args:
        blocks: blocks of the spine.

    Returns:
        One panel; None where no block is residual. `layout.meta` names the choices, and every
        trace's `meta` says which one it belongs to.
    """
    import plotly.graph_objects as go

    mine = [b for b in blocks if b.residual and b.branch is not None]
    if not mine:
        return None
    strongest = max(range(len(mine)), key=lambda i: _strength(mine[i]))
    at = sorted({*thinned(len(mine), CHOICES - 1).tolist(), strongest})
    figure = go.Figure()
    for choice, i in enumerate(at):
        for trace in _traces(mine[i]):
            trace.update(visible=i == strongest, meta={"choice": choice})
            figure.add_trace(trace)
    figure.add_hline(y=1, line={"color": COLOURS["other"], "width": 1, "dash": "dash"})
    count = max(b.spectrum.values.shape[1] for b in mine)
    figure.update_xaxes(title_text="i, largest first", **places(count))
    figure.update_yaxes(title_text="s_i(I + X)", rangemode="tozero", automargin=True)
    figure.update_layout(**plain_layout(450))
    names = [_named(mine[i]) for i in at]
    about = f"Singular values of {words.plural(len(mine), 'residual block')} I + X between 1 - "
    about += "s_(n-i+1)(X) and 1 + s_i(X); one block at a time."
    caption = (
        "The band 1 - s_(n-i+1)(X) <= s_i(I + X) <= 1 + s_i(X) holds for every X. The lower bound "
        "1 - s_i(X), dashed, is found in print; where a value lies below it, it does not hold."
    )
    if len(at) < len(mine):
        caption += f" {len(at)} of {len(mine)} blocks are in the menu, the strongest among them."
    figure.update_layout(
        meta={
            "id": "branches",
            "about": about,
            "caption": caption,
            "choices": names,
            "chosen": at.index(strongest),
            "choose": "Residual block",
        }
    )
    return figure


def violations(block: BlockSpectrum) -> tuple[int, int]:
    """How often s_i(I + X) lies below the printed bound 1 - s_i(X), and of how many."""
    s, x = block.spectrum, block.branch
    if x is None:
        return 0, 0
    k = min(s.values.shape[1], x.values.shape[1])
    below = s.values[:, :k] < printed_band(x.values[:, :k]).low - SLACK
    return int(below.sum()), below.size


def band(s: Spectrum, x: Spectrum) -> Band:
    """Ky Fan's for the known i; Weyl's where not all of X is known. Below 0 it is 0."""
    k = min(s.values.shape[1], x.values.shape[1])
    found = (ky_fan_band if x.whole else weyl_band)(x.values)
    return Band(np.maximum(found.low[:, :k], 0.0), found.high[:, :k])


def _named(block: BlockSpectrum) -> str:
    name = words.shorten(words.clean(block.end), 48)
    return f"{name}  (s_1(X) = {words.number(_strength(block))})"


def _strength(block: BlockSpectrum) -> float:
    return (middle(block.branch.largest) if block.branch else None) or 0.0


def _traces(block: BlockSpectrum) -> list[go.Scatter]:
    import plotly.graph_objects as go

    s, x = block.spectrum, block.branch
    assert x is not None
    k = min(s.values.shape[1], x.values.shape[1])
    at = thinned(k, POINTS)
    where = [int(i) + 1 for i in at]
    # a median over the samples keeps an inequality that holds in each of them
    values = middles(s.values)[at]
    bounds = band(s, x)
    high, low = middles(bounds.high)[at], middles(bounds.low)[at]
    printed = np.maximum(middles(printed_band(x.values).low)[at], 0.0)
    failed, of = violations(block)
    told = f"fails for {failed:,} of {of:,}" if failed else "not broken here"
    bound = "1 - s_(n-i+1)(X) to 1 + s_i(X)" if x.whole else "1 - s_1(X) to 1 + s_i(X)"
    name = safe(block.end)
    below = [v if v < p - SLACK else np.nan for v, p in zip(values, printed, strict=True)]
    mode = "lines+markers" if len(at) <= MARKED else "lines"
    said = [
        f"<b>{name}</b><br>s<sub>{i}</sub>(I + X) = {words.number(float(v))}"
        f"<br>bounds {words.number(float(a))} to {words.number(float(b))}"
        f"<br>1 - s<sub>{i}</sub>(X) = {words.number(float(p))}"
        for i, v, a, b, p in zip(where, values, low, high, printed, strict=True)
    ]
    hover = {"customdata": said, "hovertemplate": "%{customdata}<extra></extra>"}
    return [
        go.Scatter(
            x=[*where, *where[::-1]],
            y=points(np.concatenate([high, low[::-1]])),
            name=bound,
            mode="lines",
            fill="toself",
            line={"width": 1, "color": COLOURS["weights"]},
            fillcolor="rgba(47, 127, 209, 0.18)",
            hoverinfo="skip",
        ),
        go.Scatter(
            x=where,
            y=points(printed),
            name=f"1 - s_i(X), as printed: {told}",
            mode="lines",
            line={"color": COLOURS["slope"], "width": 2, "dash": "dash"},
            hoverinfo="skip",
        ),
        go.Scatter(
            x=where,
            y=points(values),
            name="s_i(I + X)",
            mode=mode,
            line={"color": DELTA, "width": 2},
            marker={"size": 6, "color": DELTA},
            **hover,
        ),
        go.Scatter(
            x=where,
            y=points(np.array(below)),
            name="below the printed bound",
            mode="markers",
            showlegend=bool(np.isfinite(below).any()),
            marker={"size": 10, "symbol": "x-thin-open", "color": ERROR, "line": {"width": 2}},
            **hover,
        ),
    ]
