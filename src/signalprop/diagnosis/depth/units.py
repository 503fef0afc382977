"""Rules about units: dead and saturated ones, per unit, over the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from signalprop.capture.trace import Site
from signalprop.diagnosis.depth import spine
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule
from signalprop.diagnosis.samples import output_activation

#: a layer has learned with the network where the loss has come down to this share of the loss
#: with other samples' targets, and its weights have this part of a fair share of the learning
LEARNED, FAIR = 0.7, 0.1


def _works(evidence: Evidence, site: Site, *, learned: bool) -> bool:
    """Whether the layer that feeds a site learns, and, where asked, the network has learned."""
    learning, samples = evidence.learning, evidence.samples
    if learning is None or not learning.share:
        return False
    if learned and (samples is None or samples.learned is None or samples.learned > LEARNED):
        return False
    places = spine.orders(evidence.trace)
    below = [n for n in learning.share if n in places and places[n] <= site.order]
    if not below:
        return False
    own = max(below, key=lambda n: places[n])
    part = max(abs(learning.share[own]), abs(learning.later_share.get(own, 0.0)))
    return part * len(learning.share) >= FAIR


def _observations(site: Site) -> int:
    """How often each unit of a site was seen: samples times positions."""
    units = site.activation.units or 1
    return math.prod(site.shape) // units


@rule(
    "SP110",
    "Units are dead",
    cures=("leaky-activation", "he-init", "normalise", "lower-learning-rate"),
)
def dead_units(
    evidence: Evidence, *, share: float = 0.6, observations: int = 16, deviations: float = 3.0
) -> Iterator[Finding]:
    """Rectified units are zero for every sample, so nothing reaches the weights below them.

    How it is detected:
        Per unit of a rectifier (ReLU, ReLU6, threshold): it is zero for every sample and position
        of the batch. A layer is counted where more than `share` of its units is, and more than half
        plus `deviations` standard deviations of a fair coin: in a deep healthy net the samples are
        alike, and half of the units can be off for all of them. Left out is a layer of a network
        that has learned (its loss is below 0.7 of the loss with other samples' targets) whose
        weights still have a tenth of a fair share of the learning; and the output itself, which
        SP204 judges by its targets. Not judged below `observations` observations per unit.

    Why it matters:
        The slope is zero on that side, so the weights of a dead unit get no gradient and it stays
        dead (unless its inputs change).

    How to cure it:
        Leaky ReLU, PReLU, ELU or SELU let the signal through on the negative side; He
        initialisation without negative biases; a smaller learning rate where units die in training.

    Yields:
        One finding that names all such layers, the worst first.

    Raises:
        NotApplicable: there is no hidden rectifier, or too few observations.
    """
    sites = [s for s in evidence.trace.sites.values() if s.activation.dead is not None]
    output = output_activation(evidence.trace)
    if output is not None and evidence.samples is not None:  # SP204 knows what it is to give
        sites = [s for s in sites if s is not output[0]]
    if not sites:
        raise NotApplicable("no rectifier")
    judged = [s for s in sites if _observations(s) >= observations]
    if not judged:
        raise NotApplicable(f"fewer than {observations} observations per unit; give more samples")
    limits = {
        s.name: min(
            max(share, 0.5 + deviations * math.sqrt(0.25 / (s.activation.units or 1))), 0.999
        )
        for s in judged
    }
    found = [
        s
        for s in judged
        if (s.activation.dead or 0.0) > limits[s.name] and not _works(evidence, s, learned=True)
    ]
    if not found:
        return
    worst = max(found, key=lambda s: s.activation.dead or 0.0)
    yield finding(
        dead_units,
        sites=[s.name for s in sorted(found, key=lambda s: -(s.activation.dead or 0.0))],
        value=worst.activation.dead or 0.0,
        unit="share of units",
        threshold=limits[worst.name],
        explanation=(
            f"{100 * (worst.activation.dead or 0.0):.0f}% of the {worst.activation.units} units of "
            f"{worst.name} are zero for all of {_observations(worst)} observations"
            + (f"; so are most units of {len(found) - 1} more layers" if len(found) > 1 else "")
        ),
    )


@rule(
    "SP111",
    "Units are saturated",
    cures=("swap-activation", "smaller-init", "normalise", "normalise-inputs"),
)
def saturated_units(
    evidence: Evidence, *, share: float = 0.5, observations: int = 8, most: float = 0.9
) -> Iterator[Finding]:
    """Units sit at the ends of their range, where the slope is zero.

    How it is detected:
        Per unit of an activation with a bounded range (sigmoid, tanh, hardtanh, hardsigmoid,
        softsign, erf): in three quarters of its observations the slope is below 5% of its largest.
        A layer is counted where more than `share` of its units is. Only hidden activations count:
        an output may saturate once it is right, and so may a gate that multiplies another branch.
        Left out is a layer whose weights have a tenth of a fair share of the learning all the same,
        where no more than `most` of its units is saturated, or the network has learned (its loss
        is below 0.7 of the loss with other samples' targets).

    Why it matters:
        delta is multiplied by the slope: a saturated unit passes nothing on and cannot leave its
        place by gradient descent.

    How to cure it:
        Smaller initial weights, normalised inputs, normalisation before the activation, or an
        activation that does not saturate.

    Yields:
        One finding that names all such layers, the worst first.

    Raises:
        NotApplicable: there is no bounded activation, or too few observations.
    """
    trace = evidence.trace
    hidden = {s.name for s in spine.hidden(trace)}
    inside = {name for b in trace.blocks for name in b.inner}
    sites = [
        s
        for s in trace.sites.values()
        if s.activation.saturated is not None
        and (s.name in hidden or (s.name in inside and "sigmoid" not in s.op))
    ]
    if not sites:
        raise NotApplicable("no hidden activation with a bounded range")
    judged = [s for s in sites if _observations(s) >= observations]
    if not judged:
        raise NotApplicable(f"fewer than {observations} observations per unit; give more samples")
    found = [
        s
        for s in judged
        if (s.activation.saturated or 0.0) > share
        and not _works(evidence, s, learned=(s.activation.saturated or 0.0) > most)
    ]
    if not found:
        return
    worst = max(found, key=lambda s: s.activation.saturated or 0.0)
    yield finding(
        saturated_units,
        sites=[s.name for s in sorted(found, key=lambda s: -(s.activation.saturated or 0.0))],
        value=worst.activation.saturated or 0.0,
        unit="share of units",
        threshold=share,
        explanation=(
            f"{100 * (worst.activation.saturated or 0.0):.0f}% of the {worst.activation.units} "
            f"units of {worst.name} have lost their slope in three quarters of "
            f"{_observations(worst)} observations"
            + (f"; so have most units of {len(found) - 1} more layers" if len(found) > 1 else "")
        ),
    )


UNIT_RULES: tuple[Rule, ...] = (dead_units, saturated_units)
