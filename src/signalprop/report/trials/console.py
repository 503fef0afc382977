"""Trials in a terminal: the verdict, the lines to paste, all candidates as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from rich.cells import cell_len
from rich.text import Text

from signalprop.cures.trials.result import Trial, Trials
from signalprop.report import words
from signalprop.report.lines import WIDEST, Lines, Prose, View, pad
from signalprop.report.trials import said

INDENT = 4
_STYLES = {"helps": "bold green", "better": "green", "worse": "red", "failed": "red"}


def view(trials: Trials) -> View:
    """Trials as rich prints them, at whatever width it is asked to."""
    return View(partial(_blocks, trials))


def _blocks(trials: Trials, width: int, plain: bool) -> Iterator[Prose | Lines]:
    for block in _all(trials, width):
        if plain:
            for line in [block.text] if isinstance(block, Prose) else block.lines:
                line.plain = line.plain.replace(" ± ", " +-").replace("±", "+-")
        yield block


def _all(trials: Trials, width: int) -> Iterator[Prose | Lines]:
    yield Prose(Text(said.headline(trials), style="bold"))
    best = trials.best
    if best is not None and said.code(best):
        yield Prose(Text(""))
        for line in said.code(best):
            for part in said.folded(line, width - INDENT):
                yield Prose(Text(part, style="cyan"), INDENT)
    yield Prose(Text(""))
    yield Prose(Text.assemble(("Before: ", "bold"), said.diagnosis(trials.before)))
    if trials.after is not None:
        yield Prose(Text.assemble(("After:  ", "bold"), said.diagnosis(trials.after)))
    yield Prose(Text(""))
    yield from _table(trials, min(width, WIDEST))
    rejected = said.reasons(trials)
    if rejected:
        yield Prose(Text(""))
        yield Prose(Text("Not tried:", style="bold"))
        for name, why in rejected:
            yield Prose(Text(f"{name}: {why}"), 2)
    yield Prose(Text(""))
    yield Prose(Text(f"Data: {words.clean(trials.data).rstrip('.')}."))
    for note in said.notes(trials):
        yield Prose(Text(f"Note: {note}", style="dim"))


# ---- the table -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Widths of the columns; a width of 0 leaves the column out."""

    name: int
    metric: int
    gain: int
    updates: int
    verdict: int

    @classmethod
    def fit(cls, width: int, rows: Sequence[tuple[str, ...]]) -> _Columns:
        name, *others = (max(cell_len(row[i]) for row in rows) for i in range(5))
        metric, gain, updates, verdict = (size + 2 for size in others)
        if width < 64:
            updates = 0
        room = width - metric - gain - updates - verdict
        return cls(max(10, min(name, room)), metric, gain, updates, verdict)


def _table(trials: Trials, width: int) -> Iterator[Prose | Lines]:
    shown = [*trials.trials, trials.untouched]
    heads = ("candidate", words.clean(trials.metric), "gain", "updates", "verdict")
    rows = [heads, *(_cells(t) for t in shown)]
    columns = _Columns.fit(width, rows)
    lines = list[Text]()
    for row, trial in zip(rows, (None, *shown), strict=True):
        lines += _row(row, trial, columns)
        if trial is not None and trial.failed:
            reason = words.shorten(words.clean(trial.failed), max(10, width - 4))
            lines.append(Text(f"    {reason}", style="dim"))
    yield Lines(lines)
    yield Prose(Text(said.legend(trials), style="dim"))


def _cells(trial: Trial) -> tuple[str, ...]:
    plain = trial.verdict == "untouched"
    return (
        words.clean(trial.name),
        said.mean(trial),
        "" if plain else said.gain(trial),
        said.updates(trial),
        "" if plain else trial.verdict,
    )


def _row(row: tuple[str, ...], trial: Trial | None, columns: _Columns) -> list[Text]:
    """A row; a name that is too long goes on below."""
    name, metric, gain, updates, verdict = row
    first, *more = textwrap.wrap(name, columns.name, subsequent_indent="  ") or [""]
    line = Text(pad(first, columns.name))
    line.append(metric.rjust(columns.metric), style="" if trial is None else "bold")
    line.append(gain.rjust(columns.gain))
    if columns.updates:
        line.append("  " + pad(updates, columns.updates - 2))
    style = "" if trial is None else _STYLES.get(trial.verdict, "")
    line.append("  " + verdict, style=style)
    line.rstrip()
    if trial is None:
        line.stylize("underline")
    elif trial.verdict == "untouched":
        line.stylize("dim")
    return [line, *(Text(part) for part in more)]
