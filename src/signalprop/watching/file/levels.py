"""The coarser levels of a run: min, max and mean of 16, 64, 256, ... samples, built as they come.

A level-1 bin holds 16 samples, a bin of every further level four bins of the one below, so that a
picture of any stretch of a run, at any width, is read from a few thousand rows. Together they add
3/16 + 3/64 + ... = 25 % to the size of the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: samples in a bin of level 1
FIRST = 16
#: bins of one level in a bin of the next
FURTHER = 4

Floats = NDArray[np.float32]
Counts = NDArray[np.uint32]


def factor(level: int) -> int:
    """How many entries of the level below a bin of this level holds."""
    return FIRST if level == 1 else FURTHER


@dataclass(frozen=True, eq=False)
class Bins:
    """Values of one statistic, reduced over bins; all (bins, sites).

    Attributes:
        mean: mean over the values that count; the geometric one for a statistic of log scale.
        low: smallest value; nan is left out, infinity is not.
        high: largest value; the same.
        count: values that count: finite, and positive for a statistic of log scale.
    """

    mean: Floats
    low: Floats
    high: Floats
    count: Counts

    @staticmethod
    def of(values: Floats, *, log: bool) -> Bins:
        """Every sample as a bin of its own.

        Args:
            values: (samples, sites).
            log: whether the statistic is of log scale.

        Returns:
            (samples, sites).
        """
        counts = np.isfinite(values)
        if log:
            counts &= values > 0
        return Bins(values, values, values, counts.astype(np.uint32))

    @staticmethod
    def stack(parts: Sequence[Bins]) -> Bins:
        """Bins one after the other, of equal width."""
        return Bins(
            np.concatenate([p.mean for p in parts]),
            np.concatenate([p.low for p in parts]),
            np.concatenate([p.high for p in parts]),
            np.concatenate([p.count for p in parts]),
        )

    @staticmethod
    def missing(rows: int, sites: int) -> Bins:
        """Bins that nothing was recorded for."""
        nothing = np.full((rows, sites), np.nan, np.float32)
        return Bins(nothing, nothing.copy(), nothing.copy(), np.zeros((rows, sites), np.uint32))

    def reduce(self, starts: Sequence[int] | NDArray[np.int64], *, log: bool) -> Bins:
        """Join neighbouring bins.

        Args:
            starts: index of the first bin of every group, increasing, from 0.
            log: whether the mean is geometric.

        Returns:
            One bin per group. A mean of values none of which counts is their common value (0 of a
            layer that is silent, infinity), and nan where they differ.
        """
        low = np.fmin.reduceat(self.low, starts, axis=0)
        high = np.fmax.reduceat(self.high, starts, axis=0)
        count = np.add.reduceat(self.count, starts, axis=0)
        some = self.count > 0
        weights = self.count.astype(np.float64)
        value = np.where(some, self.mean, 1.0 if log else 0.0).astype(np.float64)
        if log:
            value = np.log(value)
        total = np.add.reduceat(value * weights, starts, axis=0)
        mean = total / np.maximum(count, 1)
        if log:
            mean = np.exp(mean)
        with np.errstate(over="ignore"):
            mean = mean.astype(np.float32)
        empty = np.where(low == high, low, np.float32(np.nan))
        return Bins(np.where(count > 0, mean, empty), low, high, count.astype(np.uint32))

    def widened(self, sites: int) -> Bins:
        """The same with sites that were added since."""
        more = sites - self.mean.shape[1]
        if more <= 0:
            return self
        gap = Bins.missing(len(self.mean), more)
        return Bins(
            np.hstack([self.mean, gap.mean]),
            np.hstack([self.low, gap.low]),
            np.hstack([self.high, gap.high]),
            np.hstack([self.count, gap.count]),
        )


def exact(values: NDArray[np.floating] | Sequence[float]) -> Floats:
    """Values as float32; what is finite stays finite, and what is not zero does not become zero.

    The range of float32 ends at 1e-45 and 3e38. A rule that looks for silence or overflow must not
    be told of one that is only the file's.

    Args:
        values: of any float type.

    Returns:
        A copy.
    """
    wide = np.asarray(values)
    if wide.dtype == np.float32:
        return np.array(wide, dtype=np.float32)
    wide = wide.astype(np.float64, copy=False)
    with np.errstate(over="ignore", under="ignore"):
        narrow = wide.astype(np.float32)
    lost = (narrow == 0) & (wide != 0)
    if lost.any():
        tiny = np.finfo(np.float32).smallest_subnormal
        narrow[lost] = np.copysign(tiny, wide[lost])
    over = np.isinf(narrow) & np.isfinite(wide)
    if over.any():
        narrow[over] = np.copysign(np.finfo(np.float32).max, wide[over])
    return narrow
