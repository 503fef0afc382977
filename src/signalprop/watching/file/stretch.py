"""A stretch of steps: what was asked for, and the rows of a table that it lies in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from signalprop.errors import SignalpropError
from signalprop.watching.file.pieces import Source, whole

#: rows of a block
ROWS = 4096
#: all steps that a file can hold
LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1


def limits(start: Any, stop: Any) -> tuple[int, int]:
    """The ends of a stretch.

    Args:
        start: the first step; None for the beginning.
        stop: the step to end before; None for the end.

    Returns:
        Both as numbers that SQLite knows.

    Raises:
        SignalpropError: one is no number.
    """
    return _end("start", start, LOWEST), _end("stop", stop, HIGHEST)


def _end(name: str, step: Any, open_end: int) -> int:
    if step is None:
        return open_end
    if isinstance(step, Integral) and not isinstance(step, bool):
        return min(HIGHEST, max(LOWEST, int(step)))
    number = float(step) if isinstance(step, Real) and not isinstance(step, bool) else math.nan
    if math.isnan(number):
        raise SignalpropError(f"{name}={step!r} must be the number of a step, or None")
    if abs(number) >= HIGHEST:
        return HIGHEST if number > 0 else LOWEST
    return math.ceil(number)


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of a table.

    Attributes:
        first: id of the first row.
        last: id of the last one.
        low: their smallest step.
        high: their largest one.
    """

    first: int
    last: int
    low: int
    high: int


class Blocks:
    """The steps of a table's blocks: what an index by step would tell, of a table without one.

    Rows lie in the order in which they were recorded, which is about that of their steps. So few
    blocks hold a stretch; and as rows never change, each is looked at once while a run grows.

    Args:
        table: its name; it has the columns `id` and `step`.
    """

    def __init__(self, table: str) -> None:
        self._table = table
        self._generation = ""
        self._full: list[Block] = []

    def spans(self, source: Source, begin: int, end: int) -> list[tuple[int, int]]:
        """The rows among which all of a stretch are.

        Args:
            source: the file.
            begin: the first step.
            end: the step to end before.

        Returns:
            First and last ids, increasing; neighbouring blocks are joined.
        """
        generation = source.generation()
        if generation != self._generation:  # rows were taken out, since a run was resumed
            self._generation = generation
            self._full = []
        found: list[tuple[int, int]] = []
        for block in [*self._full, *self._new(source)]:
            if block.low < end and block.high >= begin:
                if found and found[-1][1] + 1 == block.first:
                    found[-1] = (found[-1][0], block.last)
                else:
                    found.append((block.first, block.last))
        return found

    def _new(self, source: Source) -> list[Block]:
        """The blocks behind those that are known; full ones are known from now on."""
        made: list[Block] = []
        at = self._full[-1].last + 1 if self._full else 0
        final = whole(source.one(f"SELECT coalesce(max(id), -1) FROM {self._table}"))
        ask = f"SELECT min(step), max(step) FROM {self._table} WHERE id>=? AND id<=?"
        behind = f"SELECT min(id) FROM {self._table} WHERE id>=?"
        while at <= final:
            last = at + ROWS - 1
            low, high = source.rows(ask, at, last)[0]
            if low is None:  # a gap
                at = whole(source.one(behind, at))
                continue
            made.append(Block(at, min(last, final), whole(low), whole(high)))
            at = last + 1
        self._full += [block for block in made if block.last - block.first + 1 == ROWS]
        return made
