"""The terminal view: verdict, findings, the sum by kind, the ladder. Plain when piped.

Nothing is said by colour alone, and every line fits the width that the console reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from rich.cells import cell_len
from rich.text import Text

from signalprop.diagnosis.finding import Finding
from signalprop.report import words
from signalprop.report.contents import Contents, failure_sentence, measured
from signalprop.report.expected import of_rows, sentence
from signalprop.report.ladder import Ladder, Row, ladder
from signalprop.report.learned import share_of_rows
from signalprop.report.lines import WIDEST, Lines, Prose, View, pad
from signalprop.report.time.console import through

INDENT = 2

_STYLES = {
    "issue": "bold red",
    "tip": "bold magenta",
    "healthy": "bold green",
    "failed": "bold red",
}
_WORDS = {"issue": "ISSUE", "tip": "TIP", "healthy": "OK", "failed": "STOPPED"}


def view(shown: Contents) -> View:
    """A result as rich prints it, at whatever width it is asked to."""
    return View(partial(_blocks, shown))


def _blocks(shown: Contents, width: int, plain: bool) -> Iterator[Prose | Lines]:
    word, style = _WORDS.get(shown.state), _STYLES.get(shown.state, "bold")
    verdict = Text(words.clean(shown.verdict), style="bold")
    yield Prose(Text.assemble((f"{word}  ", style), verdict) if word else verdict)
    failure = failure_sentence(shown.trace)
    if failure:
        yield Prose(Text(failure))
    for finding in shown.findings:
        yield Prose(Text(""))
        yield from _finding(finding, shown.verdict)
    yield Prose(Text(""))
    if shown.split and not shown.results:  # else the verdict has said it
        yield Prose(Text.assemble(("Error signal: ", "bold"), shown.split, "."))
        yield Prose(Text(""))
    steps = ladder(shown.trace)
    if steps.rows:
        yield from _ladder(steps, shown, min(width, WIDEST), plain)
        yield Prose(Text(""))
    if shown.trace.time or shown.horizons:
        yield from through(shown.trace.time, shown.horizons, shown.lag, width, plain)
        yield Prose(Text(""))
    if shown.rules:
        yield Prose(Text(shown.rules))
    for note in shown.trace.notes:
        yield Prose(Text(f"Note: {words.clean(note)}", style="dim"))


def _finding(finding: Finding, verdict: str) -> Iterator[Prose]:
    yield Prose(
        Text.assemble(
            (f"{_WORDS[finding.severity]} ", _STYLES[finding.severity]),
            (f"{finding.code} {words.clean(finding.title)}", "bold"),
        )
    )
    told = finding.explanation in verdict  # nothing is said twice; "" is in every verdict
    lines = [] if told else [words.clean(finding.explanation)]
    if finding.sites:
        sites = words.listed([words.shorten(words.clean(s), 32) for s in finding.sites])
        lines.append(f"where: {sites}")
    lines.append(f"measured: {measured(finding)}")
    if finding.cures:
        lines.append("cures: " + ", ".join(words.clean(cure) for cure in finding.cures))
    for line in lines:
        yield Prose(Text(line), INDENT)


# ---- the ladder ------------------------------------------------------------------------------


class _Bars:
    """Bars on a log scale; what a folded row spans beyond its smallest value is hatched."""

    def __init__(self, values: Sequence[tuple[float, float] | None], cells: int, plain: bool):
        ends = [v for pair in values if pair is not None for v in pair if 0 < v < math.inf]
        self.high = max(ends, default=1.0)
        # a flat signal must not look like a cliff: never less than two decades
        self.low = min(min(ends, default=1.0), self.high / 100)
        self.cells, self.plain = cells, plain

    def __call__(self, pair: tuple[float, float] | None) -> str:
        if pair is None or math.isnan(pair[0]):
            return " " * self.cells
        low, high = (self._cells(v) for v in pair)
        full, hatched = ("#", "-") if self.plain else ("█", "░")
        return (full * low + hatched * (high - low)).ljust(self.cells)

    def _cells(self, value: float) -> int:
        if value <= 0:
            return 0
        if math.isinf(value):
            return self.cells
        log = math.log10(value / self.low) / math.log10(self.high / self.low)
        return 1 + round(log * (self.cells - 1))

    @property
    def scale(self) -> str:
        return f"{words.number(self.low)} to {words.number(self.high)}"


@dataclass(frozen=True)
class _Columns:
    """Widths of the ladder's columns; a width of 0 leaves the column out."""

    name: int
    bar: int
    activation: int
    delta: int
    decay: int
    theory: int
    kind: int
    learns: int

    @classmethod
    def fit(cls, width: int, wanted: int, spine: bool, learns: bool, theory: bool) -> _Columns:
        number = 9
        narrow = width < 72
        decay, kind = (10, 11) if spine else (0, 0)
        share = 9 if learns and width >= 90 else 0
        expected = 8 if spine and theory and width >= 90 else 0
        fixed = number * (1 if narrow else 2) + decay + expected + kind + share + 6
        bar = 6 if narrow else 7
        name = max(10, min(wanted, width - fixed - 2 * bar))
        # what the names do not need, the bars use
        bar = max(bar, min(24, (width - fixed - name) // 2))
        return cls(name, bar, 0 if narrow else number, number, decay, expected, kind, share)


def _ladder(steps: Ladder, shown: Contents, width: int, plain: bool) -> Iterator[Prose | Lines]:
    rows = steps.rows
    learns = share_of_rows(shown.learning, shown.trace, rows)
    theory = of_rows(shown.expected, rows)
    wanted = max(cell_len(f"{row.label} {row.op}") for row in rows)
    columns = _Columns.fit(width, wanted, steps.spine, learns is not None, bool(shown.expected))
    acts = _Bars([row.activations for row in rows], columns.bar, plain)
    deltas = _Bars([row.deltas for row in rows], columns.bar, plain)
    lines = [_head(columns, steps.spine)]
    for i, row in enumerate(rows):
        line = _label(row, columns.name)
        line.append("  " + acts(row.activations), style="cyan")
        if columns.activation:
            line.append(" " + pad(words.number(row.activation), columns.activation))
        line.append("  " + deltas(row.deltas), style="magenta")
        line.append(" " + pad(words.number(row.delta), columns.delta))
        if columns.decay:
            line.append(_decay(row).rjust(columns.decay))
            if columns.theory:
                line.append(_nats(theory[i]).rjust(columns.theory), style="dim")
            line.append("  " + pad(words.SHORT_KINDS.get(row.kind, row.kind), columns.kind - 2))
        if columns.learns and learns:
            line.append(words.share(learns[i]).rjust(columns.learns))
        line.rstrip()
        lines.append(line)
        if row.count > 1:
            lines.append(_fold(row, theory[i]))
    if steps.spine:
        before = cell_len(lines[0].plain[: lines[0].plain.index("decay") + 5]) - columns.decay
        total = pad("sum", before) + words.nats(shown.trace.decay).rjust(columns.decay)
        lines.append(Text(total, style="bold"))
    if not steps.spine:
        yield Prose(Text(f"All sites in execution order; {steps.why}:"))
    yield Lines(lines)
    scales = f"activation {acts.scale}, delta {deltas.scale}"
    yield Prose(Text(f"Bars: rms on a log scale; {scales}.", style="dim"))
    said = sentence(shown.expected)
    if said:
        yield Prose(Text(said))


def _head(columns: _Columns, spine: bool) -> Text:
    # decay and learns are numbers and stand right
    numbered = columns.activation + 1 if columns.activation else 0
    head = pad("block" if spine else "site", columns.name)
    head += "  " + pad("activation" if numbered else "activ.", columns.bar + numbered)
    head += "  " + pad("delta", columns.bar + 1 + columns.delta)
    if columns.decay:
        head += "decay".rjust(columns.decay) + "theory".rjust(columns.theory)[: columns.theory]
        head += "  " + pad("mainly", columns.kind - 2)
    if columns.learns:
        head += "learns".rjust(columns.learns)
    return Text(head.rstrip(), style="underline")


def _label(row: Row, width: int) -> Text:
    label = Text(words.shorten(row.label, width))
    room = width - cell_len(label.plain) - 1
    # a site of an operation has it in its name already
    if room >= 4 and not row.label.rpartition(".")[2].startswith(row.op):
        op = row.op if len(row.op) <= room else row.op[: room - 1] + "…"
        label.append(" " + op, style="dim")
    label.append(" " * max(0, width - cell_len(label.plain)))
    return label


def _fold(row: Row, theory: float | None) -> Text:
    if row.op == "various":
        return Text(f"  {row.count} more, not all alike", style="dim")
    text = f"  x{row.count} {'sites' if row.decay is None else 'blocks'} like this"
    if row.gone:
        text += ", nothing left of delta"
    elif row.each is not None and row.decay is not None and math.isfinite(row.decay):
        mean, low, high = (words.nats(v) for v in row.each)
        text += f", decay {mean} each" + (f" ({low} to {high})" if low != high else "")
        text += f", theory {words.nats(theory / row.count)}" if theory is not None else ""
    elif row.each is not None:
        text += ", in one of which delta becomes exactly zero" if row.decay == -math.inf else ""
    return Text(text, style="dim")


def _nats(value: float | None) -> str:
    return "" if value is None else words.nats(value)


def _decay(row: Row) -> str:
    if row.decay is None:
        return ""
    return "gone" if row.gone else words.nats(row.decay)
