"""What is remembered of the loss: a sorted window, the level it began at, and its whole course."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

import numpy as np

from signalprop.watching.sample import Floats

#: losses that a new one is compared with
WINDOW = 96
#: losses in a row above all of these, before a leap is thought of
LEAP = 4
#: losses in a block, and blocks, that tell how the loss wanders and how far single ones stray
BLOCK, BLOCKS = 32, 32
#: so many high losses are a new level, not a leap
SETTLED = 64
#: pieces that the whole course is kept in
PIECES = 64
#: losses that make the level at the start
START = 8


class Losses:
    """The losses of a run, in bounded memory; `add` takes about two microseconds.

    Attributes:
        count: losses so far.
        high: those at the end that lie above all of the window before them, with their steps.
        start: the level at the start, the median of the first `START`.
        calm_since: count at which the learning rate leapt up last.
    """

    def __init__(self) -> None:
        self.count = 0
        self.high: list[tuple[int, float]] = []
        self.start = math.nan
        self.calm_since = -WINDOW
        self._rate = math.nan
        self._block: list[float] = []
        self._middle = math.nan
        self._moves: deque[tuple[float, float]] = deque(maxlen=BLOCKS)
        self._order: deque[float] = deque()
        self._sorted: list[float] = []
        self._pieces = np.zeros((PIECES, 3))  # mean, variance, first step
        self._filled, self._size = 0, 8
        self._beginning: list[float] = []
        self._sum = self._squares = self._shift = 0.0
        self._taken, self._first = 0, 0

    def add(self, step: int, loss: float, rate: float | None) -> bool:
        """Take one finite loss.

        Args:
            step: its step.
            loss: the loss.
            rate: the learning rate, where it is known.

        Returns:
            Whether the last `LEAP` or more lie above all of the window before them.
        """
        if rate is not None:
            if rate > 2 * self._rate:
                self.calm_since = self.count
            self._rate = rate
        self.count += 1
        if self.count <= START:
            self._early(loss)
        self._course(step, loss)
        self._block.append(loss)
        if len(self._block) == BLOCK:
            self._stray()
        if len(self._sorted) == WINDOW and loss > self._sorted[-1]:
            self.high.append((step, loss))
            if len(self.high) < SETTLED:
                return len(self.high) >= LEAP
            loss = self.high.pop()[1]
        for _, waited in self.high:
            self._slide(waited)
        self.high.clear()
        self._slide(loss)
        return False

    @property
    def level(self) -> tuple[float, float]:
        """Median of the window and a robust standard deviation, from its quartiles."""
        n = len(self._sorted)
        if n < 4:
            return math.nan, math.nan
        return self._sorted[n // 2], (self._sorted[3 * n // 4] - self._sorted[n // 4]) / 1.349

    @property
    def stray(self) -> float:
        """How far losses go up without anything being wrong, by the last thousand or so.

        Twice the larger one of two: how far single losses lie above the median of the 32 about
        them, and how far that median rises from one 32 to the next. Of both the second largest, so
        that one spike does not hide the next. At least 0.
        """
        if len(self._moves) < 3:
            return 0.0
        above, moved = (sorted(v)[-2] for v in zip(*self._moves, strict=True))
        return 2.0 * max(above, moved, 0.0)

    @property
    def best(self) -> float:
        """The lowest mean of a piece; nan before there is one."""
        return float(self._pieces[: self._filled, 0].min()) if self._filled else math.nan

    @property
    def lowest_ever(self) -> bool:
        """Whether the window lies lower than every piece before the last eighth of the course."""
        before = self._pieces[: self._filled - max(self._filled // 8, 2), 0]
        return bool(len(before)) and self.level[0] < float(before.min())

    @property
    def fall(self) -> float:
        """How far it has come down from the start, at best; at least 0."""
        if not self._filled or math.isnan(self.start):
            return 0.0
        return max(self.start - self.best, 0.0)

    def course(self) -> tuple[Floats, Floats, Floats]:
        """The whole course in pieces of equal length.

        Returns:
            First step, mean and standard deviation of every piece, (pieces,) each.
        """
        kept = self._pieces[: self._filled]
        return kept[:, 2], kept[:, 0], np.sqrt(kept[:, 1])

    def falling(self, share: float = 0.5) -> float:
        """By how many standard errors the last `share` of the course falls.

        Args:
            share: of the course; its second half is compared with its first.

        Returns:
            The number; nan where there are too few pieces.
        """
        means = self._pieces[: self._filled, 0]
        half = int(len(means) * share / 2)
        if half < 3:
            return math.nan
        before, after = means[-2 * half : -half], means[-half:]
        error = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / half)
        return float(before.mean() - after.mean()) / max(error, 1e-300)

    def _early(self, loss: float) -> None:
        insort(self._beginning, loss)
        self.start = self._beginning[(len(self._beginning) - 1) // 2]

    def _stray(self) -> None:
        """Close a block."""
        self._block.sort()
        middle = self._block[BLOCK // 2]
        moved = middle - self._middle if self._middle == self._middle else 0.0
        self._moves.append((self._block[-1] - middle, moved))
        self._middle = middle
        self._block = []

    def _slide(self, loss: float) -> None:
        """Into the window; the oldest out of it."""
        self._order.append(loss)
        insort(self._sorted, loss)
        if len(self._order) > WINDOW:
            old = self._order.popleft()
            del self._sorted[bisect_left(self._sorted, old)]

    def _course(self, step: int, loss: float) -> None:
        if self._taken == 0:
            self._first, self._sum, self._squares, self._shift = step, 0.0, 0.0, loss
        off = loss - self._shift
        self._sum += off
        self._squares += off * off
        self._taken += 1
        if self._taken < self._size:
            return
        mean = self._sum / self._taken
        variance = max(self._squares / self._taken - mean * mean, 0.0)
        self._pieces[self._filled] = mean + self._shift, variance, self._first
        self._filled += 1
        self._taken = 0
        if self._filled == PIECES:
            a, b = self._pieces[::2].copy(), self._pieces[1::2].copy()
            half = PIECES // 2
            self._pieces[:half, 0] = (a[:, 0] + b[:, 0]) / 2
            self._pieces[:half, 1] = (a[:, 1] + b[:, 1]) / 2 + ((a[:, 0] - b[:, 0]) / 2) ** 2
            self._pieces[:half, 2] = a[:, 2]
            self._filled, self._size = half, 2 * self._size
