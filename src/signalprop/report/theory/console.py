"""Theory in a terminal: the phase diagram as a map of characters, the defaults as a table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from rich.text import Text

from signalprop.report import words
from signalprop.report.lines import Lines, Prose, View, pad
from signalprop.report.theory import said
from signalprop.report.theory.result import PhaseView
from signalprop.theory.defaults import Default

ROWS, COLUMNS, MARGIN = 17, 66, 8
#: trainable depths from which a darker sign stands
DEPTHS = 10, 30, 100, 300
_STYLES = {"ordered": "blue", "critical": "bold", "chaotic": "red"}


def phase(shown: PhaseView) -> View:
    """A phase diagram as rich prints it."""
    return View(partial(_phase, shown))


def _phase(shown: PhaseView, width: int, plain: bool) -> Iterator[Prose | Lines]:
    yield Prose(Text(said.headline(shown), style="bold"))
    if shown.point is not None:
        yield Prose(Text(said.point_sentence(shown.point, shown.depth)))
    yield Prose(Text(""))
    yield Lines(_map(shown, min(COLUMNS, width - MARGIN - 2), plain))
    yield Prose(Text(_legend(shown, plain), style="dim"))
    if shown.point is not None:
        yield Prose(Text(""))
        for name, value, meaning in said.facts(shown.point, shown.depth):
            line = Text.assemble(pad(name, 14), (value.rjust(9), "bold"), ("  " + meaning, "dim"))
            yield Lines([line])


def drawn(shown: PhaseView) -> list[Text]:
    """The map and how to read it, for places that are not a terminal."""
    return [*_map(shown, COLUMNS, plain=False), Text(_legend(shown, plain=False))]


def _signs(shown: PhaseView, plain: bool) -> tuple[str, Sequence[int]]:
    if shown.depth is not None:
        return (" #" if plain else " ▒"), (shown.depth,)
    return (" .:+#" if plain else " ░▒▓█"), DEPTHS


def _map(shown: PhaseView, columns: int, plain: bool) -> list[Text]:
    d = shown.diagram
    signs, depths = _signs(shown, plain)
    down = np.round(np.linspace(len(d.bias_variances) - 1, 0, ROWS)).astype(int)
    across = np.round(np.linspace(0, len(d.weight_variances) - 1, columns)).astype(int)
    depth = np.nan_to_num(d.trainable_depth, nan=0.0, posinf=1e300)
    place = partial(_place, d.weight_variances, across)
    grid: list[list[tuple[str, str]]] = []
    for i in down:
        row = []
        for j in across:
            kind = str(d.phase[i, j])
            level = sum(depth[i, j] >= limit for limit in depths)
            sign = {"vanishing": "v", "unbounded": "u", "unsettled": "?"}.get(kind, signs[level])
            row.append((sign, _STYLES.get(kind, "dim")))
        edge = d.critical[i]
        if math.isfinite(edge) and edge <= d.weight_variances[-1]:
            row[place(edge)] = ("|" if plain else "┃", "bold")
        grid.append(row)
    _names(grid, d.phase[np.ix_(down, across)])
    if shown.point is not None:
        x, y = shown.point.weight_variance, shown.point.bias_variance
        i = int(np.abs(d.bias_variances[down] - y).argmin())
        grid[i][place(x)] = ("X", "bold reverse")
    lines = [Text("sigma_b^2", style="dim")]
    for place_down, (row, i) in enumerate(zip(grid, down, strict=True)):
        label = f"{d.bias_variances[i]:.3g}" if place_down % 4 == 0 else ""
        line = Text(label.rjust(MARGIN - 2) + (" |" if plain else " │"))
        for sign, style in row:
            line.append(sign, style=style)
        lines.append(line)
    corner, along = "+-" if plain else "└─"
    lines.append(Text(" " * (MARGIN - 1) + corner + along * columns))
    lines.append(Text(" " * MARGIN + _axis(d.weight_variances[across])))
    lines.append(Text("sigma_w^2".rjust(MARGIN + columns), style="dim"))
    return lines


def _place(axis: np.ndarray, across: np.ndarray, value: float) -> int:
    return int(np.abs(axis[across] - value).argmin())


def _names(grid: list[list[tuple[str, str]]], phases: np.ndarray) -> None:
    """Write the name of every phase into the middle of its region, where there is room."""
    for kind in ("ordered", "chaotic", "vanishing", "unbounded"):
        name = f" {kind} "
        middle = len(phases) // 2
        inside = [np.flatnonzero(row == kind) for row in phases]
        room = [i for i, places in enumerate(inside) if len(places) >= len(name) + 4]
        if room:
            i = min(room, key=lambda i: abs(i - middle))
            j = int(inside[i][len(inside[i]) // 2]) - len(name) // 2
            j = max(0, min(j, len(grid[i]) - len(name)))
            grid[i][j : j + len(name)] = [(c, "bold") for c in name]


def _axis(values: np.ndarray) -> str:
    """About five numbers under their columns."""
    signs = [" "] * len(values)
    for j in np.round(np.linspace(0, len(values) - 6, 5)).astype(int):
        text = f"{values[j]:.3g}"
        signs[j : j + len(text)] = list(text)
    return "".join(signs[: len(values)])


def _legend(shown: PhaseView, plain: bool) -> str:
    signs, depths = _signs(shown, plain)
    line = "|" if plain else "┃"
    if shown.depth is not None:
        text = f"{signs[1]} bears {words.plural(shown.depth, 'layer')} (6 xi_c)"
    else:
        steps = ", ".join(f"{s} {n}" for s, n in zip(signs[1:], depths, strict=True))
        text = f"Trainable depth 6 xi_c in layers, from: {steps}"
    text += f"; {line} edge of chaos"
    kinds = set(np.unique(shown.diagram.phase))
    text += "; v activations go to zero" if "vanishing" in kinds else ""
    text += "; u they grow without bound" if "unbounded" in kinds else ""
    text += "; X the point that was asked for" if shown.point is not None else ""
    return text + "."


# ---- defaults --------------------------------------------------------------------------------


def defaults(rows: Sequence[Default]) -> View:
    """What torch's defaults and gains mean, as a table; where it is narrow, as paragraphs."""
    return View(partial(_defaults, rows))


HEADS = ("", "sigma_w^2", "q*", "chi_1", "xi_c", "6 xi_c", "per layer")


def _defaults(rows: Sequence[Default], width: int, plain: bool) -> Iterator[Prose | Lines]:
    yield Prose(
        Text("What torch's defaults and gains mean for a deep fully connected network", "bold")
    )
    sizes = [max(20, min(44, width - 54)), 9, 9, 8, 9, 9, 10]
    head = pad(HEADS[0], sizes[0])
    head += "".join(name.rjust(size) for name, size in zip(HEADS[1:], sizes[1:], strict=True))
    yield Prose(Text(""))
    yield Lines([Text(head, style="underline")])
    for activation in dict.fromkeys(row.activation for row in rows):
        yield Lines([Text(activation, style="bold")])
        for row in rows:
            if row.activation == activation:
                yield Lines([_line(row, sizes)])
                yield Prose(Text(f"{row.verdict}.", style="dim"), 4)
    yield Prose(Text(""))
    yield Prose(
        Text(
            "per layer: factor on |delta| on its way back. 6 xi_c: trainable depth in layers. "
            "none: activations vanish or grow, so there is no such depth.",
            style="dim",
        )
    )


def _line(row: Default, sizes: Sequence[int]) -> Text:
    name, *numbers = cells_of(row)
    if len(name) > sizes[0] - 3:  # a call says no more than its name
        name = re.sub(r"gain = .* = (\S+)$", r"torch's gain \1", name).partition(": ")[0]
    line = pad("  " + words.shorten(name, sizes[0] - 3), sizes[0])
    line += "".join(cell.rjust(size) for cell, size in zip(numbers, sizes[1:], strict=True))
    return Text(line)


def cells_of(row: Default) -> list[str]:
    """A row of the table as text."""
    return [
        row.initialisation,
        f"{row.weight_variance:.3g}",
        words.number(row.q_star),
        f"{row.chi_1:.3g}",
        said.layers(row.xi_c),
        said.layers(row.trainable_depth),
        f"{row.factor:.3g}",
    ]
