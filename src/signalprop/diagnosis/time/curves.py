"""What the rules over time ask of horizons and of the deltas seen step by step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from signalprop.capture.time import Horizon, TimeAxis
from signalprop.diagnosis.depth.units import LEARNED
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.program.words import quoted
from signalprop.diagnosis.time.facts import own_cells


def curves(evidence: Evidence) -> list[Horizon]:
    """The horizons of what recurs; attention has no steps in between that could lose anything."""
    return [c for c in evidence.horizons if c.op != "attention" and len(c.lags) > 1]


def has_learned(evidence: Evidence) -> bool:
    """Whether the network is trained already; what it has given up it does not need."""
    facts = evidence.time
    return facts is not None and facts.learned is not None and facts.learned < LEARNED


def log_credit(curve: Horizon, lag: int) -> float:
    """Logarithm of the credit at a lag; beyond those that were measured it goes on as at last."""
    logs = [math.log(c) if c > 0 else -math.inf for c in curve.credit]
    if lag in curve.lags:
        return logs[curve.lags.index(lag)]
    known = list(zip(curve.lags, logs, strict=True))
    low, high = known[-2:]
    for one, other in pairwise(known):
        if one[0] <= lag <= other[0]:
            low, high = one, other
            break
    if -math.inf in (low[1], high[1]):
        return -math.inf
    return low[1] + (high[1] - low[1]) * (lag - low[0]) / (high[0] - low[0])


def rise(found: Iterable[Horizon]) -> tuple[float, Horizon | None]:
    """The largest ln credit of all, and whose it is."""
    best: tuple[float, Horizon | None] = (0.0, None)
    for curve in found:
        most = max(curve.credit)
        nats = math.log(most) if most > 0 else -math.inf
        if nats > best[0]:
            best = (nats, curve)
    return best


def farthest(found: Sequence[Horizon]) -> Horizon:
    """The curve that reaches farthest back: credit takes the best way that there is."""
    return max(found, key=lambda c: (c.credit[-1] if c.steps is None else 0.0, c.steps or 0))


def axes(evidence: Evidence) -> list[TimeAxis]:
    """Deltas step by step, also of loops over cells of the user's.

    Calls of a layer that are one sequence to its horizon are one here, too.

    Returns:
        One for every layer and direction.
    """
    found = list(evidence.trace.time)
    for curve in evidence.horizons:
        calls = [a for a in found if _called(a) == _called(curve)]
        if len(calls) > 1 and sum(a.length for a in calls) == len(curve.lags):
            found = [a for a in found if a not in calls] + [_joined(calls)]
    known = {axis.site for axis in found}
    own = own_cells(evidence.model, evidence.trace)
    for curve in evidence.horizons:
        sites = own.get(curve.site, []) if curve.site not in known else []
        sizes = tuple(s.delta.rms if s.delta is not None else 0.0 for s in sites)
        if len(sizes) > 1 and any(sizes):
            steps = tuple(range(1, len(sizes) + 1))
            found.append(TimeAxis(curve.site, curve.op, 0, False, len(steps), steps, sizes, (), ()))
    return found


def _called(one: TimeAxis | Horizon) -> tuple[str, int, bool]:
    return one.site.partition("#")[0], one.layer, one.reverse


def _joined(calls: list[TimeAxis]) -> TimeAxis:
    """Calls in a row as one sequence."""
    steps, sizes, before = list[int](), list[float](), 0
    for call in calls:
        kept = [(before + t, h) for t, h in zip(call.steps, call.h, strict=True) if t > 0]
        steps += [t for t, _ in kept]
        sizes += [h for _, h in kept]
        before += call.length
    return replace(calls[0], length=before, steps=tuple(steps), h=tuple(sizes), c=())


def reached(axis: TimeAxis, floor: float) -> np.ndarray:
    """Which steps, in the order of the sequence, get an error above `floor` of the largest."""
    steps, sizes = np.array(axis.steps), np.array(axis.h)
    sizes = np.nan_to_num(sizes, nan=0.0, posinf=np.finfo(np.float64).max)
    logs = np.log(np.maximum(sizes, 1e-300))
    every = np.interp(np.arange(1, axis.length + 1), steps, logs)
    found = (every >= logs.max() + math.log(floor)) & (sizes.max() > 0)
    return found[::-1] if axis.reverse else found


def arrived(axis: TimeAxis, lag: int) -> float:
    """Logarithm of what arrives of the loss so many steps before the end, by whatever way.

    Args:
        axis: of a direction that runs forward.
        lag: steps before the end.

    Returns:
        ln(|dL/dh_t| / the largest of all steps).
    """
    if axis.length <= lag or not max(axis.h, default=0.0) > 0:
        return -math.inf
    logs = np.log(np.maximum(np.nan_to_num(np.array(axis.h), posinf=1e300), 1e-300))
    return float(np.interp(axis.length - lag, axis.steps, logs) - logs.max())


def words(curve: Horizon) -> str:
    """`of the error at the last step of 'rnn' 1/e is left after 7 steps`, and so on."""
    told = f"of the error at the last step of {quoted(curve.site)}"
    if curve.steps is None:
        return f"{told} more than 1/e is left after {count(curve.lags[-1])}"
    if curve.steps == 0:
        told += " less than 1/e is left after 1 step"
    else:
        told += f" 1/e is left after {count(curve.steps)}"
    if curve.silent is not None:
        told += f", and less than rounding noise ({curve.floor:.0e}) after {curve.silent}"
    return told


def count(steps: int) -> str:
    """`1 step`, `7 steps`."""
    return f"{steps} step{'' if steps == 1 else 's'}"


def factor(nats: float) -> str:
    """A ratio in words: `1e-30`, `0.02`, `1100`."""
    if nats == -math.inf:
        return "0"
    if abs(nats) < 690:
        return f"{math.exp(nats):.0e}" if abs(nats) > 4.6 else f"{math.exp(nats):.2g}"
    return f"1e{nats / math.log(10):.0f}"
