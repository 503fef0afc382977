"""The figures of trials: what every seed came to, and the training losses."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

from signalprop.cures.trials.race import rungs
from signalprop.cures.trials.result import Trial, Trials
from signalprop.report import words
from signalprop.report.chart import COLOURS, DELTA, ERROR, safe
from signalprop.report.spectra.ends import plain_layout
from signalprop.report.trials import said

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: points that a leg gives to a curve, at most
POINTS = 20
#: candidates in the menu of the curves
MENU = 24
PLAIN, BEST, OTHER = COLOURS["other"], DELTA, COLOURS["weights"]


def dots(trials: Trials) -> go.Figure:
    """The metric of every seed, one row for each candidate, best first.

    Args:
        trials: what was tried.

    Returns:
        One panel: seeds as dots, their mean as a line with the gain, the untouched network.
    """
    import plotly.graph_objects as go

    shown = [*trials.trials, trials.untouched]
    floor = _floor(shown)
    figure = go.Figure()
    helped = {t.name for t in shown if t.verdict in ("helps", "better")}
    for label, rows in (
        ("helps", [i for i, t in enumerate(shown) if t.name in helped]),
        ("does not", [i for i, t in enumerate(trials.trials) if t.name not in helped]),
        ("untouched", [len(shown) - 1]),
    ):
        colour = {"helps": BEST, "does not": OTHER, "untouched": PLAIN}[label]
        _seeds(figure, trials, [(i, shown[i]) for i in rows], floor, label, colour)
    _means(figure, shown, floor)
    plain = trials.untouched.mean
    if math.isfinite(plain) and plain >= floor:
        figure.add_vline(x=plain, line={"color": PLAIN, "width": 1.5, "dash": "dash"})
    figure.update_xaxes(title_text=safe(trials.metric), zeroline=False, automargin=True)
    figure.update_yaxes(
        tickvals=list(range(len(shown))),
        ticktext=[_label(t) for t in shown],
        range=[len(shown) - 0.4, -0.75],
        automargin=True,
        zeroline=False,
    )
    figure.update_layout(**plain_layout(130 + 40 * len(shown)))
    caption = "The dashed line is the mean of the untouched network after all updates."
    if any(not math.isfinite(v) for t in shown for v in t.metric):
        caption += " Crosses: diverged."
    if any(math.isfinite(v) and v < floor for t in shown for v in t.metric):
        caption += " Triangles: further to the left than is drawn."
    figure.update_layout(
        meta={
            "id": "dots",
            "about": f"{words.clean(trials.metric)} of every candidate with every seed, best "
            f"first. {said.headline(trials)}",
            "caption": caption,
        }
    )
    return figure


def _label(trial: Trial) -> str:
    """Its name, broken where it is long, and where it was stopped."""
    lines, current = list[str](), ""
    for part in words.clean(trial.name).split(" + "):
        longer = f"{current} + {part}" if current else part
        if current and len(longer) > 34:
            lines.append(current + " +")
            longer = part
        current = longer
    label = "<br>".join(safe(line) for line in [*lines, current])
    return label + (f"<br>stopped at {trial.step:,}" if trial.stopped else "")


def _floor(shown: list[Trial]) -> float:
    """Below it nothing is drawn in its place: one bad seed must not flatten all others."""
    values = [v for t in shown for v in t.metric if math.isfinite(v)]
    if not values:
        return -math.inf
    high, middle = max(values), statistics.median(values)
    return high - 5 * (high - middle) if high > middle else -math.inf


def _seeds(
    figure: go.Figure,
    trials: Trials,
    rows: list[tuple[int, Trial]],
    floor: float,
    label: str,
    colour: str,
) -> None:
    import plotly.graph_objects as go

    if not rows:
        return
    x, y, symbols, text = list[float](), list[float](), list[str](), list[str]()
    left = _left([*trials.trials, trials.untouched], floor)
    for row, trial in rows:
        seeds = zip(trials.seeds, trial.metric, trial.untouched, strict=True)
        for i, (seed, found, plain) in enumerate(seeds):
            inside = math.isfinite(found) and found >= floor
            x.append(found if inside else left)
            # seeds that agree would hide each other
            y.append(row + 0.22 * ((i + 0.5) / len(trial.metric) - 0.5))
            symbols.append("circle" if inside else "triangle-left" if found > -math.inf else "x")
            text.append(
                f"<b>{safe(trial.name)}</b>, seed {seed}: {said.value(found)}"
                f"<br>untouched after as many updates: {said.value(plain)}"
                f"<br>{words.plural(trial.step, 'update')}"
                + (", stopped" if trial.stopped else "")
                + (f"<br>{safe(trial.failed)}" if trial.failed else "")
            )
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            name=label,
            mode="markers",
            marker={"size": 9, "color": colour, "symbol": symbols, "opacity": 0.8},
            customdata=text,
            hovertemplate="%{customdata}<extra></extra>",
        )
    )


def _left(shown: list[Trial], floor: float) -> float:
    """Where what is not drawn in its place stands."""
    values = [v for t in shown for v in t.metric if math.isfinite(v) and v >= floor]
    if not values:
        return 0.0
    return min(values) - 0.06 * ((max(values) - min(values)) or abs(max(values)) or 1.0)


def _means(figure: go.Figure, shown: list[Trial], floor: float) -> None:
    import plotly.graph_objects as go

    inside = [(i, t) for i, t in enumerate(shown) if math.isfinite(t.mean) and t.mean >= floor]
    figure.add_trace(
        go.Scatter(
            x=[t.mean for _, t in inside],
            y=[i for i, _ in inside],
            name="mean, and gain",
            mode="markers+text",
            marker={"symbol": "line-ns-open", "size": 22, "color": ERROR, "line": {"width": 2.5}},
            text=["" if t.verdict == "untouched" else said.gain(t) for _, t in inside],
            textposition="top center",
            hoverinfo="skip",
            cliponaxis=False,
        )
    )


def curves(trials: Trials) -> go.Figure | None:
    """Training losses of a candidate beside the untouched network, all seeds.

    Args:
        trials: what was tried.

    Returns:
        One panel with a menu of the candidates; None where nothing was trained.
    """
    import plotly.graph_objects as go

    tried = [t for t in trials.trials if any(t.curves)][:MENU]
    if not tried and not any(trials.untouched.curves):
        return None
    figure = go.Figure()
    _lines(figure, trials, trials.untouched, PLAIN, "untouched", None)
    for i, trial in enumerate(tried):
        _lines(figure, trials, trial, BEST, trial.name, i)
    drawn = [trials.untouched, *tried]
    values = [v for t in drawn for c in t.curves for v in c if math.isfinite(v)]
    log = bool(values) and min(values) > 0 and max(values) > 20 * min(values)
    figure.update_xaxes(title_text="update", zeroline=False, rangemode="tozero")
    figure.update_yaxes(
        title={"text": "training loss", "standoff": 12}, automargin=True, zeroline=False
    )
    if log:
        figure.update_yaxes(type="log", exponentformat="power", nticks=6)
    figure.update_layout(**plain_layout(430))
    meta: dict[str, Any] = {
        "id": "curves",
        "about": "Training loss over the updates, of a candidate and of the untouched network, "
        "a line for each seed.",
        "caption": "Means over some updates each; a line for each seed. A cure that changes the "
        "loss is drawn in its own.",
    }
    if len(tried) > 1:
        meta |= {"choices": [words.clean(t.name) for t in tried], "choose": "Candidate"}
    figure.update_layout(meta=meta)
    return figure


def _lines(
    figure: go.Figure, trials: Trials, trial: Trial, colour: str, name: str, choice: int | None
) -> None:
    import plotly.graph_objects as go

    first = True
    for seed, curve in zip(trials.seeds, trial.curves, strict=True):
        if not curve:
            continue
        figure.add_trace(
            go.Scatter(
                x=places(len(curve), trial.step, trials.steps),
                y=[v if math.isfinite(v) else None for v in curve],
                name=safe(name),
                legendgroup=safe(name),
                showlegend=first,
                mode="lines+markers" if len(curve) == 1 else "lines",
                line={"color": colour, "width": 1.8},
                hovertemplate=f"seed {seed}, update %{{x:.0f}}: %{{y:.4g}}<extra></extra>",
                visible=not choice,
                meta={} if choice is None else {"choice": choice},
            )
        )
        first = False


def places(count: int, step: int, steps: int) -> list[float]:
    """Updates at which the points of a curve stand: every leg gives some twenty, evenly.

    Args:
        count: points of the curve.
        step: its last update.
        steps: updates of a whole training.

    Returns:
        The middle of the updates that each point is the mean of.
    """
    found, start = list[float](), 0
    for end in [*(rung for rung in rungs(steps) if rung < step), step]:
        length = end - start
        pieces = min(POINTS, length)
        for i in range(pieces):
            size = length // pieces + (i < length % pieces)
            found.append(start + (size + 1) / 2)
            start += size
    if len(found) == count:
        return found
    # a training that failed on its way
    return [step * (i + 0.5) / count for i in range(count)]
