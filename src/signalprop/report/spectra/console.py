"""Spectra in a terminal: the whole in words, its numbers, the blocks as bars on a log axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from rich.cells import cell_len
from rich.text import Text

from signalprop.jacobian.spectra import DeepSpectrum, Spectra
from signalprop.report import words
from signalprop.report.lines import WIDEST, Lines, Prose, View, pad
from signalprop.report.spectra import said
from signalprop.report.spectra.rows import Row, centre, rows

NUMBER = 9
#: columns of the line that shows the log-spectrum
SPARK = 60


def view(spectra: Spectra) -> View:
    """Spectra as rich prints them, at whatever width it is asked to."""
    return View(partial(_blocks, spectra))


def _blocks(spectra: Spectra, width: int, plain: bool) -> Iterator[Prose | Lines]:
    s = spectra.between
    yield Prose(Text(said.headline(spectra), style="bold"))
    yield Prose(Text(f"{_looked_at(spectra)}; {words.clean(s.method)}", style="dim"))
    yield Prose(Text(""))
    yield Lines(_facts(spectra, width))
    yield Prose(Text(""))
    deep = spectra.deep
    if deep is not None and deep.log_values.shape[1]:
        yield Prose(Text(said.deep_sentence(deep)))
        if deep.log_values.shape[1] > 1:
            yield Lines([_spark(deep, width, plain)])
        yield Prose(Text(""))
    if spectra.blocks:
        yield from _ladder(spectra, min(width, WIDEST), plain)
        yield Prose(Text(""))
    certificate = said.certificate_sentence(spectra)
    if certificate:
        yield Prose(Text(certificate))
    for sentence in said.skipped_sentences(spectra):
        yield Prose(Text(sentence))
    for note in spectra.notes:
        yield Prose(Text(f"Note: {words.clean(note)}", style="dim"))


def _looked_at(spectra: Spectra) -> str:
    s = spectra.between
    model = words.clean(spectra.model)
    return f"{model}, J of {s.rows} × {s.columns}, {words.plural(spectra.samples, 'sample')}"


def _facts(spectra: Spectra, width: int) -> list[Text]:
    found = said.facts(spectra)
    spread = max([len(fact.spread) for fact in found] + [0])
    lines = []
    if spread:
        lines.append(Text(" " * 23 + "over the samples", style="dim"))
    for fact in found:
        line = Text(pad(fact.name, 12))
        line.append(fact.value.rjust(9), style="bold")
        if spread and width >= 60:
            line.append("  " + pad(fact.spread, max(spread, 16)))
        if cell_len(line.plain) + 2 + len(fact.meaning) <= width:
            line.append("  " + fact.meaning, style="dim")
        line.rstrip()
        lines.append(line)
    return lines


def _spark(deep: DeepSpectrum, width: int, plain: bool) -> Text:
    """The log-spectrum in one line, largest first; as high as a value is large."""
    values = np.median(np.where(np.isneginf(deep.log_values), -1e300, deep.log_values), axis=0)
    cells = min(SPARK, width - 4, len(values))
    # as many values to every cell, the first and the last among those shown
    at = np.round(np.linspace(0, len(values) - 1, cells)).astype(int)
    shown = values[at]
    finite = shown[shown > -1e299]
    signs = " .:-=+*#" if plain else "▁▂▃▄▅▆▇█"
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    step = (high - low) / (len(signs) - 1) or 1.0
    line = "".join("0" if v < -1e299 else signs[round((v - low) / step)] for v in shown)
    return Text.assemble(("1 ", "dim"), (line, "cyan"), (f" {len(values)}", "dim"))


# ---- the ladder ------------------------------------------------------------------------------


class _Axis:
    """A log axis with a place for 1; what is zero stands at its left end."""

    def __init__(self, quantiles: Sequence[Sequence[float]], cells: int, plain: bool) -> None:
        seen = [v for q in quantiles for v in q if 0 < v < math.inf]
        self.low = min([*seen, 1.0])
        self.high = max([*seen, 1.0])
        if self.high < 100 * self.low:  # a narrow spectrum must not look like a wide one
            middle = math.sqrt(self.low * self.high)
            self.low, self.high = middle / 10, middle * 10
        # ends that read well
        self.low, self.high = _round(self.low, math.floor), _round(self.high, math.ceil)
        self.cells, self.plain = cells, plain

    def cell(self, value: float) -> int:
        """In which cell a value stands."""
        if math.isnan(value) or value <= self.low:
            return 0
        share = math.log(min(value, self.high) / self.low) / math.log(self.high / self.low)
        return min(self.cells - 1, round(share * (self.cells - 1)))

    def bar(self, quantiles: Sequence[float]) -> Text:
        """5 to 95% thin, 25 to 75% thick, a mark at the median, and where 1 is."""
        thin, thick, mark, one, zero = "-=o|<" if self.plain else "─━●│◂"
        a, b, m, c, d = (self.cell(q) for q in quantiles)
        signs = [" "] * self.cells
        signs[self.cell(1.0)] = one
        for first, last, sign in ((a, d, thin), (b, c, thick), (m, m, mark)):
            signs[first : last + 1] = [sign] * (last + 1 - first)
        if quantiles[0] <= 0 and m > 0:
            signs[0] = zero
        return Text("".join(signs), style="cyan")

    @property
    def head(self) -> str:
        """The scale: both ends, and where 1 is."""
        left, right = words.number(self.low), words.number(self.high)
        signs = list(left + " " * (self.cells - len(left) - len(right)) + right)
        one = self.cell(1.0)
        if one > 0 and all(signs[i] == " " for i in range(one - 1, min(one + 2, self.cells))):
            signs[one] = "1"
        return "".join(signs)


@dataclass(frozen=True)
class _Columns:
    """Widths of the columns; a width of 0 leaves the column out."""

    name: int
    bar: int
    largest: int
    square: int
    condition: int
    branch: int

    @classmethod
    def fit(cls, width: int, wanted: int, condition: bool, branch: bool) -> _Columns:
        narrow = width < 72
        square = 0 if narrow else NUMBER
        at_end = NUMBER + 2 if condition and width >= 56 else 0
        residual = NUMBER - 1 if branch and width >= 64 else 0
        fixed = NUMBER + square + at_end + residual + 2
        name = max(10, min(wanted, width - fixed - 20))
        return cls(name, max(8, width - fixed - name), NUMBER, square, at_end, residual)


def _ladder(spectra: Spectra, width: int, plain: bool) -> Iterator[Prose | Lines]:
    found = rows(spectra.blocks)
    quantiles = [row.quantiles for row in found]
    columns = _Columns.fit(
        width,
        max(cell_len(row.label) for row in found),
        any(row.condition for row in found),
        any(row.branch for row in found),
    )
    axis = _Axis(quantiles, columns.bar, plain)
    head = pad("block", columns.name) + "  " + axis.head + "largest".rjust(columns.largest)
    for name, size in (
        ("mean sq.", columns.square),
        ("condition", columns.condition),
        ("s_1(X)", columns.branch),
    ):
        head += name.rjust(size) if size else ""
    lines = [Text(head, style="underline")]
    for row, values in zip(found, quantiles, strict=True):
        line = Text(pad(words.shorten(row.label, columns.name), columns.name) + "  ")
        line.append_text(axis.bar(values))
        numbers = (
            (centre(row.largest), columns.largest),
            (centre(row.mean_square), columns.square),
            (centre(row.condition), columns.condition),
            (centre(row.branch), columns.branch),
        )
        for value, size in numbers:
            line.append(_number(value).rjust(size) if size else "")
        line.rstrip()
        lines.append(line)
        if len(row.blocks) > 1:
            lines.append(_fold(row))
    yield Lines(lines)
    yield Prose(Text(_legend(found, quantiles), style="dim"))


def _legend(found: Sequence[Row], quantiles: Sequence[Sequence[float]]) -> str:
    text = "Bars: singular values on a log axis, 5 to 95% with a mark at the median; "
    text += "the upright line is 1."
    part = [row for row in found if not row.whole]
    if part:
        known = {block.spectrum.values.shape[1] for row in part for block in row.blocks}
        least, most = min(known), max(known)
        count = f"{least}" if least == most else f"{least} to {most}"
        where = "" if len(part) == len(found) else " where not all are known"
        text += f" Of the {count} largest only{where}."
    if any(q[0] <= 0 for q in quantiles):
        text += " At its left end: zero, or lost in rounding."
    return text


def _fold(row: Row) -> Text:
    count = len(row.blocks)
    if not row.alike:
        return Text(f"  {count} more, not all alike, largest {_span(row.largest)}", style="dim")
    every = {1: "", 2: ", every second", 3: ", every third"}.get(
        row.every, f", every {row.every}th"
    )
    return Text(f"  x{count} blocks like this{every}, largest {_span(row.largest)}", style="dim")


def _span(values: Sequence[float]) -> str:
    low, high = words.number(min(values)), words.number(max(values))
    return low if low == high else f"{low} to {high}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return "lost" if value == math.inf else words.number(value)


def _round(value: float, to: Callable[[float], int]) -> float:
    """The next number with one digit; a power of ten beyond four decades from 1."""
    unit = 10.0 ** math.floor(math.log10(value))
    if not 1e-4 < value < 1e4:
        return 10.0 ** to(math.log10(value))
    return to(round(value / unit, 9)) * unit
