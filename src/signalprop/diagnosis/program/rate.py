"""Rules about scale: of the inputs, and of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from signalprop.capture.trace import Site, TensorFacts, Trace
from signalprop.diagnosis.evidence import Evidence, OptimizerFacts
from signalprop.diagnosis.finding import Finding, Learning
from signalprop.diagnosis.program.words import quoted
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule

# ---- SP206 -----------------------------------------------------------------------------------


@rule("SP206", "Inputs are not normalised", cures=("normalise-inputs", "input-batchnorm"))
def raw_inputs(
    evidence: Evidence,
    *,
    scale: float = 10.0,
    dominance: float = 100.0,
    offset: float = 30.0,
    observations: int = 8,
) -> Iterator[Finding]:
    """The first layer is given numbers of a scale that its initialisation is not made for.

    How it is detected:
        Only for floating inputs that a layer with weights reads as they are. The feature in the
        middle has a root mean square above `scale` and the layer's output has, too (a recurrent
        layer saturates instead), and no normalisation follows it; or the largest feature is above
        `scale` and `dominance` times the one in the middle; or the mean of the feature in the
        middle is more than `offset` of its standard deviations from zero and no BatchNorm follows.
        The last two need `observations` values per feature. Sparse whole numbers (counts, one-hot)
        are judged by the first and the last alone while the layer that reads them bears it: its
        output has a root mean square of no more than `dominance`.

    Why it matters:
        The gradient of the first weights is delta times the input, so the curvature of the loss
        grows with the square of the input's scale: one feature of 40 000 among ratios allows a
        learning rate a billion times smaller than the others need. A large mean does the same
        along one direction (LeCun, Bottou, Orr & Müller 1998, section 4.3).

    How to cure it:
        Subtract the mean of the training data and divide by its standard deviation, per feature or
        channel; pixels: divide by 255, or `torchvision.transforms.Normalize`. Where that is not
        possible, a BatchNorm as the first layer.

    Yields:
        One finding for every such input.

    Raises:
        NotApplicable: no floating input goes straight into weights.
    """
    trace = evidence.trace
    read = {n: f for n, f in trace.inputs.items() if f.reader is not None and f.finite}
    if not read:
        raise NotApplicable("no floating input goes straight into a layer with weights")
    for name, facts in read.items():
        reader = trace.sites[facts.reader or ""]
        found = _judge_input(trace, name, facts, reader, scale, dominance, offset, observations)
        if found is not None:
            value, unit, threshold, told = found
            yield finding(
                raw_inputs,
                sites=(name, reader.name),
                value=value,
                unit=unit,
                threshold=threshold,
                explanation=told,
            )


def _judge_input(
    trace: Trace,
    name: str,
    facts: TensorFacts,
    reader: Site,
    scale: float,
    dominance: float,
    offset: float,
    observations: int,
) -> tuple[float, str, float, str] | None:
    """Value, unit, threshold and explanation of what is wrong with an input."""
    features = facts.features
    enough = features is not None and features.observations >= observations and features.varying > 0
    rms = math.hypot(facts.mean, facts.std)
    usual = features.rms if features is not None and enough else rms
    followed = _next_op(trace, reader)
    # a recurrent layer saturates, so the size of its output tells nothing
    bounded = any(word in reader.op.lower() for word in ("rnn", "lstm", "gru"))
    large = usual > scale and (bounded or reader.activation.rms > scale)
    if large and "norm" not in followed:
        effect = "saturates" if bounded else f"starts at {reader.activation.rms:.3g}"
        return (
            usual,
            "root mean square",
            scale,
            f"{name} runs from {facts.low:.4g} to {facts.high:.4g} with a typical root mean square "
            f"of {usual:.3g}, where the initialisation expects 1: the output of "
            f"{quoted(reader.name)} {effect}.",
        )
    if features is None or not enough:
        return None
    site = trace.sites.get(name)
    sparse = facts.whole and site is not None and site.activation.zeros > 0.5
    sparse = sparse and reader.activation.rms <= dominance
    if features.varying > 1 and not sparse and features.largest > scale:
        ratio = features.largest / features.rms
        if ratio > dominance:
            return (
                ratio,
                "times the typical feature",
                dominance,
                f"feature {features.place} of {name} has a root mean square of "
                f"{features.largest:.3g}, the typical one {features.rms:.3g}: it alone decides "
                f"what {quoted(reader.name)} puts out and how small the learning rate must be.",
            )
    if features.offset > offset and "batch_norm" not in followed:
        return (
            features.offset,
            "standard deviations",
            offset,
            f"the typical feature of {name} lies {features.offset:.0f} standard deviations from "
            f"zero: {quoted(reader.name)} sees almost the same input for every sample.",
        )
    return None


def _next_op(trace: Trace, site: Site) -> str:
    """The operation that follows a site."""
    after = next((s for s in trace.sites.values() if s.order == site.order + 1), None)
    return after.op.lower() if after is not None else ""


# ---- SP210 -----------------------------------------------------------------------------------


@rule(
    "SP210",
    "Learning rate too large",
    needs=("learning", "optimizer"),
    wants=("sharpness",),
    cures=("lower-learning-rate", "warm-up", "clip-gradient"),
)
def rate_too_large(
    evidence: Evidence,
    *,
    edge: float = 1.0,
    rise: float = 0.25,
    alone: float = 0.5,
    leap: float = 1.0,
    leap_adaptive: float = 9.0,
    better: float = 0.05,
    nats: float = 7.0,
) -> Iterator[Finding]:
    """The optimizer's own next updates raise the loss on the very batch they were taken on.

    How it is detected:
        A few updates are rehearsed on copies, on this batch, with the same random numbers. For SGD:
        learning rate x largest eigenvalue of the Hessian is above `edge` times its stability bound
        2 (1 + momentum), and the loss ends above where it began by more than a share `rise`. For
        Adam and its kin, for which no such bound holds: the loss ends above its start by more than
        a share `alone`, or is no longer finite. And on the way the loss rises above its
        start by more than a share `leap` (`leap_adaptive` for Adam and its kin, whose steps are as
        large where little is left of the loss), and comes down again to no less than a share
        `better` below it, as where a step has killed units, or left little but the mean of the
        targets. It is only a tip where the cause lies elsewhere:
        inputs that are not normalised (SP206), or an error signal that grows by more than `nats`
        on its way back (SP102), for both of which every usual learning rate is too large.

    Why it matters:
        Above the bound gradient descent moves away from the minimum along the steepest direction,
        by a factor that grows with every step, until the loss is nan or the activations are dead.

    How to cure it:
        Lower the learning rate below the bound that the message names; warm it up where the
        curvature is large only at the start; normalise the inputs, which lowers the curvature.

    Yields:
        One finding.

    Raises:
        NotApplicable: no updates were rehearsed, or the loss was not finite before.
    """
    learning, optimizer = _rehearsed(evidence)
    after = learning.after
    if len(after) < 2 or not math.isfinite(after[0]):
        raise NotApplicable("no updates were rehearsed from a finite loss")
    growth = math.inf
    if math.isfinite(after[-1]):
        growth = (after[-1] - after[0]) / max(abs(after[0]), 1e-12)
    sharpness = evidence.sharpness or 0.0
    product = learning.rate * sharpness
    bound = edge * 2 * (1 + optimizer.momentum)
    # what leaps up and comes down again may have killed what was there
    leap = leap if optimizer.plain else leap_adaptive
    leapt = growth > -better and learning.leap > leap
    unstable = optimizer.plain and product > bound and (growth > rise or leapt)
    if not (unstable or growth > alone or leapt):
        return
    steps = "1 update" if len(after) == 2 else f"{len(after) - 1} updates"
    told = (
        f"{steps} with a learning rate of {learning.rate:g} take the loss on this batch from "
        f"{after[0]:.4g} to {after[-1]:.4g}"
    )
    if leapt and growth <= alone:
        told += f", with a leap to {max(after):.4g} on the way"
    if unstable:
        told += f"; with a largest curvature of {sharpness:.3g} the rate must stay below "
        told += f"{bound / sharpness:.2g}"
    elsewhere = _elsewhere(evidence, nats)
    yield finding(
        rate_too_large,
        value=product if unstable else (growth if growth > alone else learning.leap),
        unit="learning rate x sharpness" if unstable else "growth of the loss",
        threshold=bound if unstable else (alone if growth > alone else leap),
        explanation=f"{told}{elsewhere}.",
        severity="tip" if elsewhere else "issue",
    )


def _elsewhere(evidence: Evidence, nats: float) -> str:
    """Why the curvature is so large, where that is known: lowering the rate is no cure then."""
    try:
        if any(f.severity == "issue" for f in raw_inputs(evidence)):
            return "; the inputs are not normalised, which is the cause"
    except NotApplicable:
        pass
    if evidence.trace.decay > nats:
        return "; the error signal explodes with depth, which is the cause"
    return ""


def _rehearsed(evidence: Evidence) -> tuple[Learning, OptimizerFacts]:
    if evidence.learning is None or evidence.optimizer is None:
        raise NotApplicable("no updates of a given optimizer were rehearsed")
    return evidence.learning, evidence.optimizer


# ---- SP211 -----------------------------------------------------------------------------------


@rule(
    "SP211",
    "Learning rate too small to move the weights",
    needs=("learning", "optimizer"),
    wants=("sharpness",),
    cures=("raise-learning-rate", "adam", "float32-weights"),
)
def rate_too_small(
    evidence: Evidence,
    *,
    unmoved: float = 0.95,
    room: float = 1e-3,
    crawl: float = 1e-5,
    reach: float = 1e-2,
    untaught: float = 0.9,
    slight: float = 1e-3,
    ratio: float = 1e-7,
) -> Iterator[Finding]:
    """The next update leaves the weights where they are.

    How it is detected:
        More than a share `unmoved` of the weights that have a gradient is bit for bit the same
        after the optimizer's next update; for SGD and float32 only where the updates do not lower
        the loss and learning rate x largest eigenvalue of the Hessian is below `room`, as otherwise
        the gradient is too small, not the rate. Or, for SGD, an update lowers the loss by less
        than `crawl` of itself and changes no layer by more than `slight` of its weights, learning
        rate x largest eigenvalue is below `room`, and at the rate 1 / eigenvalue an update would
        take more than `reach` off the loss, or the loss is still above `untaught` of what it is
        with the targets of other samples: later on, on a plateau and at the end of training, no
        rate is to blame. Momentum counts as the rate that it adds up to. For other
        optimizers, the median over the layers of |update| / |weights| is below
        `ratio`. Where a schedule warms the learning rate up, its target counts. Weights without a
        gradient count nowhere.

    Why it matters:
        A number in bfloat16 has 8 bits: an update smaller than 1/512 of the weight is rounded away
        every time, however many steps are made. In float32 the same happens at 1/30 000 000, and
        far above it training merely takes longer than anybody waits.

    How to cure it:
        Raise the learning rate. Keep the weights in float32 and only compute in bfloat16 (autocast,
        or a master copy), or round stochastically.

    Yields:
        One finding.

    Raises:
        NotApplicable: no updates were rehearsed, or the optimizer holds nothing of the model.
    """
    learning, optimizer = _rehearsed(evidence)
    if optimizer.rate == 0:
        yield finding(
            rate_too_small,
            value=0,
            unit="learning rate",
            threshold=0,
            explanation=f"the learning rate of {optimizer.name} is 0: no weight moves.",
        )
        return
    sizes = _held(evidence, optimizer)
    if not sizes:
        raise NotApplicable("the optimizer holds no parameter of the model that has a gradient")
    product = learning.rate * (evidence.sharpness or 0.0)
    still = {n: share for n, share in learning.unmoved.items() if n in sizes}
    total = sum(sizes[n] for n in still)
    part = sum(share * sizes[n] for n, share in still.items()) / total if total else 0.0
    dtype = _dtype(evidence)
    narrow = dtype in ("bfloat16", "float16")
    slow_rate = product < room and not learning.falls
    if part > unmoved and (narrow or not optimizer.plain or slow_rate):
        yield finding(
            rate_too_small,
            sites=sorted(still, key=lambda n: -still[n]),
            value=part,
            unit="share of weights",
            threshold=unmoved,
            explanation=(
                f"{part:.1%} of the weights that have a gradient are bit for bit the same after an "
                f"update with a learning rate of {learning.rate:g}: it is rounded away in {dtype}."
            ),
            cures=("float32-weights", "raise-learning-rate")
            if narrow
            else ("raise-learning-rate",),
        )
        return
    ratios = [r for n, r in learning.update_ratio.items() if n in sizes and 0 < r < math.inf]
    if not ratios:
        return
    usual = median(ratios)
    if not optimizer.plain:
        if usual < ratio:
            yield finding(
                rate_too_small,
                value=usual,
                unit="|update| / |weights|, median over the layers",
                threshold=ratio,
                explanation=(
                    f"an update of {optimizer.name} with a learning rate of {learning.rate:g} "
                    f"changes the typical layer by {usual:.1e} of itself."
                ),
                cures=("raise-learning-rate",),
            )
        return
    # momentum m adds up to 1 / (1 - m) times the rate
    gain = 1 / max(1 - optimizer.momentum, 1e-3)
    product, decrease = product * gain, learning.decrease * gain
    loss = abs(learning.after[0])
    if product <= 0 or loss == 0:
        return
    # rate x |g|^2 by rate x sharpness, halved: what the best rate along the gradient takes at least
    within = decrease / (2 * product * loss)
    slow = decrease < crawl * loss and gain * max(ratios) < slight
    learned = evidence.samples.learned if evidence.samples is not None else None
    early = learned is not None and learned > untaught
    if product < room and slow and decrease > 0 and (within > reach or early):
        yield finding(
            rate_too_small,
            value=decrease / loss,
            unit="share of the loss that an update takes away",
            threshold=crawl,
            explanation=(
                f"with a learning rate of {learning.rate:g} an update lowers the loss by "
                f"{decrease / loss:.0e} of itself, and even the direction of largest curvature "
                f"({evidence.sharpness:.3g}) needs about {1 / product:.0e} updates."
            ),
            cures=("raise-learning-rate", "adam"),
        )


def creeps(learning: Learning | None, optimizer: OptimizerFacts | None) -> bool:
    """Whether SP211 will ask if anything has been learned: SGD, and the loss hardly moves."""
    if learning is None or optimizer is None or not optimizer.plain:
        return False
    return 0 < learning.decrease < 1e-4 * abs(learning.after[0])


def _held(evidence: Evidence, optimizer: OptimizerFacts) -> dict[str, int]:
    """Number of weights by layer, of parameters that the optimizer holds and that are pulled."""
    sizes: dict[str, int] = {}
    for weight in evidence.trace.weights.values():
        if weight.gradient and weight.name in optimizer.held:
            sizes[weight.module] = sizes.get(weight.module, 0) + math.prod(weight.shape)
    return sizes


def _dtype(evidence: Evidence) -> str:
    """The dtype that most weights have."""
    sizes: dict[str, int] = {}
    for p in evidence.model.parameters():
        name = str(p.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + p.numel()
    return max(sizes, key=lambda name: sizes[name], default="float32")


RATE_RULES: tuple[Rule, ...] = (raw_inputs, rate_too_large, rate_too_small)
