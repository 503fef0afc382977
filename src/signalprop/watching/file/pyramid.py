"""Building the coarser levels while a run is written, and thinning the finer ones."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from signalprop.watching.file.levels import FIRST, Bins, Floats, factor

#: of `max_bytes`, where thinning begins and how far it goes
THIN_ABOVE, THIN_TO = 0.95, 0.9


@dataclass(frozen=True)
class Child:
    """A bin that waits for its neighbours; on level 0, a sample.

    Attributes:
        bin: its number on its level.
        first: its first step.
        last: its last step.
        samples: how many samples it holds.
        values: per statistic, (1, sites).
    """

    bin: int
    first: int
    last: int
    samples: int
    values: Mapping[int, Bins]


class Pyramid:
    """What is not yet complete of every level: fewer than 16 + 4 per level, whatever the length.

    Args:
        connection: to the run file, for writing.
        log: ids of the statistics of log scale; may grow.
    """

    def __init__(self, connection: sqlite3.Connection, log: set[int]) -> None:
        self.connection, self.log = connection, log
        self.waiting: list[list[Child]] = []

    def push(self, level: int, child: Child) -> None:
        """Add a finished bin of a level; writes the bins above that it completes."""
        while len(self.waiting) <= level:
            self.waiting.append([])
        group = self.waiting[level]
        size = factor(level + 1)
        if group and group[0].bin // size != child.bin // size:  # after a gap
            self._merge(level, group)
        group.append(child)
        if child.bin % size == size - 1:
            self._merge(level, group)

    def _merge(self, level: int, group: list[Child]) -> None:
        sites = max((b.mean.shape[1] for c in group for b in c.values.values()), default=0)
        values = {}
        for key in sorted({key for child in group for key in child.values}):
            parts = [
                child.values[key].widened(sites) if key in child.values else Bins.missing(1, sites)
                for child in group
            ]
            values[key] = Bins.stack(parts).reduce([0], log=key in self.log)
        made = Child(
            group[0].bin // factor(level + 1),
            group[0].first,
            group[-1].last,
            sum(child.samples for child in group),
            values,
        )
        group.clear()
        self._write(level + 1, made)
        self.push(level + 1, made)

    def _write(self, level: int, made: Child) -> None:
        self.connection.execute(
            "INSERT OR REPLACE INTO bins VALUES(NULL, ?, ?, ?, ?, ?)",
            (level, made.bin, made.first, made.last, made.samples),
        )
        rows = []
        for key, bins in made.values.items():
            whole = bool((bins.count == made.samples).all())
            count = None if whole else bins.count.astype("<u4", copy=False).tobytes()
            blobs = [packed(v) for v in (bins.mean, bins.low, bins.high)]
            rows.append((level, made.bin, key, *blobs, count))
        self.connection.executemany(
            "INSERT OR REPLACE INTO levels VALUES(NULL, ?, ?, ?, ?, ?, ?, ?)", rows
        )

    def resume(self) -> int:
        """Read what was not complete when a file was left.

        Returns:
            The number of the next sample that is not in any level.
        """
        self.waiting = []
        after = 0
        top = self.connection.execute("SELECT coalesce(max(level), 0) FROM bins").fetchone()[0]
        for level in range(min(top, 40), 0, -1):
            width = FIRST * factor(2) ** (level - 1)
            after = max(after, self._next(level) * width)
            begin = self._next(level + 1) * factor(level + 1)
            while len(self.waiting) <= level:
                self.waiting.append([])
            self.waiting[level] = [
                Child(row[0], row[1], row[2], row[3], self._values(level, row[0], row[3]))
                for row in self.connection.execute(
                    "SELECT bin, first, last, samples FROM bins WHERE level=? AND bin>=? "
                    "ORDER BY bin LIMIT ?",
                    (level, begin, factor(level + 1)),
                ).fetchall()
            ]
        return after

    def _next(self, level: int) -> int:
        ask = "SELECT coalesce(max(bin), -1) + 1 FROM bins WHERE level=?"
        return self.connection.execute(ask, (level,)).fetchone()[0]

    def _values(self, level: int, number: int, samples: int) -> dict[int, Bins]:
        values = {}
        for key, mean, low, high, count in self.connection.execute(
            "SELECT statistic, mean, low, high, count FROM levels WHERE level=? AND bin=? AND "
            "statistic IN (SELECT id FROM statistics)",
            (level, number),
        ):
            a, b, c = (np.frombuffer(blob, "<f4")[None] for blob in (mean, low, high))
            counts = np.full(a.shape, samples, np.uint32)
            if count is not None:
                counts = np.frombuffer(count, "<u4")[None]
            values[key] = Bins(a, b, c, counts)
        return values

    def thin(self, max_bytes: int) -> None:
        """Drop the oldest entries of the level that takes most, as long as there is too much.

        Only what a coarser level holds is dropped, so that every stretch of the run stays, the
        older the coarser.

        Args:
            max_bytes: size the file should not exceed.
        """
        ask = lambda sql, *a: self.connection.execute(sql, a).fetchone()[0]  # noqa: E731
        page = ask("PRAGMA page_size")

        def used() -> int:
            return (ask("PRAGMA page_count") - ask("PRAGMA freelist_count")) * page

        if used() < THIN_ABOVE * max_bytes:
            return
        while used() > THIN_TO * max_bytes:
            found = []  # (weight, level, end of what may go)
            for level in range(len(self.waiting)):
                source = "steps" if level == 0 else f"bins WHERE level={level}"
                column = "number" if level == 0 else "bin"
                low = ask(f"SELECT coalesce(min({column}), 0) FROM {source}")
                high = ask(f"SELECT coalesce(max({column}), -1) + 1 FROM {source}")
                size = factor(level + 1)
                end = min(low + max((high - low) // 16, size), self._next(level + 1) * size)
                end -= end % size
                if end > low:
                    found.append(((high - low) * (1 if level == 0 else 3), level, end))
            if not found:
                return
            self._drop(*max(found)[1:])

    def _drop(self, level: int, end: int) -> None:
        run = self.connection.execute
        keys = [row[0] for row in run("SELECT id FROM statistics").fetchall()]
        if level:
            for key in keys:
                run("DELETE FROM levels WHERE statistic=? AND level=? AND bin<?", (key, level, end))
            run("DELETE FROM bins WHERE level=? AND bin<?", (level, end))
            return
        last = run("SELECT max(step) FROM steps WHERE number<?", (end,)).fetchone()[0]
        for key in keys:
            run("DELETE FROM samples WHERE statistic=? AND step<=?", (key, last))
        run("DELETE FROM steps WHERE number<?", (end,))


def packed(values: Floats) -> bytes:
    """The bytes of values as they lie in the file."""
    return values.astype("<f4", copy=False).tobytes()
