"""Colours of heat maps, of runs, and of alerts; told apart with any common colour blindness."""

from __future__ import annotations

import math
from typing import Any

from signalprop.report import words
from signalprop.report.chart import COLOURS, DELTA, ERROR
from signalprop.report.run.heat import Heat, middle

#: little to much
ONE_WAY = "Viridis"
#: too little, as it should be or was, too much
TWO_WAY = (
    (0.0, "#5e3c99"),
    (0.25, "#a294c8"),
    (0.5, "#e6e6ea"),
    (0.75, "#f1a65c"),
    (1.0, "#b35806"),
)
#: of cells without a height: zero or less on a log scale, not finite
SPECIAL = ((0.0, "#808794"), (0.5, "#808794"), (0.5, "#e0123b"), (1.0, "#e0123b"))
#: one for each run
RUNS = (DELTA, COLOURS["slope"], COLOURS["normalisation"], COLOURS["weights"], COLOURS["attention"],
        COLOURS["skip"], COLOURS["pooling"], COLOURS["other"])  # fmt: skip
#: one for each site that is chosen
SITES = (COLOURS["weights"], COLOURS["slope"], COLOURS["normalisation"], COLOURS["skip"],
         COLOURS["attention"], DELTA, COLOURS["pooling"], COLOURS["other"])  # fmt: skip
SEVERITY = {"issue": ERROR, "tip": "#b98000"}
#: a second sign besides the colour
SYMBOL = {"issue": "triangle-down", "tip": "circle"}
DASHES = ("solid", "dash", "dot", "dashdot")


def bar(shown: Heat, low: float, high: float) -> dict[str, Any]:
    """Where the colours of a heat map lie, and what stands beside them.

    Args:
        shown: the map.
        low: the lowest height.
        high: the highest.

    Returns:
        For Plotly's `coloraxis`.
    """
    two = middle(shown.statistic, shown.scale) is not None
    at = _ticks(low, high, whole=shown.log)
    return {
        "cmin": low,
        "cmax": high,
        "colorscale": [list(pair) for pair in TWO_WAY] if two else ONE_WAY,
        "colorbar": {
            "tickvals": at,
            "ticktext": [_tick(v, shown) for v in at],
            "thickness": 12,
            "outlinewidth": 0,
            "xpad": 6,
        },
    }


def _ticks(low: float, high: float, *, whole: bool) -> list[float]:
    if whole and high - low >= 1.5:
        step = max(1, math.ceil((high - low) / 6))
        first = math.ceil(low / step) * step
        return [float(v) for v in range(first, math.floor(high) + 1, step)]
    return [low + k * (high - low) / 4 for k in range(5)]


def _tick(height: float, shown: Heat) -> str:
    if shown.scale == "change" and not shown.log:
        return f"{height:+.3g}"
    if not shown.log:
        share = shown.statistic in ("dead", "saturated", "learning_share")
        return words.share(height) if share and height else f"{height:.3g}"
    sign = "×" if shown.scale == "change" else ""
    if height == 0:
        return f"{sign}1"
    if float(height).is_integer() and abs(height) > 2:
        return f"{sign}10<sup>{height:.0f}</sup>"
    return f"{sign}{10.0**height:.3g}"
