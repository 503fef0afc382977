"""The figures of the report, built from plain data: depth, sum by kind, learning.

Every figure carries in `layout.meta` its id, the names along its depth axis, and a sentence for
people who do not see it. Colours read on light and on dark; the page sets the rest of the theme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from signalprop.capture.kinds import KIND_LABELS, KINDS
from signalprop.capture.trace import Block, Site, Trace
from signalprop.report import words

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: told apart with any common colour blindness, at least 3:1 against white and against black
COLOURS: dict[str, str] = {
    "weights": "#2f7fd1",
    "slope": "#d9541e",
    "normalisation": "#0e9f76",
    "skip": "#c05fa5",
    "attention": "#b98000",
    "pooling": "#3c9ec0",
    "other": "#808794",
    "input": "#808794",
}
ACTIVATION, DELTA, TOTAL = "#808794", "#8b5cf6", "#8b5cf6"
#: a second sign of the kind besides its colour, where bars are wide enough to show it
_PATTERNS = {"slope": "/", "normalisation": ".", "skip": "x", "attention": "\\", "pooling": "-"}
_PATTERNED = 60
#: few enough ticks that they are whole powers of ten
_LOG: dict[str, Any] = {"type": "log", "exponentformat": "power", "nticks": 5}
#: markers on every site up to so many
_MARKED = 80


def depth(trace: Trace) -> go.Figure:
    """Along the depth: activation and delta, decay of every block by kind, and its running sum.

    Args:
        trace: what was seen.

    Returns:
        Three panels that share the depth axis: the sites of the spine, or all sites in execution
        order where the spine says little.
    """
    from plotly.subplots import make_subplots

    whole = trace.dense or not trace.blocks
    names = list(trace.sites) if whole else list(trace.spine)
    sites = [trace.sites[name] for name in names]
    place = {name: i for i, name in enumerate(names)}
    panels = 3 if trace.blocks else 1
    figure = make_subplots(
        rows=panels,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.085,
        row_heights=[0.44, 0.30, 0.26] if panels == 3 else None,
        subplot_titles=[
            "rms of activation and delta",
            "decay of every block by kind; below zero: lost on the way back",
            "running sum of the decay, from the output back to the input",
        ][:panels],
    )
    _signals(figure, sites)
    if trace.blocks:
        _decays(figure, trace.blocks, place, spread=whole)
        _running(figure, trace.blocks, place)
        figure.update_yaxes(title_text="nats", row=2, col=1)
        top = figure.layout.yaxis2.domain[1]
        figure.update_layout(
            legend2={"orientation": "h", "y": top, "yanchor": "bottom", "x": 1, "xanchor": "right"}
        )
        figure.update_yaxes(title_text="nats", row=3, col=1)
        if trace.cut is not None and trace.cut in place:
            figure.add_vrect(
                x0=-0.5,
                x1=place[trace.cut] + 0.5,
                fillcolor=DELTA,
                opacity=0.12,
                line_width=0,
                annotation_text="delta is exactly zero",
                annotation_position="top left",
            )
    figure.update_yaxes(**_LOG, title_text="rms", row=1, col=1)
    along = "all sites in execution order" if whole else "sites of the spine, input to output"
    _finish(figure, "depth", names, along, 250 * panels + 60 if panels > 1 else 380)
    first, last = (words.clean(n) for n in (names[0], names[-1]))
    figure.layout.meta["about"] = (
        f"Activation and delta along {len(names)} {along}, from {first} to {last}. "
        + (words.split_sentence(trace.decay, trace.split, trace.spine[0], trace.spine[-1],
                                KIND_LABELS) if trace.blocks else "")
    )
    return figure


def by_kind(split: Mapping[str, float]) -> go.Figure:
    """The decay as a waterfall over the kinds of operation: the bars add up to the last one.

    Args:
        split: decay in nats by kind.

    Returns:
        Horizontal bars, largest part first, the sum last.
    """
    import plotly.graph_objects as go

    order = sorted(split, key=lambda kind: -abs(_finite(split[kind]) or math.inf))
    total = sum(split.values())
    bars = [(KIND_LABELS.get(kind, kind), kind, split[kind]) for kind in order]
    lengths = [_finite(value) or 0.0 for _, _, value in bars]
    bases = [sum(lengths[:i]) for i in range(len(lengths))]
    figure = go.Figure()
    for (label, kind, value), base in zip([*bars, ("sum", "", total)], [*bases, 0.0], strict=True):
        # one trace a bar: a hatched bar cannot take its colour from a list
        figure.add_trace(
            go.Bar(
                y=[label],
                x=[_finite(value) or 0.0],
                base=[base],
                orientation="h",
                text=[words.nats(value, sign=True)],
                textposition="outside",
                cliponaxis=False,
                marker={
                    "color": COLOURS.get(kind, TOTAL),
                    "pattern": _hatched(_PATTERNS.get(kind, "")),
                },
                hovertemplate="%{y}: %{text} nats<extra></extra>",
            )
        )
    ends = [0.0, *(b + n for b, n in zip(bases, lengths, strict=True))]
    low, high = min(ends), max(ends)
    margin = 0.16 * (high - low or 1.0)
    figure.update_xaxes(title_text="nats", range=[low - margin, high + margin], zeroline=True)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(
        template="none",
        height=124 + 34 * len(bars),
        barmode="overlay",
        showlegend=False,
        bargap=0.3,
        margin={"l": 20, "r": 30, "t": 10, "b": 45},
        meta={"id": "kinds", "about": "Decay by kind of operation: "
              + ", ".join(f"{KIND_LABELS.get(k, k)} {words.nats(split[k], sign=True)}" for k in order)
              + f"; in sum {words.nats(total, sign=True)} nats."},
    )
    return figure


def learning(
    share: Mapping[str, float],
    update_ratio: Mapping[str, float],
    noise: Mapping[str, float] | None = None,
) -> go.Figure:
    """What the optimizer's next update does, layer by layer.

    Args:
        share: each layer's part of the first-order loss decrease, by module path.
        update_ratio: |update| / |weights| by module path.
        noise: gradient signal-to-noise by module path, or None.

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
        ys = [_finite(values.get(name)) for name in names]
        if scale == "log":
            ys = [y if y is not None and y > 0 else None for y in ys]
        said = [
            f"<b>{_safe(_name(name))}</b><br>{unit} "
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
                mode="lines+markers" if len(names) <= _MARKED else "lines",
                line={"color": colours[row - 1], "width": 1.5},
                marker={"size": 6},
                **common,
            )
        else:
            mark = go.Bar(marker={"color": colours[row - 1], "line": {"width": 0}}, **common)
        figure.add_trace(mark, row=row, col=1)
        figure.update_yaxes(title_text=unit, row=row, col=1)
        if scale == "log":
            figure.update_yaxes(**_LOG, row=row, col=1)
    _finish(figure, "learning", [_name(n) for n in names], "layers", 190 * len(panels) + 80)
    largest = sorted(share, key=lambda name: -share[name])[:3]
    figure.layout.meta["about"] = (
        f"Learning share of {words.plural(len(share), 'layer')}; largest: "
        + ", ".join(f"{words.clean(_name(n))} {words.share(share[n])}" for n in largest)
        + "."
    )
    return figure


# ---- panels of the depth figure --------------------------------------------------------------


def _signals(figure: go.Figure, sites: Sequence[Site]) -> None:
    import plotly.graph_objects as go

    said = [site_text(site) for site in sites]
    xs = list(range(len(sites)))
    mode = "lines+markers" if len(sites) <= _MARKED else "lines"
    activation = [_positive(s.activation.rms) if s.activation.finite else None for s in sites]
    delta = [
        _positive(s.delta.geometric_mean) if s.delta is not None and s.delta.finite else None
        for s in sites
    ]
    series = (
        ("activation rms", activation, ACTIVATION, "solid", "circle"),
        ("delta rms (geometric mean over samples)", delta, DELTA, "solid", "square"),
    )
    for name, ys, colour, dash, symbol in series:
        figure.add_trace(
            go.Scatter(
                x=xs,
                y=ys,
                name=name,
                mode=mode,
                customdata=said,
                hovertemplate="%{customdata}<extra></extra>",
                line={"color": colour, "width": 2, "dash": dash},
                marker={"size": 6, "symbol": symbol},
            ),
            row=1,
            col=1,
        )
    broken = [i for i, s in enumerate(sites) if not _all_finite(s)]
    if broken:
        seen = [y for y in (*activation, *delta) if y is not None]
        figure.add_trace(
            go.Scatter(
                x=broken,
                y=[max(seen, default=1.0)] * len(broken),
                name="not finite",
                mode="markers",
                customdata=[said[i] for i in broken],
                hovertemplate="%{customdata}<extra></extra>",
                marker={"symbol": "x", "size": 9, "color": "#d02f2f"},
            ),
            row=1,
            col=1,
        )


def _decays(
    figure: go.Figure, blocks: Sequence[Block], place: Mapping[str, int], *, spread: bool
) -> None:
    """Stacked bars; `spread` draws each over all that lies in its block."""
    import plotly.graph_objects as go

    for kind in _kinds(blocks):
        mine = [b for b in blocks if _finite(b.parts.get(kind))]
        starts, ends = ([place[getattr(b, at)] for b in mine] for at in ("start", "end"))
        marker: dict[str, Any] = {"color": COLOURS[kind], "line": {"width": 0}}
        if len(blocks) <= _PATTERNED:
            marker["pattern"] = _hatched(_PATTERNS.get(kind, ""))
        figure.add_trace(
            go.Bar(
                x=[(a + b) / 2 for a, b in zip(starts, ends, strict=True)] if spread else ends,
                y=[b.parts[kind] for b in mine],
                width=[b - a for a, b in zip(starts, ends, strict=True)] if spread else 0.86,
                name=KIND_LABELS[kind],
                legend="legend2",
                legendgroup=kind,
                customdata=[_block_text(b) for b in mine],
                hovertemplate="%{customdata}<extra></extra>",
                marker=marker,
            ),
            row=2,
            col=1,
        )
    lost = [b for b in blocks if b.decay == -math.inf]
    if lost:
        figure.add_trace(
            go.Scatter(
                x=[place[b.end] for b in lost],
                y=[0.0] * len(lost),
                name="delta becomes exactly zero",
                legend="legend2",
                mode="markers",
                customdata=[_block_text(b) for b in lost],
                hovertemplate="%{customdata}<extra></extra>",
                marker={"symbol": "x", "size": 10, "color": "#d02f2f"},
            ),
            row=2,
            col=1,
        )


def _running(figure: go.Figure, blocks: Sequence[Block], place: Mapping[str, int]) -> None:
    import plotly.graph_objects as go

    backward = list(reversed(blocks))
    xs = [place[backward[0].end], *(place[b.start] for b in backward)]
    lines: list[tuple[str, str, list[float | None]]] = [
        ("sum", TOTAL, _sums([b.decay for b in backward]))
    ]
    lines += [
        (KIND_LABELS[kind], COLOURS[kind], _sums([b.parts.get(kind, 0.0) for b in backward]))
        for kind in _kinds(blocks)
    ]
    for name, colour, ys in lines:
        total = name == "sum"
        figure.add_trace(
            go.Scatter(
                x=xs,
                y=ys,
                name=name,
                legend="legend2",
                legendgroup="sum" if total else next(
                    kind for kind, label in KIND_LABELS.items() if label == name
                ),
                showlegend=total,
                mode="lines",
                line={"color": colour, "width": 3 if total else 1.5},
                hovertemplate=f"{name} %{{y:.2f}} nats from the output to here<extra></extra>",
            ),
            row=3,
            col=1,
        )


def _sums(values: Sequence[float]) -> list[float | None]:
    total, result = 0.0, [0.0]
    for value in values:
        total += value
        result.append(total)
    return [_finite(value) for value in result]


def _kinds(blocks: Sequence[Block]) -> list[str]:
    present = {kind for block in blocks for kind in block.parts}
    return [kind for kind in KINDS if kind in present]


# ---- what the figures have in common -----------------------------------------------------------


def _finish(figure: go.Figure, identity: str, names: list[str], along: str, height: int) -> None:
    shown = [_safe(words.shorten(words.clean(name), 28)) for name in names]
    ticks = _ticks(len(names))
    figure.update_xaxes(
        tickmode="array",
        tickvals=ticks,
        ticktext=[shown[i] for i in ticks],
        range=[-0.6, len(names) - 0.4],
        showspikes=True,
        spikemode="across",
        spikesnap="cursor",
        spikethickness=1,
        spikedash="dot",
        zeroline=False,
        automargin=True,
    )
    last = max((int(a.removeprefix("xaxis") or 1) for a in figure.layout if a.startswith("xaxis")))
    figure.update_xaxes(title_text=along, title_standoff=12, row=last, col=1)
    figure.update_yaxes(automargin=True)
    figure.update_layout(
        template="none",
        height=height,
        hovermode="closest",
        hoverdistance=-1,
        hoverlabel={"align": "left"},
        barmode="relative",
        bargap=0.1,
        dragmode="zoom",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
        meta={"id": identity, "names": shown},
    )
    for title in figure.layout.annotations:
        if title.xref == "paper" and title.yref == "paper":
            title.update(x=0, xanchor="left", font={"size": 13})


def _ticks(count: int, wanted: int = 12) -> list[int]:
    """Every place up to a dozen, then about a dozen evenly spaced, first and last among them."""
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def site_text(site: Site) -> str:
    """All that was measured at a site, for a hover label; safe to put into a figure."""
    a, d = site.activation, site.delta
    lines = [
        f"<b>{_safe(site.name)}</b>",
        f"{_safe(site.op)}, {tuple(site.shape)}, {_safe(site.dtype)}",
        f"activation rms {words.number(a.rms)}, mean {words.number(a.mean)}",
        f"effective rank {words.number(a.effective_rank)}, cosine {words.number(a.cosine)}",
    ]
    more = [f"zeros {words.share(a.zeros)}"] if a.zeros else []
    more += [f"dead units {words.share(a.dead)}"] if a.dead is not None else []
    more += [f"saturated units {words.share(a.saturated)}"] if a.saturated is not None else []
    more += [f"token cosine {words.number(a.token_cosine)}"] if a.token_cosine is not None else []
    lines += [", ".join(more)] if more else []
    if d is None:
        lines.append("no delta: the loss does not depend on it")
    else:
        lines.append(f"delta rms {words.number(d.rms)}, geometric {words.number(d.geometric_mean)}")
        lines.append(
            f"delta zeros {words.share(d.zeros)}, samples alive {words.share(d.alive)}, "
            f"cosine {words.number(d.cosine)}"
        )
    if not _all_finite(site):
        lines.append("<b>holds values that are not finite</b>")
    return "<br>".join(lines)


def _block_text(block: Block) -> str:
    lines = [f"<b>{_safe(block.start)} to {_safe(block.end)}</b>"]
    lines.append(f"decay {words.nats(block.decay, sign=True)} nats" + (
        ", residual" if block.residual else ""))
    lines += [
        f"{KIND_LABELS.get(kind, kind)} {words.nats(v, sign=True)}"
        for kind, v in block.parts.items()
    ]
    if block.branch:
        inside = ", ".join(
            f"{KIND_LABELS.get(kind, kind)} {words.nats(v, sign=True)}"
            for kind, v in block.branch.items()
        )
        lines.append(f"inside the branch (not summed):<br>{inside}")
    return "<br>".join(lines)


def _hatched(shape: str) -> dict[str, Any]:
    return {
        "shape": shape,
        "size": 6,
        "solidity": 0.2,
        "fillmode": "overlay",
        "fgcolor": "#ffffff",
        "fgopacity": 0.55,
    }


def _name(module: str) -> str:
    return module or "(the model itself)"


def _safe(name: str) -> str:
    # Plotly reads a subset of HTML in every text, links included
    return escape(words.shorten(words.clean(name), 64))


def _all_finite(site: Site) -> bool:
    return site.activation.finite and (site.delta is None or site.delta.finite)


def _positive(value: float) -> float | None:
    return value if 0 < value < math.inf else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
