"""The horizon as figures: credit over the lag, what single steps do, Lyapunov exponents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from signalprop.report import words
from signalprop.report.chart import COLOURS, ERROR, LOG, MARKED, finite, positive, safe
from signalprop.report.spectra.ends import places, plain_layout, thinned
from signalprop.report.time.figures import legend, logarithmic, paints, some, ticks
from signalprop.report.time.horizon import said
from signalprop.report.time.horizon.curves import Curve, drawn
from signalprop.report.time.said import nats

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: points of a curve
POINTS = 1000
#: decades below the rounding that are seen without a zoom
BELOW = 1.5


def credit(found: Sequence[Curve], lag: int | None = None) -> go.Figure:
    """Credit over the lag, with marks where it is down to 1/e and to the rounding.

    Args:
        found: every layer and direction; at least one.
        lag: over how many steps the task needs memory, where it is known.

    Returns:
        One panel with a log axis, one line for each, dashed where it runs backwards.
    """
    import plotly.graph_objects as go

    shown = _some(found)
    figure = go.Figure()
    floor = max(curve.horizon.floor for curve in shown)
    for curve, colour in zip(shown, paints(shown), strict=True):
        _line(figure, curve, colour)
    for curve, colour in zip(shown, paints(shown), strict=True):
        _ends(figure, curve, colour)
    values = [v for curve in shown for v in curve.horizon.credit if 0 < v < math.inf]
    least, most = min(values, default=1.0), max(values, default=1.0)
    low = max(math.log10(least), math.log10(floor) - BELOW)
    low, high = min(low, -1.0), max(math.log10(most), 0.0)
    margin = 0.06 * (high - low)
    if low - margin < math.log10(floor):
        _rounding(figure, floor, min(least, floor) / 10, shown[0])
    figure.add_hline(y=1 / math.e, line={"color": COLOURS["other"], "width": 1.5, "dash": "dot"})
    _note(figure, "1/e", math.log10(1 / math.e), "right")
    until, longest = drawn(shown), max(curve.longest for curve in shown)
    if lag is not None:
        until = max(until, min(longest, round(1.05 * lag)))
        _task(figure, lag, until)
    figure.update_xaxes(
        title_text="lag k, steps back from the last one",
        range=[-0.01 * until, 1.03 * until],
        zeroline=False,
        tickformat=",d",
    )
    bottom, top = low - margin, high + margin
    axis = LOG | ticks(bottom, top) | {"range": [bottom, top], "automargin": True}
    figure.update_yaxes(**axis, title={"text": "credit", "standoff": 14})
    figure.update_layout(**plain_layout(470))
    about = f"Credit over the lag of {_many(found)}. {_names(found)}"
    caption = f"Shown to lag {until:,} of {longest:,}; double-click for all." * (until < longest)
    if len(shown) < len(found):
        caption = f"{len(shown)} of {len(found)} layers and directions. {caption}".strip()
    meta = {"id": "credit", "about": about} | ({"caption": caption} if caption else {})
    figure.update_layout(meta=meta)
    legend(figure, [curve.place.label for curve in shown])
    return figure


def gains(found: Sequence[Curve]) -> go.Figure | None:
    """What single steps do to an error: the largest gain, and that of a random error.

    Args:
        found: every layer and direction.

    Returns:
        Two panels over the steps; None where the step Jacobians were not measured.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    known = [curve for curve in found if curve.gains is not None]
    if not known:
        return None
    shown = _some(known)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    seen: tuple[list[float], list[float]] = ([1.0], [1.0])
    for curve, colour in zip(shown, paints(shown), strict=True):
        measured = curve.gains
        assert measured is not None
        name = safe(curve.place.label)
        for panel, values in enumerate((measured.largest, measured.rms), start=1):
            seen[panel - 1].extend(values)
            figure.add_trace(
                go.Scatter(
                    x=list(measured.steps),
                    y=[positive(v) for v in values],
                    name=name,
                    legendgroup=name,
                    showlegend=panel == 1,
                    mode="lines+markers" if len(values) <= MARKED else "lines",
                    line=_style(curve, colour),
                    marker={"size": 5, "color": colour},
                    customdata=[words.number(v) for v in values],
                    hovertemplate=f"<b>{name}</b><br>%{{customdata}} at step %{{x}}<extra></extra>",
                ),
                row=panel,
                col=1,
            )
    for panel, what in enumerate(("largest, s_1(J_t)", "random error"), start=1):
        figure.add_hline(
            y=1, line={"color": COLOURS["other"], "width": 1.5, "dash": "dash"}, row=panel, col=1
        )
        figure.update_yaxes(**logarithmic(seen[panel - 1], 1, what), row=panel, col=1)
    figure.update_xaxes(zeroline=False, tickformat=",d")
    figure.update_xaxes(title_text="step t, counted the way a layer runs", row=2, col=1)
    figure.update_layout(**plain_layout(560))
    about = f"What single steps do to an error in {_many(known)}: "
    about += said.steps_do([c.gains for c in known if c.gains is not None])
    figure.update_layout(meta={"id": "gains", "about": f"{about}."})
    legend(figure, [curve.place.label for curve in shown])
    return figure


def exponents(found: Sequence[Curve]) -> go.Figure | None:
    """Lyapunov exponents with their errors.

    Args:
        found: every layer and direction.

    Returns:
        One panel, largest first; None where they were not asked for.
    """
    import plotly.graph_objects as go

    known = [curve for curve in found if curve.exponents is not None]
    if not known:
        return None
    shown = _some(known)
    figure = go.Figure()
    count = 1
    for curve, colour in zip(shown, paints(shown), strict=True):
        measured = curve.exponents
        assert measured is not None
        name = safe(curve.place.label)
        at = thinned(len(measured.values), POINTS).tolist()
        count = max(count, len(measured.values))
        errors = [finite(measured.errors[i]) for i in at]
        bars = {"type": "data", "array": [e or 0.0 for e in errors], "thickness": 1.2, "width": 3}
        figure.add_trace(
            go.Scatter(
                x=[i + 1 for i in at],
                y=[finite(measured.values[i]) for i in at],
                error_y=bars if any(errors) else None,
                name=name,
                mode="lines+markers" if len(at) <= MARKED else "lines",
                line=_style(curve, colour),
                marker={
                    "size": 6,
                    "color": colour,
                    "symbol": "circle-open" if curve.horizon.reverse else "circle",
                },
                customdata=[
                    f"{said.exponent(measured.values[i])} nats per step"
                    + ("" if e is None else f", error {words.number(e)}")
                    for i, e in zip(at, errors, strict=True)
                ],
                hovertemplate=f"<b>{name}</b><br>exponent %{{x}}: %{{customdata}}<extra></extra>",
            )
        )
    figure.add_hline(y=0, line={"color": COLOURS["other"], "width": 1.5, "dash": "dash"})
    size = max(curve.exponents.size for curve in known if curve.exponents is not None)
    figure.update_xaxes(title_text=f"i, largest first, of {size:,}", **places(count))
    title = {"text": "exponent, nats per step", "standoff": 12}
    figure.update_yaxes(title=title, automargin=True, zeroline=False)
    figure.update_layout(**plain_layout(400))
    about = f"Lyapunov exponents of {_many(known)}: "
    about += said.grow([c.exponents for c in known if c.exponents is not None])
    figure.update_layout(meta={"id": "exponents", "about": f"{about}."})
    legend(figure, [curve.place.label for curve in shown])
    return figure


# ---- parts of the curve ----------------------------------------------------------------------


def _line(figure: go.Figure, curve: Curve, colour: str) -> None:
    import plotly.graph_objects as go

    lags, values = curve.horizon.lags, curve.horizon.credit
    # closely where the lags are short, as most credit falls there
    near = [*range(min(len(lags), POINTS // 2))]
    at = sorted({*near, *thinned(len(lags), POINTS // 2).tolist()})
    name = safe(curve.place.label)
    figure.add_trace(
        go.Scatter(
            x=[lags[i] for i in at],
            y=[positive(values[i]) for i in at],
            name=name,
            legendgroup=name,
            mode="lines",
            line=_style(curve, colour),
            customdata=[words.number(values[i]) for i in at],
            hovertemplate=f"<b>{name}</b> {safe(curve.horizon.op)}<br>credit %{{customdata}} "
            "%{x} steps back<extra></extra>",
        )
    )


def _ends(figure: go.Figure, curve: Curve, colour: str) -> None:
    """Marks at the last lags with 1/e, and with as much as the rounding."""
    import plotly.graph_objects as go

    mine = curve.horizon
    name = safe(curve.place.label)
    found = [
        (lag, text, symbol)
        for lag, text, symbol in (
            (mine.steps, "at least 1/e up to here", "diamond"),
            (mine.silent, f"beyond: below {said.rounding(mine)}", "x"),
        )
        if lag is not None
    ]
    at = [mine.lags.index(lag) for lag, _, _ in found]
    if not found:
        return
    figure.add_trace(
        go.Scatter(
            x=[lag for lag, _, _ in found],
            y=[positive(mine.credit[i]) for i in at],
            name=f"{name}, ends",
            legendgroup=name,
            showlegend=False,
            mode="markers",
            marker={"size": 9, "color": colour, "symbol": [symbol for _, _, symbol in found]},
            customdata=[f"{words.plural(lag, 'step')} back: {text}" for lag, text, _ in found],
            hovertemplate=f"<b>{name}</b><br>%{{customdata}}<extra></extra>",
        )
    )


def _rounding(figure: go.Figure, floor: float, bottom: float, curve: Curve) -> None:
    figure.add_hrect(
        y0=bottom,
        y1=floor,
        fillcolor=COLOURS["other"],
        opacity=0.14,
        line_width=0,
        layer="below",
    )
    figure.add_hline(y=floor, line={"color": ERROR, "width": 1.5, "dash": "dot"})
    name = said.rounding(curve.horizon).partition(" (")[0]
    _note(figure, name.removeprefix("the "), math.log10(floor), "left")


def _task(figure: go.Figure, lag: int, until: int) -> None:
    """The lag that the task needs."""
    figure.add_vline(x=lag, line={"color": ERROR, "width": 1.5, "dash": "dash"})
    figure.add_annotation(
        text="lag of the task",
        x=lag,
        xanchor="right" if lag > until / 2 else "left",
        y=0.99,
        yref="paper",
        yanchor="top",
        showarrow=False,
    )


def _note(figure: go.Figure, text: str, y: float, side: str) -> None:
    """A text at an end of a line; on a log axis a note stands at its logarithm."""
    figure.add_annotation(
        text=text,
        x=0.995 if side == "right" else 0.005,
        xref="paper",
        xanchor=side,
        y=y,
        yanchor="bottom" if side == "right" else "top",
        showarrow=False,
    )


def _style(curve: Curve, colour: str) -> dict[str, Any]:
    return {"color": colour, "width": 2, "dash": "dash" if curve.horizon.reverse else "solid"}


def _some(found: Sequence[Curve]) -> list[Curve]:
    return some(found, [curve.horizon.rate for curve in found])


def _many(found: Sequence[Curve]) -> str:
    return found[0].place.label if len(found) == 1 else f"{len(found)} layers and directions"


def _names(found: Sequence[Curve]) -> str:
    """The first of them in words, for people who do not see the figure."""
    first = found[0]
    steps = said.until([curve.horizon.steps for curve in found], first.longest)
    rate = first.horizon.rate
    text = f"Steps until 1/e is left: {steps}"
    return text + (f"; {nats(rate)} nats per step in {first.place.label}." * math.isfinite(rate))
