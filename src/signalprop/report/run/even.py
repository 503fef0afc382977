"""Columns of equal width: a browser draws an even heat map five times as fast as an uneven one.

A run's old steps lie in coarse bins and its last ones in fine ones, so that the last columns of a
picture would be slivers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from signalprop.watching.file.levels import Bins
from signalprop.watching.file.result import Values

#: of the width of most columns; narrower ones are joined
NARROW = 0.75


def joined(found: Values) -> Values:
    """Join columns that are narrower than most with their neighbours.

    Args:
        found: values, (columns, sites).

    Returns:
        The same where all columns are of a width; else fewer columns.
    """
    samples = found.samples
    if len(samples) < 3 or samples.max() == 1:
        return found
    wanted = NARROW * float(np.median(samples))
    starts, held = [0], int(samples[0])
    for k in range(1, len(samples)):
        if held >= wanted:
            starts.append(k)
            held = 0
        held += int(samples[k])
    if held < wanted and len(starts) > 1:  # the last one would be a sliver
        starts.pop()
    if len(starts) == len(samples):
        return found
    at = np.asarray(starts)
    bins = Bins(found.mean, found.low, found.high, found.count).reduce(at, log=found.log)
    return replace(
        found,
        first=found.first[at],
        last=found.last[np.append(at[1:], len(samples)) - 1],
        samples=np.add.reduceat(samples, at),
        mean=bins.mean,
        low=bins.low,
        high=bins.high,
        count=bins.count,
    )


def grid(edges: NDArray[np.float64]) -> tuple[float, float, NDArray[np.int64]] | None:
    """Cells of equal width that show the same columns.

    Args:
        edges: (columns + 1,), the steps between which columns lie.

    Returns:
        The middle of the first cell, the width of a cell, and for each cell its column; None where
        the columns are too uneven for that.
    """
    count = len(edges) - 1
    if count < 2:
        return None
    whole = float(edges[-1] - edges[0])
    cells = round(whole / float(np.median(np.diff(edges))))
    if not count <= cells <= 2 * count:
        cells = count
    width = whole / cells
    middles = edges[0] + width * (np.arange(cells) + 0.5)
    column = np.clip(np.searchsorted(edges, middles, side="right") - 1, 0, count - 1)
    if len(np.unique(column)) < count:
        return None
    return float(middles[0]), width, column.astype(np.int64)
