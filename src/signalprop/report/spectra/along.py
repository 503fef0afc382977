"""The figure along the depth: the singular values of every block as bars from 5 to 95%."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from signalprop.jacobian.spectra import BlockSpectrum
from signalprop.report import words
from signalprop.report.chart import COLOURS, LOG, finish, positive, safe
from signalprop.report.spectra.rows import Row, centre
from signalprop.report.spectra.said import middle, sides

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: up to so many blocks have marks that are wide enough to be told apart
WIDE = 60


def along(blocks: Sequence[BlockSpectrum]) -> go.Figure:
    """Singular values per block along the depth.

    Args:
        blocks: from the input up.

    Returns:
        One panel: bars of the quantiles, marks at median and largest, s_1(X) of residual blocks.
    """
    from plotly.subplots import make_subplots

    names = [block.end for block in blocks]
    singles = [Row(block.end, (block,)) for block in blocks]
    quantiles = [row.quantiles for row in singles]
    text = [block_text(row, q) for row, q in zip(singles, quantiles, strict=True)]
    seen = [v for q in quantiles for v in q if v > 0]
    floor = min(seen, default=1.0) / 3
    figure = make_subplots(rows=1, cols=1)
    low, quarter, median, upper, high = (
        [max(v, floor) for v in values] for values in zip(*quantiles, strict=True)
    )
    _bars(figure, "5 to 95%", low, high, 0.35, text)
    _bars(figure, "25 to 75%", quarter, upper, 0.6, None)
    few = len(blocks) <= WIDE
    shown: list[tuple[str, list[float | None], dict[str, Any]]] = [
        ("median", [m if q[2] > 0 else None for m, q in zip(median, quantiles, strict=True)],
         {"symbol": "diamond", "size": 8 if few else 3, "color": COLOURS["slope"]}),
        ("largest", [positive(centre(row.largest) or 0.0) for row in singles],
         {"symbol": "triangle-up", "size": 8 if few else 4, "color": COLOURS["weights"]}),
        ("s_1(X) of the branch", [positive(centre(row.branch) or 0.0) for row in singles],
         {"symbol": "x-thin-open", "size": 8 if few else 4, "color": COLOURS["skip"],
          "line": {"width": 2}}),
        ("zero, or lost in rounding", [floor if q[0] <= 0 else None for q in quantiles],
         {"symbol": "triangle-down-open", "size": 8 if few else 4, "color": COLOURS["other"]}),
    ]  # fmt: skip
    for name, ys, marker in shown:
        _marks(figure, name, ys, marker, [f"<b>{safe(end)}</b>" for end in names])
    figure.add_hline(y=1, line={"color": COLOURS["other"], "width": 1.5, "dash": "dash"})
    figure.update_yaxes(**LOG, title={"text": "singular value", "standoff": 14})
    about = f"Singular values of {words.plural(len(blocks), 'block')} along the depth, from "
    about += f"{words.clean(blocks[0].start)} to {words.clean(blocks[-1].end)}."
    finish(figure, "blocks", names, "end of the block, input to output", 460, about)
    figure.update_layout(barmode="overlay", bargap=0.5 if len(blocks) < 10 else 0.25 * few)
    return figure


def _bars(
    figure: go.Figure,
    name: str,
    low: Sequence[float],
    high: Sequence[float],
    opacity: float,
    text: Sequence[str] | None,
) -> None:
    import plotly.graph_objects as go

    figure.add_trace(
        go.Bar(
            x=list(range(len(low))),
            base=list(low),
            # on a log axis a bar of no length would not be seen
            y=[max(b - a, 0.02 * a) for a, b in zip(low, high, strict=True)],
            name=name,
            marker={"color": f"rgba(139, 92, 246, {opacity})", "line": {"width": 0}},
            # said once for a block: by the longer bar
            **(
                {"hoverinfo": "skip"}
                if text is None
                else {"customdata": list(text), "hovertemplate": "%{customdata}<extra></extra>"}
            ),
        )
    )


def _marks(
    figure: go.Figure,
    name: str,
    ys: Sequence[float | None],
    marker: dict[str, Any],
    names: Sequence[str],
) -> None:
    import plotly.graph_objects as go

    at = [i for i, y in enumerate(ys) if y is not None]
    if not at:
        return
    said = name if name.startswith("zero") else f"{name} %{{y:.3g}}"
    figure.add_trace(
        go.Scatter(
            x=at,
            y=[ys[i] for i in at],
            name=name,
            mode="markers",
            marker=marker,
            customdata=[names[i] for i in at],
            hovertemplate=f"%{{customdata}}<br>{said}<extra></extra>",
        )
    )


def block_text(row: Row, quantiles: Sequence[float]) -> str:
    """All that was measured of a block, for a hover label; safe to put into a figure."""
    (block,) = row.blocks
    s = block.spectrum
    known = "all" if s.whole else f"{s.values.shape[1]} largest"
    numbers = [words.number(q) if q > 0 else "lost" for q in quantiles]
    lines = [
        f"<b>{safe(block.start)} to {safe(block.end)}</b>",
        f"{s.rows:,} × {s.columns:,}, {known} of {sides(s):,}" + ", residual" * block.residual,
        f"largest {words.number(middle(s.largest))}, median {numbers[2]}",
        f"5 to 95%: {numbers[0]} to {numbers[4]}",
        f"mean square {words.number(middle(s.mean_square))}, "
        f"distortion {words.number(middle(s.distortion))}",
    ]
    condition, volume = middle(s.condition), middle(s.log_volume)
    if condition is not None:
        lines.append(f"condition {words.number(condition)}")
    if volume is not None:
        lines.append(f"log-volume {words.nats(volume)}")
    if block.branch is not None:
        lines.append(f"s_1(X) {words.number(middle(block.branch.largest))}")
    lines.append(safe(s.method))
    return "<br>".join(lines)
