"""One look into a run file: questions in SQL, and every answer checked before it is believed."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from signalprop.errors import SignalpropError
from signalprop.watching.file import schema
from signalprop.watching.file.levels import Bins, Floats
from signalprop.watching.file.result import Alert, News, Replay, Window
from signalprop.watching.file.schema import RunSite

#: bytes that an answer may always take; beyond, it may take a multiple of the file's own size
MODEST = 64 << 20
#: a bin, or a sample: number, first step, last step, samples
Span = tuple[int, int, int, int]


class Source:
    """Questions to a file within one transaction.

    What a damaged file answers raises ValueError or TypeError, which the caller makes one sentence.

    Args:
        connection: in a transaction.
        path: the file's name, for messages.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection, self.path = connection, path
        self.size = self.one("PRAGMA page_count") * self.one("PRAGMA page_size")

    def one(self, question: str, *args: Any) -> Any:
        """The single value of an answer."""
        return self.connection.execute(question, args).fetchone()[0]

    def rows(self, question: str, *args: Any, most: int = schema.MOST_ROWS) -> list[Any]:
        """An answer that is not larger than such a file can hold."""
        found: list[Any] = []
        size = 0
        for row in self.connection.execute(question, args):
            size += sum(len(v) for v in row if isinstance(v, str | bytes))
            found.append(row)
            if len(found) > most or size > MODEST + 4 * self.size:
                raise ValueError("too many rows")
        return found

    def sites(self) -> tuple[RunSite, ...]:
        """All sites."""
        rows = self.rows("SELECT id, name, op, kind, model FROM sites ORDER BY id")
        if [row[0] for row in rows] != list(range(len(rows))):
            raise ValueError("the sites have gaps")
        return tuple(RunSite(*map(text, row[1:])) for row in rows)

    def statistics(self) -> dict[str, tuple[int, bool]]:
        """Id of every statistic, and whether it is of log scale."""
        rows = self.rows("SELECT name, id, log FROM statistics ORDER BY id")
        return {text(name): (whole(key), bool(log)) for name, key, log in rows}

    # ---------------------------------------------------------------- values

    def stretch(
        self,
        statistic: int,
        sites: int,
        picked: Sequence[int] | None,
        ends: tuple[int, int],
        columns: int | None,
        *,
        log: bool,
    ) -> tuple[tuple[list[int], list[int], list[int]], Bins]:
        """Values of a statistic, at the resolution that comes nearest to what is asked for.

        Args:
            statistic: its id.
            sites: how many there are.
            picked: indices of those that are wanted; None for all.
            ends: the first step, and the one to end before.
            columns: wanted; the answer may have up to some four times as many.
            log: whether it is of log scale.

        Returns:
            First step, last step and samples of every column, and (columns, sites).

        Raises:
            SignalpropError: it would be more than memory should hold.
        """
        pieces = self._cover(self._level(*ends, columns), *ends)
        width = sites if picked is None else len(picked)
        cells = sum(len(spans) for _, spans in pieces) * width
        if 8 * cells > MODEST + 8 * self.size:
            raise SignalpropError(
                f"{self.path}: these values take {8 * cells / 1e9:.1f} GB; ask for some sites, for "
                "fewer steps, or with columns="
            )
        parts = []
        for level, spans in pieces:
            read = self._samples if level == 0 else self._bins
            parts.append(read(statistic, level, spans, sites, picked, log))
        bins = Bins.stack(parts) if parts else Bins.missing(0, width)
        spans = [span for _, found in pieces for span in found]
        return ([s[1] for s in spans], [s[2] for s in spans], [s[3] for s in spans]), bins

    def _level(self, begin: int, end: int, columns: int | None) -> int:
        """The coarsest level that has at least a quarter as many bins as columns are wanted."""
        if columns is None:
            return 0
        top = min(whole(self.one("SELECT coalesce(max(level), 0) FROM bins")), 40)
        for level in range(top, 0, -1):
            question = "SELECT count(*) FROM bins WHERE level=? AND first>=? AND first<?"
            if 4 * self.one(question, level, begin, end) >= columns:
                return level
        return 0

    def _spans(self, level: int, begin: int, end: int) -> list[Span]:
        if level == 0:
            question = (
                "SELECT number, step, step, 1 FROM steps WHERE step>=? AND step<? ORDER BY step"
            )
            found = self.rows(question, begin, end, most=1 << 26)
        else:
            question = (
                "SELECT bin, first, last, samples FROM bins WHERE level=? AND last>=? AND first<? "
                "ORDER BY first"
            )
            found = self.rows(question, level, begin, end, most=1 << 26)
        return found

    def _cover(self, level: int, begin: int, end: int) -> list[tuple[int, list[Span]]]:
        """A stretch at a level; before it, where that was thinned, coarser; after it, finer."""
        here = self._spans(level, begin, end)
        pieces = [(level, here)] if here else []
        edge = here[0][1] if here else end
        for coarser in range(level + 1, 41):
            older = [span for span in self._spans(coarser, begin, edge) if span[2] < edge]
            if older:
                pieces.insert(0, (coarser, older))
                edge = older[0][1]
        after = pieces[-1][1][-1][2] + 1 if pieces else begin
        for finer in range(level - 1, -1, -1):
            newer = self._spans(finer, after, end)
            if newer:
                pieces.append((finer, newer))
                after = newer[-1][2] + 1
        return pieces

    def _samples(
        self,
        statistic: int,
        level: int,
        spans: list[Span],
        sites: int,
        picked: Sequence[int] | None,
        log: bool,
    ) -> Bins:
        width = sites if picked is None else len(picked)
        values = np.full((len(spans), width), np.nan, np.float32)
        place = {span[1]: k for k, span in enumerate(spans)}
        question = "SELECT step, value FROM samples WHERE statistic=? AND step>=? AND step<=?"
        for step, blob in self.connection.execute(question, (statistic, spans[0][1], spans[-1][1])):
            if step in place:
                _fill(values[place[step]], _floats(blob, sites), picked)
        return Bins.of(values, log=log)

    def _bins(
        self,
        statistic: int,
        level: int,
        spans: list[Span],
        sites: int,
        picked: Sequence[int] | None,
        log: bool,
    ) -> Bins:
        made = Bins.missing(len(spans), sites if picked is None else len(picked))
        place = {span[0]: k for k, span in enumerate(spans)}
        for number, mean, low, high, count in self.connection.execute(
            "SELECT bin, mean, low, high, count FROM levels WHERE statistic=? AND level=? AND "
            "bin>=? AND bin<=?",
            (statistic, level, spans[0][0], spans[-1][0]),
        ):
            k = place.get(number)
            if k is None:
                continue
            means = _floats(mean, sites)
            counts = np.full(len(means), spans[k][3], np.uint32)
            if count is not None:
                counts = _floats(count, sites).view("<u4")
            _fill(made.mean[k], means, picked)
            _fill(made.low[k], _floats(low, sites), picked)
            _fill(made.high[k], _floats(high, sites), picked)
            _fill(made.count[k], counts, picked)
        return made

    # ---------------------------------------------------------------- all the rest

    def alerts(self, after: int) -> tuple[Alert, ...]:
        """Alerts with an id above one."""
        question = "SELECT step, code, severity, site, detail FROM alerts WHERE id>? ORDER BY id"
        return tuple(
            Alert(whole(step), text(code), text(severity), site and text(site),
                  schema.from_json(detail))
            for step, code, severity, site, detail in self.rows(question, after)
        )  # fmt: skip

    def windows(self) -> tuple[Window, ...]:
        """All windows."""
        values: dict[int, dict[str, bytes]] = {}
        for key, name, value in self.rows("SELECT window, statistic, value FROM window_values"):
            values.setdefault(key, {})[text(name)] = value
        made = []
        for key, step, reason, blob in self.rows("SELECT id, step, reason, steps FROM windows"):
            steps = np.frombuffer(_bytes(blob), "<i8")
            matrices = {
                name: np.frombuffer(_bytes(value), "<f4").reshape(len(steps), -1)
                for name, value in values.get(key, {}).items()
            }
            made.append(Window(whole(step), text(reason), steps, matrices))
        return tuple(made)

    def replays(self) -> tuple[Replay, ...]:
        """All replays."""
        states: dict[int, dict[str, bytes]] = {}
        for key, name, state in self.rows("SELECT replay, generator, state FROM replay_states"):
            states.setdefault(key, {})[text(name)] = _bytes(state)
        return tuple(
            Replay(whole(step), site and text(site), batch if batch is None else whole(batch),
                   states.get(key, {}), schema.from_json(detail))
            for key, step, site, batch, detail in self.rows(
                "SELECT id, step, site, batch, detail FROM replays ORDER BY id"
            )
        )  # fmt: skip

    def _ends(self) -> list[int]:
        ask = "SELECT coalesce(max(id), 0) FROM "
        return [whole(self.one(ask + table)) for table in ("samples", "scalars", "alerts")]

    def generation(self) -> str:
        """Another one where what was known of the rows does not hold any more."""
        rows = self.rows("SELECT value FROM meta WHERE key='_generation'")
        return text(rows[0][0]) if rows else ""

    def cursor(self) -> str:
        """The present end."""
        return ":".join([self.generation(), *map(str, self._ends())])

    def news(self, cursor: str | None, limit: int) -> News:
        """What came after a cursor; at most so many samples."""
        generation = self.generation()
        known, *given = (cursor or "").split(":")
        right = (
            known == generation
            and len(given) == 3
            and all(g.isascii() and g.isdigit() and len(g) < 19 for g in given)
        )
        at = [int(g) for g in given] if right else [0, 0, 0]
        sites, names = len(self.sites()), {v[0]: k for k, v in self.statistics().items()}
        values: dict[int, dict[str, Floats]] = {}
        most = max(len(names), min(limit * len(names), MODEST // max(4 * sites, 1)))
        found = self.rows(
            "SELECT id, step, statistic, value FROM samples WHERE id>? ORDER BY id LIMIT ?",
            at[0], most,
        )  # fmt: skip
        for key, step, statistic, blob in found:
            row = np.full(sites, np.nan, np.float32)
            _fill(row, _floats(blob, sites), None)
            values.setdefault(whole(step), {})[names[statistic]] = row
            at[0] = key
        scalars = self.rows(
            "SELECT id, step, name, value FROM scalars WHERE id>? ORDER BY id LIMIT 100000", at[1]
        )
        at[1] = scalars[-1][0] if scalars else at[1]
        alerts = self.alerts(at[2])
        ends = self._ends()
        at[2] = ends[2]
        return News(
            ":".join([generation, *map(str, at)]),
            not right and cursor is not None,
            at != ends,
            sites,
            values,
            tuple((whole(s), text(n), np.nan if v is None else float(v))
                  for _, s, n, v in scalars),
            alerts,
            len(self.rows("SELECT id FROM windows")),
        )  # fmt: skip


def _fill(row: Any, values: Any, picked: Sequence[int] | None) -> None:
    """Put values of the first sites, or of those picked, into a row; the others stay."""
    if picked is None:
        row[: len(values)] = values
        return
    for k, index in enumerate(picked):
        if index < len(values):
            row[k] = values[index]


def _floats(blob: Any, sites: int) -> Floats:
    """A blob of at most one float32 per site."""
    if len(_bytes(blob)) > 4 * sites:
        raise ValueError("a blob has more values than there are sites")
    return np.frombuffer(blob, "<f4")


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("not a blob")
    return value


def text(value: Any) -> str:
    """See that an answer is a text."""
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def whole(value: Any) -> int:
    """See that an answer is a whole number."""
    if not isinstance(value, int):
        raise TypeError("not a whole number")
    return value
