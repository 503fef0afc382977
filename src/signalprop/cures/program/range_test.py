"""A learning-rate range test, and runs at the rates that it proposes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program.given import batches_of
from signalprop.cures.program.run import Run
from signalprop.cures.training import Training

#: a running mean of the losses that is so many times the first one has diverged
GROWN = 4.0


@dataclass(frozen=True)
class RangeTest:
    """Losses of updates whose learning rate rises from one to the next.

    Attributes:
        rates: the learning rate of every update.
        losses: the loss before it.
        smoothed: their running mean, bias-corrected.
        diverged: the rate at which the loss left; None where it never did.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged: float | None

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls fastest per factor of the rate."""
        s = self.smoothed
        slopes = [(s[i + 1] - s[i - 1], self.rates[i]) for i in range(1, len(s) - 1)]
        fall, rate = min(slopes, default=(0.0, 0.0))
        return rate if fall < 0 else None


def range_test(
    training: Training,
    data: Any,
    *,
    low: float,
    high: float,
    updates: int = 80,
    memory: float = 0.8,
) -> RangeTest:
    """Train a copy with a learning rate that rises exponentially (Smith 2017, section 3.3).

    Args:
        training: the network and how it is trained; not touched.
        data: a batch, or a loader whose batches are taken in turn.
        low: first learning rate, of the largest of the groups.
        high: last one.
        updates: how many.
        memory: of the running mean of the losses, per update.

    Returns:
        What was seen, up to where the loss diverged: it is not finite, or its running mean has
        risen above the first by more than three times the loss's size there.
    """
    many = list(batches_of(data, updates))
    rates = [low * (high / low) ** (i / max(updates - 1, 1)) for i in range(updates)]
    losses: list[float] = []
    smoothed: list[float] = []
    run = Run(training, many)
    mean, diverged = 0.0, None
    for i, rate in enumerate(rates):
        value = run.update(rate)
        if not math.isfinite(value):
            diverged = rate
            break
        losses.append(value)
        mean = memory * mean + (1 - memory) * value
        smoothed.append(mean / (1 - memory ** (i + 1)))
        if smoothed[-1] > smoothed[0] + (GROWN - 1) * max(abs(smoothed[0]), 1e-12):
            diverged = rate
            break
    return RangeTest(tuple(rates[: len(losses)]), tuple(losses), tuple(smoothed), diverged)


def race(training: Training, data: Any, rate: float, updates: int) -> float:
    """The loss after some updates at one learning rate: median over the last quarter of them.

    Args:
        training: the network and how it is trained; not touched.
        data: a batch, or a loader.
        rate: the learning rate.
        updates: how many.

    Returns:
        The loss; inf where it was not finite on the way.
    """
    run = Run(training, list(batches_of(data, updates)))
    losses = []
    for _ in range(updates):
        value = run.update(rate)
        if not math.isfinite(value):
            return math.inf
        losses.append(value)
    return median(losses[-max(1, updates // 4) :])


def chosen(
    training: Training, data: Any, seen: RangeTest, bounds: tuple[float, float], updates: int
) -> float:
    """The smallest rate within bounds that brings nine tenths of what the best one brings.

    Returns:
        The rate.

    Raises:
        DoesNotApply: it does not lower the loss by a tenth more than the present one.
    """
    found = [seen.steepest, seen.diverged / 10 if seen.diverged else None]
    found += [seen.diverged / 30 if seen.diverged else None]
    if seen.smoothed:
        found.append(seen.rates[seen.smoothed.index(min(seen.smoothed))] / 10)
    inside = sorted({min(max(r, bounds[0]), bounds[1]) for r in found if r})
    # the same batches at a rate of 0: their losses differ as well
    present = training.optimizer.explicit(training.model).rate
    start, own = (race(training, data, r, updates) for r in (0.0, present))
    told = [(race(training, data, r, updates), r) for r in inside]
    best = min(told, default=(math.inf, 0.0))[0]
    if not math.isfinite(best) or start - best <= 1.1 * max(start - own, 0.0):
        raise DoesNotApply(
            f"no other learning rate within {bounds[0]:.1g} and {bounds[1]:.1g} does better over "
            f"{updates} updates than the present one, which comes to a loss of {own:.3g}"
        )
    return min(r for v, r in told if v <= best + (start - best) / 10)
