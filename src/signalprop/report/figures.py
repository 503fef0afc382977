"""The sum of the decay by kind, and what the optimizer does, as figures built from plain data.

Every figure carries in `layout.meta` its id, the names along its axis, and a sentence for people
who do not see it. The page sets the theme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from signalprop.capture.kinds import KIND_LABELS, Kind
from signalprop.report import words
from signalprop.report.chart import (
    COLOURS,
    DELTA,
    LOG,
    MARKED,
    PATTERNS,
    TOTAL,
    finish,
    finite,
    hatched,
    safe,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: a learning share that moves by less within a few updates is not worth a second mark
SHIFT = 0.05


def by_kind(split: Mapping[Kind, float]) -> go.Figure:
    """The decay as a waterfall over the kinds of operation: the bars add up to the last one.

    Args:
        split: decay in nats by kind.

    Returns:
        Horizontal bars, largest part first, the sum last.
    """
    import plotly.graph_objects as go

    order = sorted(split, key=lambda kind: -abs(finite(split[kind]) or math.inf))
    total = sum(split.values())
    bars = [(KIND_LABELS.get(kind, kind), kind, split[kind]) for kind in order]
    lengths = [finite(value) or 0.0 for _, _, value in bars]
    bases = [sum(lengths[:i]) for i in range(len(lengths))]
    figure = go.Figure()
    for (label, kind, value), base in zip([*bars, ("sum", "", total)], [*bases, 0.0], strict=True):
        # one trace a bar: a hatched bar cannot take its colour from a list
        figure.add_trace(
            go.Bar(
                y=[f"{label}  {words.nats(value, sign=True)}"],
                x=[finite(value) or 0.0],
                base=[base],
                orientation="h",
                marker={
                    "color": COLOURS.get(kind, TOTAL),
                    "pattern": hatched(PATTERNS.get(kind, "")),
                },
                hovertemplate="%{y} nats<extra></extra>",
            )
        )
    ends = [0.0, *(b + n for b, n in zip(bases, lengths, strict=True))]
    low, high = min(ends), max(ends)
    margin = 0.04 * (high - low or 1.0)
    figure.update_xaxes(title_text="nats", range=[low - margin, high + margin], zeroline=True)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(
        template="none",
        height=124 + 34 * len(bars),
        barmode="overlay",
        showlegend=False,
        bargap=0.3,
        margin={"l": 20, "r": 30, "t": 10, "b": 45},
        font={"size": 12},
        meta={
            "id": "kinds",
            "about": "Decay by kind of operation: "
            + ", ".join(f"{KIND_LABELS.get(k, k)} {words.nats(split[k], sign=True)}" for k in order)
            + f"; in sum {words.nats(total, sign=True)} nats.",
        },
    )
    return figure


def learning(
    share: Mapping[str, float],
    update_ratio: Mapping[str, float],
    noise: Mapping[str, float] | None = None,
    later_share: Mapping[str, float] | None = None,
) -> go.Figure:
    """What the optimizer's next update does, layer by layer.

    Args:
        share: each layer's part of the first-order loss decrease, by module path.
        update_ratio: |update| / |weights| by module path.
        noise: gradient signal-to-noise by module path, or None.
        later_share: the learning share some updates later, drawn where it differs.

    Returns:
        Two panels, three with `noise`, that share the axis of layers in model order.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    names = list(dict.fromkeys([*share, *update_ratio, *(noise or {})]))
    panels: list[tuple[str, Mapping[str, float], str, str]] = [
        ("learning share (sums to 1)", share, "share", ""),
        ("update / weight, L2", update_ratio, "ratio", "log"),
    ]
    if noise:
        panels.append(("gradient signal-to-noise over micro-batches", noise, "SNR", "log"))
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.12,
        subplot_titles=[title for title, *_ in panels],
    )
    colours = [DELTA, COLOURS["weights"], COLOURS["normalisation"]]
    for row, (title, values, unit, scale) in enumerate(panels, start=1):
        ys = [finite(values.get(name)) for name in names]
        if scale == "log":
            ys = [y if y is not None and y > 0 else None for y in ys]
        said = [
            f"<b>{safe(_name(name))}</b><br>{unit} "
            + (words.share(values[name]) if unit == "share" else words.number(values[name]))
            if name in values
            else ""
            for name in names
        ]
        common: dict[str, Any] = {
            "x": list(range(len(names))),
            "y": ys,
            "customdata": said,
            "hovertemplate": "%{customdata}<extra></extra>",
            "name": title,
            "showlegend": False,
        }
        if scale == "log":
            mark = go.Scatter(
                mode="lines+markers" if len(names) <= MARKED else "lines",
                line={"color": colours[row - 1], "width": 1.5},
                marker={"size": 6},
                **common,
            )
        else:
            mark = go.Bar(marker={"color": colours[row - 1], "line": {"width": 0}}, **common)
        figure.add_trace(mark, row=row, col=1)
        figure.update_yaxes(title_text=unit, row=row, col=1)
        if scale == "log":
            figure.update_yaxes(**LOG, row=row, col=1)
    if later_share and any(abs(later_share.get(n, 0) - share.get(n, 0)) > SHIFT for n in names):
        figure.add_trace(
            go.Scatter(
                x=list(range(len(names))),
                y=[finite(later_share.get(name)) for name in names],
                name="learning share some updates later",
                mode="markers",
                marker={"symbol": "diamond-open", "size": 8, "color": TOTAL},
                hovertemplate="%{y:.1%} some updates later<extra></extra>",
            ),
            row=1,
            col=1,
        )
    largest = sorted(share, key=lambda name: -share[name])[:3]
    about = f"Learning share of {words.plural(len(share), 'layer')}; largest: "
    about += ", ".join(f"{words.clean(_name(n))} {words.share(share[n])}" for n in largest)
    shown = [_name(name) for name in names]
    finish(figure, "learning", shown, "layers", 190 * len(panels) + 80, about)
    return figure


def _name(module: str) -> str:
    return module or "(the model itself)"
