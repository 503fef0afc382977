"""Medians of arrays with gaps, much quicker than numpy's own at these sizes."""

from __future__ import annotations

import numpy as np

from signalprop.watching.sample import Floats


def column_medians(values: Floats) -> Floats:
    """Median over the first axis of what is not nan; the lower one of two middle values.

    Args:
        values: (times, ...).

    Returns:
        (...,), nan where all are nan.
    """
    ordered = np.sort(values, axis=0)  # nan comes last
    if not np.isnan(ordered[-1]).any():
        return ordered[(len(ordered) - 1) // 2]
    count = len(ordered) - np.isnan(ordered).sum(axis=0)
    place = np.maximum(count - 1, 0) // 2
    return np.take_along_axis(ordered, place[None], axis=0)[0]


def middle(values: Floats) -> float:
    """Median of the finite values of a vector; nan where there is none."""
    kept = values[np.isfinite(values)]
    if not kept.size:
        return float("nan")
    kept.sort()
    return float(kept[(kept.size - 1) // 2])


def grown(values: np.ndarray, size: int, fill: float) -> np.ndarray:
    """The same with a longer last axis, at least doubled so that growing stays cheap."""
    old = values.shape[-1]
    if size <= old:
        return values
    made = np.full((*values.shape[:-1], max(size, 2 * old)), fill, dtype=values.dtype)
    made[..., :old] = values
    return made
