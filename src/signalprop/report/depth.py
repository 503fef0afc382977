"""The figure along the depth: signals, decay of every block by kind, and its running sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from signalprop.capture.kinds import KIND_LABELS, KINDS, Kind
from signalprop.capture.trace import Block, Site, Trace
from signalprop.report import words
from signalprop.report.chart import (
    ACTIVATION,
    COLOURS,
    DELTA,
    ERROR,
    LOG,
    MARKED,
    PATTERNED,
    PATTERNS,
    TOTAL,
    finish,
    finite,
    hatched,
    positive,
    safe,
)
from signalprop.theory.expect import BlockExpectation

if TYPE_CHECKING:
    import plotly.graph_objects as go


def depth(trace: Trace, expected: Mapping[str, BlockExpectation]) -> go.Figure:
    """Along the depth: activation and delta, decay of every block by kind, and its running sum.

    Args:
        trace: what was seen.
        expected: what theory expects of every block, keyed by its end.

    Returns:
        Three panels that share the depth axis: the sites of the spine, or all sites in execution
        order where the spine says little.
    """
    from plotly.subplots import make_subplots

    whole = trace.dense or not trace.blocks
    names = list(trace.sites) if whole else list(trace.spine)
    sites = [trace.sites[name] for name in names]
    place = {name: i for i, name in enumerate(names)}
    # one number that is none leaves no sum; what is finite is still drawn
    split = any(math.isfinite(v) or v < 0 for b in trace.blocks for v in b.parts.values())
    panels = 3 if split else 1
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
    if split:
        _decays(figure, trace.blocks, place, spread=whole)
        _running(figure, trace.blocks, place, expected)
        figure.update_yaxes(title_text="nats", row=2, col=1)
        layout: Any = figure.layout
        top = layout.yaxis2.domain[1]
        figure.update_layout(
            legend2={"orientation": "h", "y": top, "yanchor": "bottom", "x": 1, "xanchor": "right"}
        )
        figure.update_yaxes(title_text="nats", row=3, col=1)
        if trace.cut is not None and trace.cut in place:
            right = place[trace.cut] + 0.5
            figure.add_vrect(
                x0=-0.6, x1=right, fillcolor=DELTA, opacity=0.12, line_width=0, layer="below"
            )
            figure.add_annotation(
                text="delta is exactly zero",
                x=right,
                y=0.02,
                yref="y domain",
                xanchor="right",
                yanchor="bottom",
                showarrow=False,
                row=1,
                col=1,
            )
    figure.update_yaxes(**LOG, title_text="rms", row=1, col=1)
    along = "all sites in execution order" if whole else "sites of the spine, input to output"
    first, last = (words.clean(name) for name in (names[0], names[-1]))
    about = f"Activation and delta along {len(names)} {along}, from {first} to {last}. "
    if trace.blocks:
        about += words.split_sentence(trace.decay, trace.split, first, last, KIND_LABELS)
    finish(figure, "depth", names, along, 250 * panels + 60 if panels > 1 else 380, about)
    return figure


def _signals(figure: go.Figure, sites: Sequence[Site]) -> None:
    import plotly.graph_objects as go

    said = [site_text(site) for site in sites]
    xs = list(range(len(sites)))
    mode = "lines+markers" if len(sites) <= MARKED else "lines"
    activation = [positive(s.activation.rms) if s.activation.finite else None for s in sites]
    delta = [
        positive(s.delta.geometric_mean) if s.delta is not None and s.delta.finite else None
        for s in sites
    ]
    series = (
        ("activation rms", activation, ACTIVATION, "solid", "circle"),
        ("delta rms, geometric mean", delta, DELTA, "solid", "square"),
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
    _marks(figure, sites, said, [y for y in (*activation, *delta) if y is not None])


def _marks(
    figure: go.Figure, sites: Sequence[Site], said: Sequence[str], seen: Sequence[float]
) -> None:
    """What a log axis cannot show: values that are not finite, and activations exactly zero."""
    import plotly.graph_objects as go

    top, bottom = max(seen, default=1.0), min(seen, default=1.0)
    marks = (
        ("activation not finite", "x", ERROR, top, lambda s: not s.activation.finite),
        (
            "delta not finite",
            "x-open",
            ERROR,
            bottom,
            lambda s: s.delta is not None and not s.delta.finite,
        ),
        (
            "activation exactly zero",
            "triangle-down-open",
            ACTIVATION,
            bottom,
            lambda s: s.activation.finite and s.activation.rms == 0,
        ),
    )
    for name, symbol, colour, y, holds in marks:
        at = [i for i, site in enumerate(sites) if holds(site)]
        if not at:
            continue
        figure.add_trace(
            go.Scatter(
                x=at,
                y=[y] * len(at),
                name=name,
                mode="markers",
                customdata=[said[i] for i in at],
                hovertemplate="%{customdata}<extra></extra>",
                marker={"symbol": symbol, "size": 9, "color": colour},
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
        mine = [b for b in blocks if finite(b.parts.get(kind))]
        starts, ends = ([place[getattr(b, at)] for b in mine] for at in ("start", "end"))
        marker: dict[str, Any] = {"color": COLOURS[kind], "line": {"width": 0}}
        if len(blocks) <= PATTERNED:
            marker["pattern"] = hatched(PATTERNS.get(kind, ""))
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
                marker={"symbol": "x", "size": 10, "color": ERROR},
            ),
            row=2,
            col=1,
        )


def _running(
    figure: go.Figure,
    blocks: Sequence[Block],
    place: Mapping[str, int],
    expected: Mapping[str, BlockExpectation],
) -> None:
    import plotly.graph_objects as go

    backward = list(reversed(blocks))
    xs = [place[backward[0].end], *(place[b.start] for b in backward)]
    lines: list[tuple[str, str, str, Sequence[float]]] = [
        ("sum", "sum", TOTAL, [b.decay for b in backward])
    ]
    lines += [
        (kind, KIND_LABELS[kind], COLOURS[kind], [b.parts.get(kind, 0.0) for b in backward])
        for kind in _kinds(blocks)
    ]
    theory = [expected[b.end].expected if b.end in expected else None for b in backward]
    known = [nats for nats in theory if nats is not None]
    if backward and len(known) == len(backward):
        lines.append(("theory", "mean-field theory", TOTAL, known))
    for group, name, colour, values in lines:
        figure.add_trace(
            go.Scatter(
                x=xs,
                y=_sums(values),
                name=name,
                legend="legend2",
                legendgroup=group,
                showlegend=group in ("sum", "theory"),
                mode="lines",
                line={
                    "color": colour,
                    "width": 3 if group == "sum" else 1.5,
                    "dash": "dot" if group == "theory" else "solid",
                },
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
    return [finite(value) for value in result]


def _kinds(blocks: Sequence[Block]) -> list[Kind]:
    present = {kind for block in blocks for kind in block.parts}
    return [kind for kind in KINDS if kind in present]


# ---- hover labels ---------------------------------------------------------------------------


def site_text(site: Site) -> str:
    """All that was measured at a site, for a hover label; safe to put into a figure."""
    a, d = site.activation, site.delta
    lines = [
        f"<b>{safe(site.name)}</b>",
        f"{safe(site.op)}, {tuple(site.shape)}, {safe(site.dtype)}",
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
    lines = [f"<b>{safe(block.start)} to {safe(block.end)}</b>"]
    lines.append(
        f"decay {words.nats(block.decay, sign=True)} nats"
        + (", residual" if block.residual else "")
    )
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


def _all_finite(site: Site) -> bool:
    return site.activation.finite and (site.delta is None or site.delta.finite)
