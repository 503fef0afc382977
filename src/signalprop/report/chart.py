"""What the figures have in common: colours, axes of names, texts that are safe to show."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

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
ERROR = "#d94141"
#: a second sign of the kind besides its colour, where bars are wide enough to show it
PATTERNS = {"slope": "/", "normalisation": ".", "skip": "x", "attention": "\\", "pooling": "-"}
#: bars so many and fewer are wide enough for it
PATTERNED = 60
#: few enough ticks that they are whole powers of ten
LOG: dict[str, Any] = {"type": "log", "exponentformat": "power", "nticks": 5}
#: markers on every site up to so many
MARKED = 80


def finish(
    figure: go.Figure, identity: str, names: list[str], along: str, height: int, about: str
) -> None:
    """Give a figure of stacked panels its axis of names, its legend and its meta data.

    Args:
        figure: made by `make_subplots` with shared x axes.
        identity: by which the page links findings to it.
        names: what stands at x = 0, 1, 2, ...
        along: title of the x axis.
        height: in pixels.
        about: a sentence for people who do not see it.
    """
    shown = [safe(words.shorten(words.clean(name), 28)) for name in names]
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
        spikedash="solid",
        zeroline=False,
        automargin=True,
    )
    layout: Any = figure.layout
    last = max(int(a.removeprefix("xaxis") or 1) for a in layout if a.startswith("xaxis"))
    figure.update_xaxes(title_text=along, title_standoff=12, row=last, col=1)
    figure.update_yaxes(automargin=True, showspikes=False)
    figure.update_layout(
        template="none",
        height=height,
        hovermode="closest",
        hoverdistance=-1,
        hoverlabel={"align": "left"},
        font={"size": 12},
        barmode="relative",
        bargap=0.1,
        dragmode="zoom",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
        meta={"id": identity, "names": shown, "about": about},
    )
    for title in layout.annotations:
        if title.xref == "paper" and title.yref == "paper":
            title.update(x=0, xanchor="left", font={"size": 13})


def _ticks(count: int, wanted: int = 12) -> list[int]:
    """Every place up to a dozen, then about a dozen evenly spaced, first and last among them."""
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def hatched(shape: str) -> dict[str, Any]:
    """A pattern over the colour of a bar."""
    return {
        "shape": shape,
        "size": 6,
        "solidity": 0.2,
        "fillmode": "overlay",
        "fgcolor": "#ffffff",
        "fgopacity": 0.55,
    }


def safe(name: str) -> str:
    """A name as Plotly may print it."""
    # Plotly reads a subset of HTML in every text, links included
    return escape(words.shorten(words.clean(name), 64))


def positive(value: float) -> float | None:
    """What a log axis can show."""
    return value if 0 < value < math.inf else None


def finite(value: float | None) -> float | None:
    """What any axis can show."""
    return value if value is not None and math.isfinite(value) else None
