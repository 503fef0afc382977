"""Reading numbers of the steps, such as the loss: of any stretch, joined where they are many."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from signalprop.watching.file.pieces import Source, text
from signalprop.watching.file.stretch import HIGHEST, LOWEST, Blocks

#: rows that are read as they are; more are joined by the file's own engine first
PLAIN = 1 << 16
#: rows of an answer that is not joined
MOST = 1 << 24

_FROM = "FROM scalars WHERE id>=? AND id<=? AND step>=? AND step<?"
# together in one question both would be looked for row by row
_ENDS = "SELECT (SELECT min(id) FROM scalars), (SELECT max(id) FROM scalars)"
_PLAIN = f"SELECT name, step, value, 1 {_FROM} ORDER BY id"
_JOINED = f"SELECT name, min(step), avg(value), count(value) {_FROM} GROUP BY name ORDER BY min(id)"

Curve = tuple[NDArray[np.int64], NDArray[np.float64]]
#: name, step, value, how many values it is the mean of
Row = tuple[str, int, float | None, int]


class Scalars:
    """The scalars of an open run."""

    def __init__(self) -> None:
        self._blocks = Blocks("scalars")
        # of the whole run, what was joined of so many rows each; rows that are there never change
        self._generation = ""
        self._width = 0
        self._joined: list[Row] = []
        self._next = 0

    def read(
        self, source: Source, stretch: tuple[int, int], columns: int | None
    ) -> dict[str, Curve]:
        """See `Run.scalars`.

        Args:
            source: the file.
            stretch: its ends.
            columns: at most so many values of each.

        Returns:
            Steps and values by name.
        """
        found: dict[str, list[Row]] = {}
        for row in self._rows(source, stretch, columns):
            found.setdefault(text(row[0]), []).append(row)
        return {name: _curve(rows, columns) for name, rows in found.items()}

    def _rows(self, source: Source, stretch: tuple[int, int], columns: int | None) -> list[Row]:
        everything = stretch == (LOWEST, HIGHEST)
        if everything:
            ends = source.rows(_ENDS)[0]
            spans: list[tuple[int, int]] = [] if ends[0] is None else [ends]
        else:
            spans = self._blocks.spans(source, *stretch)
        count = sum(last - first + 1 for first, last in spans)
        if columns is None or count <= max(PLAIN, 4 * columns):
            return [
                row for span in spans for row in source.rows(_PLAIN, *span, *stretch, most=MOST)
            ]
        width = 1 << math.ceil(math.log2(count / columns))
        if everything:
            return self._whole(source, *spans[0], width)
        return [
            row
            for first, last in spans
            for at in range(first, last + 1, width)
            for row in source.rows(_JOINED, at, min(last, at + width - 1), *stretch)
        ]

    def _whole(self, source: Source, first: int, last: int, width: int) -> list[Row]:
        """All rows, joined by so many; those that were read before are known."""
        generation = source.generation()
        if (generation, width) != (self._generation, self._width):
            self._generation, self._width, self._next = generation, width, first
            self._joined = []
        while self._next + width - 1 <= last:
            ends = self._next, self._next + width - 1
            self._joined += source.rows(_JOINED, *ends, LOWEST, HIGHEST)
            self._next += width
        return self._joined + source.rows(_JOINED, self._next, last, LOWEST, HIGHEST)


def _curve(rows: list[Row], columns: int | None) -> Curve:
    """Rows of one name in the order of their steps, joined where there are too many."""
    steps = np.asarray([row[1] for row in rows], dtype=np.int64)
    values = np.asarray([np.nan if row[2] is None else row[2] for row in rows], dtype=np.float64)
    counts = np.asarray([row[3] for row in rows], dtype=np.int64)
    if (np.diff(steps) < 0).any():  # some are known later than others
        order = np.argsort(steps, kind="stable")
        steps, values, counts = steps[order], values[order], counts[order]
    if columns is None or len(steps) <= columns:
        return steps, values
    starts = np.arange(0, len(steps), -(-len(steps) // columns))
    # as the file's engine does it: what is no number does not count, unless nothing else is there
    weights = np.where(np.isnan(values), 0, np.maximum(counts, 1)).astype(np.float64)
    total = np.add.reduceat(np.where(np.isnan(values), 0.0, values) * weights, starts)
    number = np.add.reduceat(weights, starts)
    with np.errstate(invalid="ignore"):
        means = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return steps[starts], means
