"""Where a loss spike began: the site whose gradient rose first and stayed up until the spike."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from signalprop.watching.rules.arrays import column_medians
from signalprop.watching.sample import Floats

#: values that a site must have before the spike, to be judged
LEAST = 8
#: steps in a row within a rise that may lie below the bound
GAP = 2


def began(
    steps: NDArray[np.int64],
    gradients: Floats,
    loss: Floats,
    *,
    sigmas: float = 6.0,
    factor: float = 2.0,
) -> tuple[int | None, int]:
    """Find where and when a loss spike began.

    A value is high where its logarithm lies above its own median of the first half of the window by
    `sigmas` robust standard deviations (1.48 times the median deviation) and by `factor`. A site's
    rise is the unbroken row of high steps (but for gaps of two steps) that leads into the loss's
    own. The site whose rise begins first is the answer; of those that begin within one step of it,
    which is mostly backpropagation carrying one site's rise to all before it, the one that rises
    most. Rises of less than half the usual one (in logarithms) do not count.

    Args:
        steps: (steps,), increasing; the last one lies within the spike.
        gradients: (steps, sites), the gradient's size; nan where it does not apply, inf where it is
            not finite, 0 where there is none.
        loss: (steps,), nan where it is not known.
        sigmas: robust standard deviations that a rise takes at least.
        factor: by which a rise takes it up at least.

    Returns:
        The index of the site, None where no gradient rose; and the index of the step at which it
        set in, without a site that of the loss.
    """
    length = len(steps)
    if length == 0:
        return None, 0
    last = length - 1
    onset = _loss_onset(np.asarray(loss, dtype=np.float64), sigmas)
    if length < 4 * LEAST or gradients.ndim != 2 or gradients.shape[1] == 0:
        return None, onset
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.asarray(gradients, dtype=np.float64))
    logs[np.isneginf(logs)] = np.nan
    quiet = logs[: max(length // 2, 4)].copy()
    quiet[np.isposinf(quiet)] = np.nan
    quiet[:, np.isfinite(quiet).sum(axis=0) < LEAST] = np.nan
    level = column_medians(quiet)
    spread = 1.4826 * column_medians(np.abs(quiet - level))
    bound = np.maximum(sigmas * np.maximum(spread, 1e-3), math.log(factor))
    excess = logs - level  # nan compares as not high
    with np.errstate(invalid="ignore"):
        high = excess > bound
    near = high[max(onset - GAP, 0) :]
    risen = np.asarray(near.any(axis=0))
    if not risen.any():
        return None, onset
    # walk back from where a site is first high beside the loss's onset
    first = max(onset - GAP, 0) + near.argmax(axis=0)
    start = np.where(risen, first, length)
    below = np.zeros(len(risen), dtype=np.int64)
    alive = risen.copy()
    for t in range(int(first[risen].max()), -1, -1):
        begun = alive & (t <= first)
        up = high[t] & begun
        start[up] = t
        below[up] = 0
        below[begun & ~up] += 1
        alive &= below <= GAP
        if not alive.any():
            break
    with np.errstate(invalid="ignore"):
        inside = (np.arange(length)[:, None] >= start) & ~np.isnan(excess)
    peak = np.where(inside, excess, -np.inf).max(axis=0)
    ordered = np.sort(peak[risen])
    counted = risen & (peak >= 0.5 * ordered[(len(ordered) - 1) // 2])
    earliest = int(start[counted].min())
    tied = np.flatnonzero(counted & (start <= earliest + 1))
    at = np.where(inside, excess, -np.inf)[min(earliest + 1, last), tied]
    if np.isposinf(at).all():  # all are not finite: the one nearest to the output passed it on
        return int(tied[-1]), earliest
    return int(tied[np.argmax(at)]), earliest


def _loss_onset(loss: Floats, sigmas: float) -> int:
    """The first of the high losses that lead up to the last one."""
    last = len(loss) - 1
    early = loss[: max(len(loss) // 2, 4)]
    early = early[np.isfinite(early)]
    if not early.size:
        return last
    level = float(np.median(early))
    spread = 1.4826 * float(np.median(np.abs(early - level)))
    bound = level + max(sigmas * spread, 1e-3 * abs(level))
    onset, below = last, 0
    for t in range(last, -1, -1):
        if np.isnan(loss[t]):
            continue
        if loss[t] > bound:
            onset, below = t, 0
        else:
            below += 1
            if below > GAP:
                break
    return onset
