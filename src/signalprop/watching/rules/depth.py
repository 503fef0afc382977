"""Rules over time: what of the error signal reaches the input end changes during training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from signalprop.watching.rules.arrays import middle
from signalprop.watching.rules.past import Past
from signalprop.watching.rules.rule import RuleOverTime, alarm, over_time
from signalprop.watching.sample import Alarm, Floats


@dataclass(frozen=True)
class _Reach:
    """How much of delta arrives at the input end of one model.

    Attributes:
        moved: nats that it rose, against the output end and its own past; negative where it fell.
        first: the sites of the input third, in execution order.
        share: learning share of their layers, now and in the past; nan where it is not known.
        ratio: nats that their update ratio rose against other layers.
    """

    moved: float
    first: NDArray[np.intp]
    share: tuple[float, float]
    ratio: float


def _reach(past: Past, model: NDArray[np.intp], least: int) -> _Reach | None:
    """Compare the largest delta of the first third of the sites with that of the last third.

    The largest, since a branch that starts at zero, or ends there, is not the way of the error.

    Returns:
        None where too few sites, or nothing at the output end, can be compared.
    """
    now, before = past.now["delta"][model], past.old("delta")[model]
    seen = model[~np.isnan(now) & np.isfinite(before)]
    if len(seen) < least:
        return None
    third = len(seen) // 3
    first, last = seen[:third], seen[-third:]
    delta, old = past.now["delta"], past.old("delta")
    out = float(delta[last].max())
    if not math.isfinite(out):
        return None
    moved = (float(delta[first].max()) - out) - float(old[first].max() - old[last].max())
    layers = model[model <= first[-1]]
    share = past.now["share"][layers], past.old("share")[layers]
    ratio = middle(past.shift("ratio")[layers])
    return _Reach(moved, first, (_sum(share[0]), _sum(share[1])), ratio)


def _sum(values: Floats) -> float:
    return float(np.nansum(values)) if np.isfinite(values).any() else math.nan


def _worst(past: Past, reach: _Reach, *, down: bool) -> list[str]:
    shift = np.nan_to_num(past.shift("delta")[reach.first], nan=0.0)
    order = np.argsort(shift if down else -shift, kind="stable")
    return past.names(reach.first[order][:8].tolist())


def _times(nats: float) -> str:
    return f"{math.exp(abs(nats)):.3g} times" if abs(nats) < 100 else "beyond all measure"


# ---- SP401 -----------------------------------------------------------------------------------


@over_time(
    "SP401",
    "Vanishing of the error signal sets in",
    needs=("delta_rms",),
    wants=("learning_share", "update_ratio"),
    cures=("normalise", "residual", "lower-learning-rate", "swap-activation"),
)
def vanishing_sets_in(
    past: Past, *, nats: float = 4.6, share: float = 0.1, least: int = 6
) -> Iterator[Alarm]:
    """Less and less of the error reaches the input end, and the layers there stop to learn.

    How it is detected:
        ln of the largest delta_rms in the first third of the sites over that in the last third, in
        execution order, has fallen by `nats` (a factor 100) against its median over the run so far,
        and these layers' learning share to the part `share` of what it was, or their update ratio
        as much against the other layers. Where neither is known, it must fall by 1.5 times as much.
        It must last for a tenth of the run; a fall that goes on evenly over the whole run is seen
        by half, since the median follows it. The fall counts, not its size: widths, pooling, the
        loss's scale and a depth that the network was born with cancel. Models of less than `least`
        sites are not judged, each of several models is judged by itself.

    Why it matters:
        Weights grow, and sigmoid-like units saturate while training goes on: then a network that
        began well loses its lower layers, which stay as they are from here on.

    How to cure it:
        A lower learning rate or weight decay against the growth that saturates the units;
        normalisation or skips around the blocks; an activation that does not saturate. Go on from a
        checkpoint before the alarm's first step.

    Yields:
        One alarm per model.
    """
    found = [_reach(past, model, least) for model in past.models]
    mask = np.array([r is not None and _lost(r, nats, share) for r in found])
    for m in np.flatnonzero(past.lasting("SP401", mask)):
        reach = found[m]
        assert reach is not None
        now, old = reach.share
        said = "" if math.isnan(now) else f"; their learning share went from {old:.2g} to {now:.2g}"
        yield alarm(
            vanishing_sets_in,
            past,
            sites=_worst(past, reach, down=True),
            value=-reach.moved,
            unit="nats",
            threshold=nats,
            since=past.since("SP401", np.arange(len(mask)) == m),
            explanation=f"the error signal that reaches the first third of the network has fallen "
            f"{_times(reach.moved)} against that at its end{said}",
        )


def _lost(reach: _Reach, nats: float, share: float) -> bool:
    if not reach.moved < -nats:
        return False
    now, old = reach.share
    if math.isnan(now) and math.isnan(reach.ratio):
        return reach.moved < -1.5 * nats
    return now < share * old or reach.ratio < math.log(share)


# ---- SP402 -----------------------------------------------------------------------------------


@over_time(
    "SP402",
    "Explosion of the error signal sets in",
    needs=("delta_rms",),
    wants=("learning_share", "update_ratio", "loss"),
    cures=("normalise", "clip-gradient", "lower-learning-rate", "residual-scaling"),
)
def explosion_sets_in(
    past: Past, *, nats: float = 4.6, share: float = 0.8, least: int = 6
) -> Iterator[Alarm]:
    """The error grows on its way back far more than it did, and throws the first layers about.

    How it is detected:
        As in SP401: ln of the largest delta_rms in the first third of the sites over that in the
        last third has risen by `nats` (a factor 100) against its median over the run so far, for a
        tenth of the run; and it does harm: the first third takes more than `share` of the learning
        and did not before, or its updates have grown tenfold against other layers, or the loss has
        come up by a fifth of its whole fall. Without any of the three it must rise 1.5 times as
        much. Models of less than `least` sites are not judged. A branch that starts at zero
        (ReZero, zero-initialised last layers of branches) is no case, as the largest delta is that
        of the way around it.

    Why it matters:
        The layers at the input take all of the update; what they feed changes under the rest.

    How to cure it:
        Normalisation, or scaling of branches, so that no block's Jacobian grows with its weights;
        clipping the gradient's norm and a lower learning rate keep the updates bounded.

    Yields:
        One alarm per model.
    """
    found = [_reach(past, model, least) for model in past.models]
    level, _ = past.losses.level
    harm = level > past.losses.best + 0.2 * past.losses.fall > past.losses.best
    known = math.isfinite(past.losses.best)
    mask = np.array(
        [r is not None and _blown(r, nats, share, harm=harm, known=known) for r in found]
    )
    for m in np.flatnonzero(past.lasting("SP402", mask)):
        reach = found[m]
        assert reach is not None
        yield alarm(
            explosion_sets_in,
            past,
            sites=_worst(past, reach, down=False),
            value=reach.moved,
            unit="nats",
            threshold=nats,
            since=past.since("SP402", np.arange(len(mask)) == m),
            explanation=f"the error signal that reaches the first third of the network has grown "
            f"{_times(reach.moved)} against that at its end",
        )


def _blown(reach: _Reach, nats: float, share: float, *, harm: bool, known: bool) -> bool:
    if not reach.moved > nats:
        return False
    now, old = reach.share
    if math.isnan(now) and math.isnan(reach.ratio) and not known:
        return reach.moved > 1.5 * nats
    return (now > share > 1.5 * old) or reach.ratio > math.log(10) or harm


DEPTH_RULES: tuple[RuleOverTime, ...] = (vanishing_sets_in, explosion_sets_in)
