"""Panels of a figure over steps: where each lies, and the axes that zoom together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from signalprop.report import words
from signalprop.report.chart import safe


@dataclass(frozen=True)
class Panel:
    """A place in a figure.

    Attributes:
        x: name of its x axis, as a trace says it: `x`, `x2`.
        y: name of its y axis.
        left: its left end, as a share of the width.
        right: its right end.
        bottom: its lower end, as a share of the height.
        top: its upper end.
    """

    x: str
    y: str
    left: float
    right: float
    bottom: float
    top: float

    @property
    def xaxis(self) -> str:
        """The key of its x axis in a layout."""
        return "xaxis" + self.x[1:]

    @property
    def yaxis(self) -> str:
        """The key of its y axis in a layout."""
        return "yaxis" + self.y[1:]


def stack(
    heights: Sequence[float], across: int, down: int, *, gap: float, between: float, apart: float
) -> list[list[Panel]]:
    """Groups of panels one below the other that share an x axis; groups lie in rows.

    Args:
        heights: of the panels of a group, in pixels, top to bottom.
        across: groups side by side.
        down: rows of groups.
        gap: between the panels of a group, in pixels.
        between: between rows of groups, in pixels.
        apart: between groups side by side, as a share of the width.

    Returns:
        Per group, row by row, its panels.
    """
    group = sum(heights) + gap * (len(heights) - 1)
    whole = total(heights, down, gap=gap, between=between)
    width = (1 - apart * (across - 1)) / across
    made: list[list[Panel]] = []
    axis = 0
    for row in range(down):
        for column in range(across):
            number = row * across + column
            top = whole - row * (group + between)
            panels = []
            for height in heights:
                axis += 1
                panels.append(
                    Panel(
                        _axis("x", number + 1),
                        _axis("y", axis),
                        column * (width + apart),
                        column * (width + apart) + width,
                        (top - height) / whole,
                        top / whole,
                    )
                )
                top -= height + gap
            made.append(panels)
    return made


def total(heights: Sequence[float], down: int, *, gap: float, between: float) -> float:
    """The height of all panels in pixels."""
    group = sum(heights) + gap * (len(heights) - 1)
    return down * group + (down - 1) * between


def steps(panels: Sequence[Panel], span: Sequence[float] | None, *, first: bool) -> dict[str, Any]:
    """The x axis of a group, below its last panel; all groups zoom together.

    Args:
        panels: of the group.
        span: the steps between which it lies; None for all there is.
        first: whether it is the first group, which the others follow.

    Returns:
        For a layout.
    """
    last = panels[-1]
    axis: dict[str, Any] = {
        "domain": [last.left, last.right],
        "anchor": last.y,
        "zeroline": False,
        "showgrid": False,
        "tickformat": ",d",
        "showspikes": True,
        "spikemode": "across",
        "spikesnap": "cursor",
        "spikethickness": 1,
        "spikedash": "solid",
        "automargin": "height",
        "title": {"text": "step", "standoff": 8},
    }
    if span is not None:
        axis["range"] = list(span)
    if not first:
        axis["matches"] = "x"
    return axis


def labels(names: Sequence[str], width: int = 28) -> list[str]:
    """Names of sites as a category axis can tell them apart: shortened, each once.

    Args:
        names: of the sites.
        width: characters of each.

    Returns:
        One each, safe to show.
    """
    short = [words.shorten(words.clean(name), width) for name in names]
    seen: dict[str, int] = {}
    made = []
    for name in short:
        count = seen.get(name, 0)
        seen[name] = count + 1
        made.append(safe(name) + (f" ({count + 1})" if count else ""))
    return made


def _axis(letter: str, number: int) -> str:
    return letter if number == 1 else f"{letter}{number}"
