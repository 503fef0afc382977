"""The horizon in a terminal: how far credit reaches, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from signalprop.report import words
from signalprop.report.lines import WIDEST, Lines, Prose, View
from signalprop.report.time.console import COURSE, LEAST, NARROW, below, line, scale, spark
from signalprop.report.time.horizon import said
from signalprop.report.time.horizon.curves import Curve, centre, curves, drawn
from signalprop.report.time.places import Group, groups
from signalprop.report.time.said import nats

if TYPE_CHECKING:
    from signalprop.recurrent.horizon.result import Horizons

HEADS = ("layer", "cell", "longest", "to 1/e", "to rounding", "nats/step")


def view(found: Horizons) -> View:
    """Horizons as rich prints them, at whatever width it is asked to."""
    return View(partial(_blocks, found))


def _blocks(found: Horizons, width: int, plain: bool) -> Iterator[Prose | Lines]:
    yield Prose(Text(said.headline(found), style="bold"))
    about = f"{words.clean(found.model)}, {words.plural(found.samples, 'sample')}"
    yield Prose(
        Text(f"{about}; a random error at the last step alone, on its way back", style="dim")
    )
    mine = curves(found)
    if mine:
        yield Prose(Text(""))
        yield Lines(_table(groups(mine), min(width, WIDEST), plain))
        yield Prose(Text(_legend(mine), style="dim"))
    for note in found.notes:
        yield Prose(Text(f"Note: {words.clean(note)}", style="dim"))


def _table(found: Sequence[Group[Curve]], width: int, plain: bool) -> list[Text]:
    cells = [_cells(group, width < NARROW) for group in found]
    sizes = [max(len(head), *(cell_len(row[i]) for row in cells)) for i, head in enumerate(HEADS)]
    if width < NARROW:  # what matters most stays
        sizes[1] = sizes[2] = 0
    others = sum(size + 2 for size in sizes[1:] if size)
    sizes[0] = max(8, min(sizes[0], width - others - LEAST - 2))
    room = max(0, min(COURSE, width - sizes[0] - others - 2))
    room = room if room >= LEAST else 0
    until = drawn([curve for group in found for curve in group.members])
    credit = [v for group in found for v in group.members[0].horizon.credit]
    floor = min(group.members[0].horizon.floor for group in found)
    low, high = scale([v for v in credit if v >= floor])
    result = [line(HEADS, sizes, "credit" if room else "")]
    result[0].stylize("underline")
    for group, texts in zip(found, cells, strict=True):
        # a folded row shows the first of its curves
        course = [0.0 if v < floor else v for v in group.members[0].course(room, until)]
        signs = spark(course, low, high, plain) if room else ""
        result.append(line((words.shorten(texts[0], sizes[0]), *texts[1:]), sizes, signs))
        result += below(_told(group), width)
    return result


def _cells(group: Group[Curve], narrow: bool) -> tuple[str, ...]:
    mine = [curve.horizon for curve in group.members]
    longest = max(curve.longest for curve in group.members)
    speed = centre([curve.rate for curve in mine])
    ops = {curve.op for curve in mine}
    return (
        group.label.replace(" reverse", " rev.") if narrow else group.label,
        ops.pop() if len(ops) == 1 else "various",
        f"{longest:,}",
        said.until([curve.steps for curve in mine], longest),
        said.until([curve.silent for curve in mine], longest),
        "" if speed is None else nats(speed),
    )


def _told(group: Group[Curve]) -> list[str]:
    told = []
    count = len(group.members)
    if count > 1:
        told.append(f"x{count} like this" if group.alike else f"{count} more, not all alike")
    told.append(said.steps_do([c.gains for c in group.members if c.gains is not None]))
    told.append(said.grow([c.exponents for c in group.members if c.exponents is not None]))
    return told


def _legend(mine: Sequence[Curve]) -> str:
    attending = [curve for curve in mine if curve.horizon.op == "attention"]
    if len(attending) < len(mine):
        text = "Credit at lag k: size of the error k steps back over that at the last step"
        text += "; of attention: over that of the last position. " if attending else ". "
    else:
        text = "Credit at lag k: what the output at the last position owes the input k positions "
        text += "back, over what it owes its own. "
    text += f"To 1/e, and to {said.rounding(mine[0].horizon)}: the largest lag with at least so "
    text += f"much. Course: from lag 0 to {drawn(mine):,}, log scale"
    silent = any(curve.horizon.silent is not None for curve in mine)
    return text + (", 0 is lost in rounding." if silent else ".")
