"""Recorded runs in a terminal: verdict, alerts, the loss as a line, a coarse layer x step picture.

Nothing is said by colour alone, and every line fits the width that the console reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from signalprop.report import words
from signalprop.report.lines import Lines, Prose, View, pad
from signalprop.report.run import said
from signalprop.report.run.heat import INFINITE, ZERO, Heat, heat, limits
from signalprop.report.run.overview import Told
from signalprop.report.run.result import Recorded

#: rows and columns of the picture, alerts in full
ROWS, COLUMNS, ALERTS = 16, 72, 8
#: little to much, and the same where a terminal knows ASCII only
SPARKS, PLAIN_SPARKS = "▁▂▃▄▅▆▇█", "_.-~=*^#"
#: steps of a sequence of colours that reads on light and on dark
_COLOURS = ("#5b4b9a", "#3f6fa8", "#2e8f8a", "#4fae5b", "#b5a81e")
_STYLES = {"issue": "bold red", "tip": "bold magenta", "healthy": "bold green", "seen": "bold"}
_WORDS = {"issue": "ISSUE", "tip": "TIP", "healthy": "OK", "seen": "RECORDED"}


def view(shown: Recorded) -> View:
    """Runs as rich prints them, at whatever width it is asked to."""
    return View(partial(_blocks, shown))


def _blocks(shown: Recorded, width: int, plain: bool) -> Iterator[Prose | Lines]:
    name = _common(shown)
    for k, seen in enumerate(shown.seen):
        if k:
            yield Prose(Text(""))
        state = seen.state
        head = Text.assemble((f"{_WORDS[state]}  ", _STYLES[state]))
        head.append(f"{shown.names[k]}: {said.headline(seen)}", style="bold")
        yield Prose(head)
        facts = [f"{key} {value}" for key, value in said.facts(seen)]
        yield Prose(Text(", ".join(facts)), 2)
        for alert in sorted(seen.alerts, key=lambda a: (a.severity == "tip", a.since))[:ALERTS]:
            yield Prose(Text(""))
            yield from _alert(alert)
        if len(seen.alerts) > ALERTS:
            yield Prose(Text(f"and {len(seen.alerts) - ALERTS} more alerts"), 2)
        yield Prose(Text(""))
        yield Lines(list(_sparks(shown, k, width, plain)))
        if name is not None and name in seen.statistics and seen.last is not None:
            yield Prose(Text(""))
            yield from _picture(shown, k, name, width, plain)


def _alert(alert: Told) -> Iterator[Prose]:
    head = Text.assemble((f"{_WORDS[alert.severity]} ", _STYLES[alert.severity]))
    head.append(f"{alert.code} {alert.title}, {said.when(alert)}", style="bold")
    yield Prose(head)
    if alert.explanation:
        yield Prose(Text(alert.explanation), 2)
    if alert.sites:
        sites = words.listed([words.shorten(words.clean(s), 32) for s in alert.sites])
        yield Prose(Text(f"where: {sites}"), 2)
    if alert.measured:
        yield Prose(Text(f"measured: {alert.measured}"), 2)
    if alert.cures:
        yield Prose(Text("cures: " + ", ".join(alert.cures)), 2)


# ---- curves --------------------------------------------------------------------------------------


def _sparks(shown: Recorded, k: int, width: int, plain: bool) -> Iterator[Text]:
    scalars = list(shown.scalars[k].scalars.items())[:6]
    if not scalars:
        return
    room = max(8, min(14, max(len(name) for name, _ in scalars)))
    cells = max(10, min(60, width - room - 24))
    for name, (_, values) in scalars:
        line = Text(pad(words.shorten(words.clean(name), room), room) + "  ")
        line.append(spark(values, cells, plain=plain), style="cyan")
        ends = [words.number(float(v)) for v in (values[0], values[-1])]
        line.append("  " + f"{ends[0]} to {ends[1]}"[:20])
        line.rstrip()
        yield line


def spark(values: Sequence[float] | NDArray[np.float64], cells: int, *, plain: bool = False) -> str:
    """A curve as one line of signs; `!` where a value was not finite.

    Args:
        values: the curve.
        cells: signs, at most.
        plain: whether ASCII must do.

    Returns:
        The line; of joined values, the one that is farthest from the middle of all.
    """
    signs = PLAIN_SPARKS if plain else SPARKS
    known = np.asarray(values, dtype=np.float64)
    finite = known[np.isfinite(known)]
    if not len(finite):
        return "!" * min(cells, len(known))
    low, high = float(finite.min()), float(finite.max())
    middle = float(np.median(finite))
    line = ""
    for part in np.array_split(known, min(cells, len(known))):
        if not np.isfinite(part).all():
            line += "!"
            continue
        value = float(part[np.abs(part - middle).argmax()])
        share = (value - low) / (high - low) if high > low else 0.5
        line += signs[min(len(signs) - 1, int(share * len(signs)))]
    return line


# ---- the picture ---------------------------------------------------------------------------------


def _picture(
    shown: Recorded, k: int, name: str, width: int, plain: bool
) -> Iterator[Prose | Lines]:
    """A heat map of signs; the same scale for all runs."""
    room = min(26, max(12, width // 3))
    columns = max(10, min(COLUMNS, width - room - 2))
    maps = [heat(run, name, columns=columns) for run in shown.runs if name in run.statistics]
    low, high = limits(maps, beyond=0.1, decades=2.0)  # eight signs are few
    mine = heat(shown.runs[k], name, columns=columns)
    signs = PLAIN_SPARKS if plain else SPARKS
    lines = [Text(f"{said.label(name)}, sites down, steps across", style="bold")]
    for label, members in groups(mine.sites, ROWS):
        line = Text(pad(words.shorten(words.clean(label), room), room) + "  ")
        for column in range(len(mine.first)):
            sign, style = _cell(mine, members, column, (low, high), signs)
            line.append(sign, style=style)
        lines.append(line)
    first, last = (f"{step:,}" for step in (mine.first[0], mine.last[-1]))
    gap = " " * max(1, len(mine.first) - len(first) - len(last))
    lines.append(Text(" " * (room + 2) + first + gap + last, style="dim"))
    yield Lines(lines)
    ends = [words.number(10.0**v if mine.log else v) for v in (low, high)]
    text = f"{signs} from {ends[0]} or less to {ends[1]} or more"
    text += f"{' on a log scale' if mine.log else ''}; 0: zero, !: not finite, ?: not measured. "
    yield Prose(Text(text + "A row shows the site that is farthest from the middle.", style="dim"))


def _cell(
    shown: Heat,
    members: NDArray[np.int64],
    column: int,
    scale: tuple[float, float],
    signs: str,
) -> tuple[str, str]:
    special = shown.special[members, column]
    if (special == INFINITE).any():
        return "!", "bold red"
    heights = shown.height[members, column]
    heights = heights[np.isfinite(heights)]
    if (special == ZERO).any():
        return "0", "dim"
    if not len(heights):
        return "?", "dim"
    low, high = scale
    middle = (low + high) / 2
    value = float(heights[np.abs(heights - middle).argmax()])
    share = (value - low) / (high - low) if high > low else 0.5
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.5
    place = min(len(signs) - 1, int(share * len(signs)))
    return signs[place], _COLOURS[min(len(_COLOURS) - 1, int(share * len(_COLOURS)))]


def groups(names: Sequence[str], most: int) -> list[tuple[str, NDArray[np.int64]]]:
    """Neighbouring sites that are shown as one row: by module where that gives few rows.

    Args:
        names: of all sites.
        most: rows, at most.

    Returns:
        Label and indices of each.
    """
    if len(names) <= most:
        return [(name, np.array([k])) for k, name in enumerate(names)]
    parts = [name.split(".") for name in names]
    for depth in range(max(len(p) for p in parts), 0, -1):
        made: list[tuple[str, list[int]]] = []
        for k, part in enumerate(parts):
            label = ".".join(part[:depth])
            if made and made[-1][0] == label:
                made[-1][1].append(k)
            else:
                made.append((label, [k]))
        if len(made) <= most:
            if len(made) < 3:
                break
            return [(label, np.asarray(members)) for label, members in made]
    chunks = np.array_split(np.arange(len(names)), most)
    return [(f"{names[c[0]]} (+{len(c) - 1})" if len(c) > 1 else names[c[0]], c) for c in chunks]


def _common(shown: Recorded) -> str | None:
    """The statistic of the picture: the first choice among those that all runs have, or any."""
    known = [seen.statistics for seen in shown.seen]
    common = [name for name in known[0] if all(name in names for names in known)]
    return said.chosen(common or known[0])
