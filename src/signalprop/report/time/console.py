"""The time axis in a terminal: what becomes of the error signal, layer by layer."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from signalprop.capture.time import Horizon, TimeAxis
from signalprop.report import words
from signalprop.report.lines import WIDEST, Lines, Prose, pad
from signalprop.report.time import said
from signalprop.report.time.horizon import said as credit
from signalprop.report.time.horizon.curves import bare
from signalprop.report.time.rows import Row, lines, rows

#: widest course, and the narrowest that says something
COURSE, LEAST = 40, 6
#: below so many columns some are left out
NARROW = 64
INDENT = "  "


def through(
    axes: Sequence[TimeAxis],
    horizons: Sequence[Horizon],
    lag: int | None,
    width: int,
    plain: bool,
) -> Iterator[Prose | Lines]:
    """The part of a trace's view that tells about time.

    Args:
        axes: the time axis of every layer, direction and call.
        horizons: how far credit reaches, where it was measured.
        lag: over how many steps the task needs memory, where it is known.
        width: columns.
        plain: whether the console knows ASCII only.

    Yields:
        Sentences and lines; nothing where there is no time axis.
    """
    found = lines(axes)
    if found:
        yield Prose(Text.assemble(("Through time: ", "bold"), said.headline(found)))
        yield Lines(_table(rows(found), min(width, WIDEST), plain))
        yield Prose(Text(_legend([line.axis for line in found]), style="dim"))
    if horizons:
        yield Prose(Text(credit.sentence(bare(horizons), lag)))


def spark(values: Sequence[float], low: float, high: float, plain: bool) -> str:
    """Values on a log scale, one sign each: 0 is exactly zero, ! not finite.

    Args:
        values: what to draw.
        low: what the lowest sign means.
        high: what the highest does.
        plain: whether the console knows ASCII only.

    Returns:
        As many signs as values.
    """
    signs = ".:-=+*#" if plain else "▁▂▃▄▅▆▇█"
    span = math.log(high / low) if high > low > 0 else 0.0
    made = ""
    for value in values:
        if not math.isfinite(value):
            made += "!"
        elif value <= 0:
            made += "0"
        else:
            share = math.log(value / low) / span if span else 1.0
            made += signs[round(min(1.0, max(0.0, share)) * (len(signs) - 1))]
    return made


def scale(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a log scale; never less than two decades, as a flat course is not a cliff."""
    known = [v for v in values if 0 < v < math.inf]
    high = max(known, default=1.0)
    return min(min(known, default=1.0), high / 100), high


def _table(found: Sequence[Row], width: int, plain: bool) -> list[Text]:
    cells = [_cells(row) for row in found]
    if width < NARROW:
        cells = [(row[0].replace(" reverse", " rev."), *row[1:]) for row in cells]
    heads = ("layer", "cell", "steps", "first", "last", "nats/step")
    sizes = [max(len(head), *(cell_len(row[i]) for row in cells)) for i, head in enumerate(heads)]
    if width < NARROW:  # what matters most stays
        sizes[1] = sizes[2] = 0
    others = sum(size + 2 for size in sizes[1:] if size)
    sizes[0] = max(8, min(sizes[0], width - others - LEAST - 2))
    room = max(0, min(COURSE, width - sizes[0] - others - 2))
    low, high = scale([v for row in found for v in row.course(COURSE)])
    result = [line(heads, sizes, "course" if room >= LEAST else "")]
    result[0].stylize("underline")
    for row, texts in zip(found, cells, strict=True):
        course = spark(row.course(room), low, high, plain) if room >= LEAST else ""
        result.append(line((words.shorten(texts[0], sizes[0]), *texts[1:]), sizes, course))
        result += below(_told(row), width)
    return result


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.label,
        row.op,
        row.steps,
        words.number(row.first),
        words.number(row.last),
        "" if row.speed is None else said.nats(row.speed),
    )


def line(texts: Sequence[str], sizes: Sequence[int], course: str) -> Text:
    """One line of a table.

    Args:
        texts: one of every column: a name, a word, numbers.
        sizes: their widths; 0 leaves a column out.
        course: what stands behind them.

    Returns:
        The line.
    """
    made = Text(pad(texts[0], sizes[0]))
    for i, (text, size) in enumerate(zip(texts[1:], sizes[1:], strict=True)):
        if size:
            made.append("  " + (pad(text, size) if i == 0 else text.rjust(size)))
    if course:
        made.append("  " + course, style="" if course.isalpha() else "magenta")
    made.rstrip()
    return made


def _told(row: Row) -> list[str]:
    """What is folded into a row, and its gates."""
    told = []
    count = len(row.lines)
    if count > 1:
        text = f"x{count} like this" if row.alike else f"{count} more, not all alike"
        if row.rates:
            low, high = said.nats(min(row.rates)), said.nats(max(row.rates))
            text += f", {low} to {high} nats per step" if low != high else ""
        told.append(text)
    calls = {line.calls for line in row.lines}
    if calls != {1}:
        each = " each" if count > 1 else ""
        told.append(f"{max(calls)} calls{each}, one going on from the other")
    if cell := said.cell(row):
        told.append(cell)
    return ["; ".join(told), said.gates(row.gates)]


def below(told: Sequence[str], width: int) -> list[Text]:
    """What stands below a row: a paragraph each, empty ones left out.

    Args:
        told: the paragraphs.
        width: columns.

    Returns:
        Lines.
    """
    return [
        Text(part, style="dim")
        for text in told
        if text
        for part in textwrap.wrap(
            text, width, initial_indent=INDENT, subsequent_indent=INDENT + "  "
        )
    ]


def _legend(axes: Sequence[TimeAxis]) -> str:
    low, high = scale([v for axis in axes for v in axis.h])
    text = f"rms of dL/dh at the first and the last step seen; course: from {words.number(low)} "
    text += f"to {words.number(high)} on a log scale"
    text += ", 0 is exactly zero" if any(v == 0 for axis in axes for v in axis.h) else ""
    text += ", ! not finite" if any(not math.isfinite(v) for a in axes for v in a.h) else ""
    text += "."
    if any(axis.reverse for axis in axes):
        text += " Steps are counted the way a layer runs."
    if any(gate.remembers is not None for axis in axes for gate in axis.gates):
        text += " A gate holds what it keeps until 1/e of it is left."
    return text
