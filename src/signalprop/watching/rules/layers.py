"""Rules over time: units that die, a layer that stops learning, updates out of proportion."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from signalprop.diagnosis.program.words import some
from signalprop.watching.rules.arrays import middle
from signalprop.watching.rules.past import Past
from signalprop.watching.rules.rule import RuleOverTime, alarm, over_time
from signalprop.watching.sample import Alarm, Floats

Mask = NDArray[np.bool_]


def _first(picked: Mask, worth: Floats) -> list[int]:
    """Indices of the sites of a mask, those of the largest worth first."""
    places = np.flatnonzero(picked)
    return places[np.argsort(-worth[places], kind="stable")].tolist()


# ---- SP403 -----------------------------------------------------------------------------------


@over_time(
    "SP403",
    "Units die and stay dead",
    needs=("dead",),
    cures=("lower-learning-rate", "leaky-activation", "warm-up", "normalise"),
)
def units_stay_dead(
    past: Past, *, share: float = 0.75, rise: float = 0.25, whole: float = 0.99
) -> Iterator[Alarm]:
    """Most units of a rectifier, which did answer before, are silent for every observation.

    How it is detected:
        A site's share of units that are zero for every observation of a step is at least `share`,
        and has risen by `rise` against its median over the run so far; or it is at least `whole`,
        whatever it was. In the median of every five samples, for a tenth of the run: a unit that
        is silent for one batch only answers in another, and then the share is lower there. What is
        sparse from the start is no case. An issue where 0.95 are dead, else a tip.

    Why it matters:
        Behind a unit that is zero for every input its weights get no gradient, so it does not come
        back; a layer without live units cuts off all below it.

    How to cure it:
        Go on from a checkpoint before the first step of the alarm with a lower learning rate or a
        longer warm-up: mostly one large update has thrown the biases far below zero. Leaky
        activations, or normalisation before them, keep units within reach.

    Yields:
        One alarm.
    """
    dead = past.now["dead"]
    with np.errstate(invalid="ignore"):
        mask = ((dead >= share) & (past.shift("dead") >= rise)) | (dead >= whole)
    picked = past.lasting("SP403", mask)
    if not picked.any():
        return
    order = _first(picked, dead)
    worst, old = float(dead[order[0]]), float(past.old("dead")[order[0]])
    yield alarm(
        units_stay_dead,
        past,
        sites=past.names(order),
        value=worst,
        unit="share of units",
        threshold=share,
        since=past.since("SP403", picked),
        severity="issue" if worst >= 0.95 else "tip",
        explanation=f"{worst:.0%} of the units of {some(past.names(order[:1]))} are zero for every "
        f"observation of every sampled step ({old:.0%} before)",
    )


# ---- SP404 -----------------------------------------------------------------------------------


@over_time(
    "SP404",
    "A layer stops learning",
    needs=("update_ratio", "gradient_norm", "weight_norm"),
    wants=("learning_share", "loss"),
    cures=("normalise", "residual", "leaky-activation", "lower-learning-rate"),
)
def stops_learning(past: Past, *, nats: float = 3.0, share: float = 0.1) -> Iterator[Alarm]:
    """The gradient and the updates of a layer die away while those of the others go on.

    How it is detected:
        Against the median layer of its model and against its own past (the median over the run so
        far), |dw|/|w| and |g||w| have both fallen by `nats` (a factor 20), and the layer's learning
        share to the part `share` of what it was; for a tenth of the run. It must set in while the
        loss is not at rest. Comparing with other layers takes out the learning rate's schedule and
        the loss's own fall; |g||w| is what the gradient is for a layer that is followed by a
        normalisation, whose gradient falls as 1/|w| and whose updates fall as 1/|w|^2 with nothing
        being wrong. A layer without any gradient is frozen, and is not judged; a layer whose rate
        alone was lowered keeps its gradient, and is not told.

    Why it matters:
        The rest of the network then trains around a layer that stays as it is: units have died or
        saturated, a gate has closed, or a skip has made the layer superfluous.

    How to cure it:
        Look for dead or saturated units at these sites and go on from a checkpoint before; leaky
        activations or normalisation keep the gradient alive; a lower learning rate if it happened
        at one step.

    Yields:
        One alarm.
    """
    known = past.known >= {"learning_share"}
    falls = past.losses.falling()
    with np.errstate(invalid="ignore"):
        mask = (past.shift("ratio") < -nats) & (past.shift("push") < -nats)
        if known:
            mask &= past.now["share"] < share * np.maximum(past.old("share"), 0)
    picked = past.lasting("SP404", mask, begins=not falls < 2)
    if not picked.any():
        return
    drop = -past.shift("push")
    order = _first(picked, drop)
    ratio = -float(past.shift("ratio")[order[0]])
    yield alarm(
        stops_learning,
        past,
        sites=past.names(order),
        value=min(float(drop[order[0]]), ratio),
        unit="nats",
        threshold=nats,
        since=past.since("SP404", picked),
        explanation=f"against the other layers, the gradient of {some(past.names(order))} has "
        f"fallen {_factor(drop[order[0]])} and its updates {_factor(ratio)}",
    )


def _factor(nats: float) -> str:
    return "to nothing" if nats > 100 else f"{math.exp(nats):.3g} times"


# ---- SP408 -----------------------------------------------------------------------------------


@over_time(
    "SP408",
    "Updates out of proportion to the weights",
    severity="tip",
    needs=("update_ratio", "weight_norm"),
    cures=("lower-learning-rate", "warm-up", "raise-learning-rate"),
)
def update_ratio(
    past: Past,
    *,
    most: float = 0.1,
    leap: float = 30.0,
    moved: float = 1e-3,
    apart: float = 300.0,
    steps: int = 1000,
) -> Iterator[Alarm]:
    """A layer is replaced every few updates, or hardly moves while the others do.

    How it is detected:
        Too large: |dw|/|w| is above `most` for more than 10 / `most` steps (what starts at zero has
        |dw|/|w| = 1/t after t steps, and is past it by then); or it has risen `leap` times against
        the median layer and its own past, and is above a tenth of `most`; for a tenth of the run.
        Too small: the way of the weights so far, the sum of |dw|/|w| over `steps` steps or more, is
        below `moved`, and `apart` times shorter than that of the median layer. There is no band of
        right values: in one healthy network the ratios of layers lie a factor 40 apart, and that of
        a layer before a normalisation follows from learning rate and weight decay alone,
        sqrt(2 lr wd) for SGD (van Laarhoven 2017). Layers whose weights have less than a hundredth
        of the usual norm (a gain that hovers about zero) and layers that are not updated at all are
        not judged.

    Why it matters:
        A layer that changes by a tenth in every update has forgotten in ten updates what it was,
        and the layers above see another input every time. One that does not move is as good as
        frozen.

    How to cure it:
        Give the layer a parameter group of its own with a lower (higher) learning rate; look for a
        wrong factor in its group, or a scale of its initialisation unlike that of the others.

    Yields:
        One alarm for what is too large, one for what is too small.
    """
    rate, size = past.now["rate"], past.now["size"]
    usual = middle(size)
    with np.errstate(invalid="ignore"):
        heavy = size > 0.01 * usual
        long = past.lasting("SP408 large", heavy & (rate > most), steps=10 / most)
        leapt = heavy & (past.shift("ratio") > math.log(leap)) & (rate > 0.1 * most)
    leapt = past.lasting("SP408 leap", leapt, steps=10 / most)
    large, found = long | leapt, {"SP408 large": long, "SP408 leap": leapt}
    if large.any():
        order = _first(large, rate)
        worst = float(rate[order[0]])
        since = min(past.since(key, m) for key, m in found.items() if m.any())
        yield alarm(
            update_ratio,
            past,
            sites=past.names(order),
            value=worst,
            unit="|dw|/|w|",
            threshold=most if long.any() else 0.1 * most,
            since=since,
            severity="issue",
            explanation=f"every update changes {some(past.names(order))} by {worst:.0%} of its "
            f"weights (the median layer by {middle(rate):.2g})",
            cures=("lower-learning-rate", "warm-up"),
        )
    if past.step - past.first < steps:
        return
    median = np.full(len(rate), np.nan)
    for model in past.models:
        own = past.path[model]
        median[model] = middle(np.where(own > 0, own, np.nan))
    with np.errstate(invalid="ignore"):
        still = heavy & (rate > 0) & (past.path < moved) & (apart * past.path < median)
    small = past.lasting("SP408 small", still)
    if small.any():
        order = _first(small, -past.path)
        yield alarm(
            update_ratio,
            past,
            sites=past.names(order),
            value=float(past.path[order[0]]),
            unit="sum of |dw|/|w|",
            threshold=moved,
            since=past.first,
            explanation=f"all updates so far have moved {some(past.names(order))} by at most "
            f"{past.path[order[0]]:.2g} of its weights, the median layer by "
            f"{median[order[0]]:.2g}",
            cures=("raise-learning-rate",),
        )


LAYER_RULES: tuple[RuleOverTime, ...] = (units_stay_dead, stops_learning, update_ratio)
