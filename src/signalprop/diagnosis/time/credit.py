"""Rules over time: the error is lost, explodes, or does not reach back as far as the task needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from signalprop.capture.time import Horizon, TimeAxis
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program.words import quoted
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule
from signalprop.diagnosis.time import curves
from signalprop.diagnosis.time.lag import Lag


def _judged(evidence: Evidence) -> list[Horizon]:
    found = curves.curves(evidence)
    if not found:
        raise NotApplicable("no recurrent layer that the error reaches")
    return found


# ---- SP301 -----------------------------------------------------------------------------------


@rule(
    "SP301",
    "Error signal vanishes in time",
    needs=("horizon", "deltas"),
    cures=("lstm", "gru", "chrono", "forget-bias", "identity-recurrent", "orthogonal-recurrent"),
)
def vanishing_in_time(
    evidence: Evidence, *, silent: float = 0.75, steps: int = 20
) -> Iterator[Finding]:
    """Most steps of the sequence get no error signal, so nothing is learned from them.

    How it is detected:
        |dL/dh_t| of the true loss is below the rounding noise of its dtype, relative to the step
        where it is largest, at more than a share `silent` of the steps, in every recurrent layer
        and direction of that length; sequences of less than `steps` steps are not judged. So a loss
        at every step, attention over all steps or a mean over time is no case, as is a network that
        has learned (its loss is below 0.7 of the loss with other samples' targets). Where it is
        known how far back the task's inputs lie, given as `lag` or shown by the data, SP303 judges
        instead.

    Why it matters:
        dL/dh_t is the error at the end times the product of all step Jacobians in between. Where
        they shrink it falls exponentially with the distance (Hochreiter 1991; Bengio, Simard &
        Frasconi 1994): what happened before counts for nothing in the gradient, whatever it means.

    How to cure it:
        LSTM or GRU in place of the plain layer; a forget gate that begins open (bias 1 to 5, or
        chrono initialisation for the length at hand); for plain layers an identity or orthogonal
        recurrent matrix. Or shorten the way: a mean over time, attention, a loss at every step.

    Yields:
        One finding for every length of sequence.

    Raises:
        NotApplicable: nothing recurs over enough steps, how far back the task needs is known, the
            network has learned, or the state is cut off on its way (SP306).
    """
    found = _judged(evidence)
    if evidence.lag is not None:
        raise NotApplicable("how far back the task needs is known, and SP303 judges by it")
    _not_cut(evidence, found)
    lengths: dict[int, list[TimeAxis]] = {}
    for axis in curves.axes(evidence):
        if axis.length >= steps and any(_same(axis, c) for c in found):
            lengths.setdefault(axis.length, []).append(axis)
    if not lengths:
        raise NotApplicable(f"no sequence of {steps} steps or more")
    if curves.has_learned(evidence):
        raise NotApplicable("the network has learned already")
    for length, axes in lengths.items():
        own = [c for c in found if any(_same(axis, c) for axis in axes)]
        floor = own[0].floor
        heard = np.any([curves.reached(axis, floor) for axis in axes], axis=0)
        lost = 1.0 - float(heard.mean())
        if lost <= silent:
            continue
        best = curves.farthest(own)
        yield finding(
            vanishing_in_time,
            sites=[c.site for c in own],
            value=lost,
            unit="share of the steps without an error signal",
            threshold=silent,
            explanation=(
                f"{curves.words(best)}; {round(lost * length)} of {length} steps get no error "
                f"signal from the loss ({best.rate:+.2f} nats per step)"
            ),
            cures=_for(own),
        )


def _not_cut(evidence: Evidence, found: Sequence[Horizon]) -> None:
    cut = evidence.time.loops if evidence.time is not None else ()
    if any(loop.site == c.site.partition("#")[0] for loop in cut for c in found):
        raise NotApplicable("the state is cut off on its way, which SP306 judges")


def _same(axis: TimeAxis, curve: Horizon) -> bool:
    place = (curve.site, curve.layer, curve.reverse)
    return (axis.site, axis.layer, axis.reverse) == place


def _for(found: Sequence[Horizon]) -> tuple[str, ...]:
    """The cures that fit the layers."""
    ops = {c.op for c in found}
    named: list[str] = []
    if ops & {"rnn_tanh", "rnn_relu"}:
        named += ["lstm", "gru", "identity-recurrent"]
    if ops & {"lstm", "gru"}:
        named += ["chrono"]
    if "lstm" in ops:
        named += ["forget-bias"]
    return (*named, "orthogonal-recurrent")


# ---- SP302 -----------------------------------------------------------------------------------


@rule(
    "SP302",
    "Error signal explodes in time",
    needs=("horizon",),
    cures=("orthogonal-recurrent", "identity-recurrent", "lstm", "gru", "clip-gradient"),
)
def exploding_in_time(evidence: Evidence, *, nats: float = 7.0) -> Iterator[Finding]:
    """The error grows from step to step on its way back, so that the first steps take every update.

    How it is detected:
        A random error is put on the last step alone. On its way back, over the steps of these
        sequences, it grows by more than `nats` (a factor 1100) in one of the recurrent layers.
        What a loss at every step adds up is not counted.

    Why it matters:
        The gradient of a weight is the sum over all steps, so it is what the oldest steps say, and
        its size changes a thousandfold with the length of the sequence and from batch to batch: the
        loss has walls, from which one update throws the weights far away (Pascanu, Mikolov & Bengio
        2013). And what grows backward grows forward: a small change of an input changes everything.

    How to cure it:
        A recurrent matrix whose largest singular value is 1 at the start (orthogonal, identity);
        gated layers; clipping the norm of the gradient keeps the updates bounded, but not sensible.

    Yields:
        One finding, about the layer where it grows most.

    Raises:
        NotApplicable: nothing recurs.
    """
    found = _judged(evidence)
    gained, worst = curves.rise(found)
    if worst is None or gained <= nats:
        return
    at = worst.lags[max(range(len(worst.credit)), key=lambda i: worst.credit[i])]
    plain = worst.op.startswith("rnn")
    yield finding(
        exploding_in_time,
        sites=(worst.site,),
        value=gained,
        unit="nats",
        threshold=nats,
        explanation=(
            f"an error at the last step of {quoted(worst.site)} arrives "
            f"{curves.factor(gained)} times as large {curves.count(at)} before "
            f"({gained / at:+.2f} nats per step)"
        ),
        cures=exploding_in_time.rule.cures if plain else ("orthogonal-recurrent", "clip-gradient"),
    )


# ---- SP303 -----------------------------------------------------------------------------------


@rule(
    "SP303",
    "Horizon shorter than the lag of the task",
    needs=("horizon",),
    wants=("lag",),
    cures=("chrono", "forget-bias", "lstm", "gru", "identity-recurrent", "orthogonal-recurrent"),
)
def horizon_too_short(evidence: Evidence, *, faint: float = 1e-3) -> Iterator[Finding]:
    """What the target depends on lies farther back than the error signal reaches.

    How it is detected:
        Credit at the lag: of an error at the last step, the share that is left so many steps
        before, in the layer (or, read at both ends, the direction) where most is left; or what
        arrives there of the true loss, as with a mean over time, where there is one target for the
        whole sequence. A lag that
        is given (`lag`) must have more than `faint` of it. Without one it is estimated from the
        data, some hundred samples of the loader: from near to far, which inputs explain more of the
        target than chance does, given the nearer ones (permutation test with a false step in one of
        a thousand data sets; products of a step's features are looked at as well). Then half of
        what is explained must lie where credit is above the rounding noise of its dtype, and the
        nearest input that counts where it is above `faint`, unless the network has learned (its
        loss is below 0.7 of the loss with other samples' targets).

    Why it matters:
        No gradient joins the error and its cause: the weights are tuned to what is near, and the
        long lag is learned by luck, late or never (Hochreiter & Schmidhuber 1997, section 3).

    How to cure it:
        Chrono initialisation with this lag, or a large forget bias, so that the time constant of
        the gates spans it; an LSTM or GRU in place of a plain layer; or bring cause and effect
        nearer: fewer and coarser steps, attention.

    Yields:
        One finding.

    Raises:
        NotApplicable: nothing recurs, no lag is given and the data do not show one, or the state is
            cut off on its way (SP306).
    """
    found = _judged(evidence)
    lag = evidence.lag
    if lag is None:
        raise NotApplicable("no lag is given, and the data do not show one")
    _not_cut(evidence, found)
    given = lag.samples == 0
    steps = lag.steps if given else lag.usual
    longest = max(axis.length for axis in evidence.trace.time) if evidence.trace.time else 0
    longest = max(longest, *(c.lags[-1] + 1 for c in found))
    if steps >= longest:
        yield finding(
            horizon_too_short,
            sites=[c.site for c in found],
            value=longest - 1,
            unit="steps",
            threshold=steps,
            explanation=(
                f"the task needs {curves.count(steps)}, and the sequences of this batch have "
                f"{longest}: cause and effect are never seen together; train on longer ones"
            ),
            cures=(),
        )
        return
    credit, best = _most(evidence, found, steps)
    least = faint if given else best.floor
    if not given and credit >= math.log(least):
        # where nothing at all lies near, nothing near can be learned in the meantime
        steps, least = lag.nearest, faint
        credit, best = _most(evidence, found, steps)
    learned = curves.has_learned(evidence)
    if credit >= math.log(least) or steps == 0 or (learned and not given):
        return
    yield finding(
        horizon_too_short,
        sites=[c.site for c in found],
        value=math.exp(credit),
        unit=f"of the error is left after {curves.count(steps)}",
        threshold=least,
        explanation=f"{curves.words(best)}; {_needed(lag, steps)}, where "
        f"{curves.factor(credit)} of it is left",
        severity="tip" if learned else "issue",
        cures=tuple(dict.fromkeys(_first(found) + _for(found))),
    )


def _most(evidence: Evidence, found: Sequence[Horizon], lag: int) -> tuple[float, Horizon]:
    """The largest credit at a lag, as a logarithm, and whose it is."""
    credits = [(_credit(evidence, c, lag), c) for c in found]
    credit, best = max(credits, key=lambda one: (one[0], -one[1].layer))
    ways = [a for a in curves.axes(evidence) if not a.reverse and not _every(evidence, a)]
    return max([credit, *(curves.arrived(axis, lag) for axis in ways)]), best


def _every(evidence: Evidence, axis: TimeAxis) -> bool:
    """Whether every step has a target of its own, whose error hides that of the last one."""
    return evidence.time is None or evidence.time.targets >= axis.length


def _first(found: Sequence[Horizon]) -> tuple[str, ...]:
    return ("chrono", "forget-bias") if any(c.op == "lstm" for c in found) else ()


def _needed(lag: Lag, steps: int) -> str:
    if lag.samples == 0:
        return f"the task needs {curves.count(steps)}"
    back = f"{lag.nearest} to {lag.steps}" if lag.nearest < lag.steps else f"{lag.steps}"
    told = f"in {lag.samples} samples the target depends on inputs {back} steps back"
    if steps == lag.nearest:
        return told if lag.nearest == lag.steps else f"{told}, and not on the last {steps}"
    return f"{told}, half of it on {steps} or more"


def _credit(evidence: Evidence, curve: Horizon, lag: int) -> float:
    """Logarithm of the credit; backwards in time, over the steps that lie between."""
    if not curve.reverse:
        return curves.log_credit(curve, lag)
    # read at its last step, it has the input at that lag so many steps before
    axis = next((a for a in evidence.trace.time if _same(a, curve)), None)
    read = axis is not None and axis.steps[-1] == axis.length and axis.h[-1] > 0
    if axis is None or not read or axis.h[-1] < curve.floor * max(axis.h):
        return -math.inf
    return curves.log_credit(curve, max(axis.length - 1 - lag, 0))


CREDIT_RULES: tuple[Rule, ...] = (vanishing_in_time, exploding_in_time, horizon_too_short)
