"""Rules about depth, backward: what happens to the error signal from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

from signalprop.capture.trace import Trace
from signalprop.diagnosis.depth import spine
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding, Learning
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule


def _judged(evidence: Evidence) -> Trace:
    """The trace to judge deltas by: after the rehearsed updates where a zero weight cut them."""
    cut = evidence.trace.cut is not None and evidence.later is not None
    return evidence.later if cut and evidence.later is not None else evidence.trace


def _needs_spine(trace: Trace) -> None:
    if len(trace.blocks) < 2:
        raise NotApplicable("the network has no chain of layers that every path runs through")


@rule(
    "SP101",
    "Error signal vanishes with depth",
    needs=("deltas", "learning"),
    cures=(
        "self-normalize",
        "he-init",
        "residual",
        "highway",
        "swap-activation",
        "normalise",
        "adam",
        "pretrain",
    ),
)
def vanishing(evidence: Evidence, *, nats: float = 7.0, idle: float = 1e-4) -> Iterator[Finding]:
    """The error signal is lost on its way back, so that the layers it should reach stay idle.

    How it is detected:
        The largest loss of |delta| between two sites of the spine, L2 norm per sample, averaged
        over samples as a logarithm, exceeds `nats` (a factor 1100), and among the trained layers
        below are some with less than `idle` of a fair part of the first-order decrease of the loss
        in the optimizer's own next update, and in the last of the rehearsed ones. That part falls
        with the square of delta under SGD and in proportion under Adam, so Adam is forgiven more.
        Where delta is exactly zero the pass is seen again after a few rehearsed updates on copies:
        a zero-initialised head lets delta through after one.

    Why it matters:
        dL/dW of a layer is the outer product of its delta and its input. Layers without a delta
        keep their random weights, and the layers above learn from noise (Hochreiter 1991; Bengio,
        Simard & Frasconi 1994).

    How to cure it:
        The split says what takes it. Activation slope: ReLU, or SELU with LeCun initialisation.
        Weights: initialisation for the activation (He, LeCun, orthogonal); nn.Linear's default has
        variance 1/(3 n). Both: residual connections or normalisation.

    Yields:
        One finding, from the site where least arrives.

    Raises:
        NotApplicable: there is no chain of layers.
    """
    trace = _judged(evidence)
    _needs_spine(trace)
    drop = spine.largest_drop(trace)
    if drop is None or drop.nats > -nats:
        return
    weak = set(spine.weak_layers(evidence, idle))
    below = [layer for layer in _layers_below(evidence, trace, drop, nats) if layer in weak]
    if not below:
        return
    if drop.nats == -math.inf:
        told = (
            f"delta becomes exactly zero at {trace.cut} on its way back from {drop.upper}; "
            f"layers {spine.some(below)} get no error signal at all"
        )
    else:
        layers = max(drop.layers, 1)
        shares = evidence.learning.share if evidence.learning is not None else {}
        share = sum(abs(shares.get(layer, 0.0)) for layer in below)
        told = (
            f"delta loses {-drop.nats:.1f} nats (a factor {_factor(drop.nats)}) from {drop.upper} "
            f"back to {drop.lower}, {drop.nats / layers:+.2f} per layer over {layers} layers: "
            f"{drop.split()}; layers {spine.some(below)} get {share:.0e} of the learning"
        )
    yield finding(
        vanishing,
        sites=(drop.lower, drop.upper),
        value=drop.nats,
        unit="nats",
        threshold=-nats,
        explanation=told,
    )


def _layers_below(evidence: Evidence, trace: Trace, change: spine.Change, nats: float) -> list[str]:
    """Trained layers at and below the site where the change has reached `nats`."""
    total = 0.0
    place = trace.sites[change.lower].order
    for block in reversed(change.blocks):
        total += block.decay
        if abs(total) >= nats:
            # the layer that made the block's end site got that site's delta, so it is not below
            place = trace.sites[block.start].order
            break
    places = spine.orders(evidence.trace)
    layers = evidence.learning.share if evidence.learning is not None else ()
    return [layer for layer in layers if layer in places and places[layer] <= place]


def _factor(nats: float) -> str:
    return f"{math.exp(abs(nats)):.0f}" if abs(nats) < 9 else f"1e{abs(nats) / math.log(10):.0f}"


@rule(
    "SP102",
    "Error signal explodes with depth",
    needs=("deltas",),
    cures=(
        "he-init",
        "normalise",
        "residual-scaling",
        "swap-activation",
        "clip-gradient",
        "lower-learning-rate",
    ),
)
def exploding(evidence: Evidence, *, nats: float = 7.0) -> Iterator[Finding]:
    """The error signal grows on its way back, so that the first layers take every update.

    How it is detected:
        The largest gain of |delta| between two sites of the spine exceeds `nats` (a factor 1100).
        Growth by a normalisation right after the input or an embedding is left out: it only says
        that the input is small; so is growth within a recurrent layer, see SP302.

    Why it matters:
        One learning rate cannot serve layers whose gradients differ a thousandfold; the step that
        moves the last layer throws the first one far away. Clipping hides it and does not cure it.

    How to cure it:
        Smaller initial weights; residual branches scaled by 1/sqrt(depth) or from zero;
        normalisation inside the branches of residual blocks; an activation whose slope is bounded.
        BatchNorm without skips makes it worse
        (a factor 1.21 per ReLU layer, Yang et al. 2019).

    Yields:
        One finding, from the site where most arrives.

    Raises:
        NotApplicable: there is no chain of layers.
    """
    trace = _judged(evidence)
    _needs_spine(trace)
    rise = spine.largest_rise(trace)
    if rise is None:
        return
    gained = rise.nats - _input_scaling(trace, rise) - _in_time(trace, rise)
    if gained <= nats:
        return
    layers = max(rise.layers, 1)
    yield finding(
        exploding,
        sites=(rise.lower, rise.upper),
        value=rise.nats,
        unit="nats",
        threshold=nats,
        explanation=(
            f"delta grows by {rise.nats:.1f} nats (a factor {_factor(rise.nats)}) from "
            f"{rise.upper} back to {rise.lower}, {rise.nats / layers:+.2f} per layer over "
            f"{layers} layers: {rise.split()}"
        ),
    )


def _in_time(trace: Trace, rise: spine.Change) -> float:
    """Nats gained within recurrent layers."""
    recurrent = {axis.site.partition("#")[0] for axis in trace.time}
    inside = (b for b in rise.blocks if trace.sites[b.end].module in recurrent)
    return sum(max(b.decay, 0.0) for b in inside)


def _input_scaling(trace: Trace, rise: spine.Change) -> float:
    """Gain by normalisations before the first block with weights."""
    gain = 0.0
    for block in rise.blocks:
        if block.start not in trace.spine[:2] and spine.has_weights(trace, block):
            break
        gain += max(block.parts.get("normalisation", 0.0), 0.0)
    return gain


@rule(
    "SP103",
    "Layer does not learn",
    severity="tip",
    needs=("deltas", "learning"),
    cures=("normalise", "raise-learning-rate", "adam", "he-init"),
)
def idle_layer(evidence: Evidence, *, idle: float = 1e-7, still: float = 1e-6) -> Iterator[Finding]:
    """Single layers stay as they are while their neighbours learn.

    How it is detected:
        A trained layer has less than `idle` of a fair part of the first-order decrease of the loss
        in the optimizer's next update and in the last of the rehearsed ones, and its update is
        smaller than `still` of its weights. Layers that SP101 or SP102 explain are left out, and
        those whose gradient was exactly zero and is not any more at the last rehearsed update:
        they lie behind a weight that started at zero (ReZero, SkipInit, Fixup, LoRA), which lets
        more through with every update; nor is a learnt multiplier or shift of one number a layer.
        An issue where more than a tenth of the layers is idle,
        else a tip.

    Why it matters:
        The layer is along for the ride: its random or old weights pass the signal on, and its
        parameters are memory without use.

    How to cure it:
        Look at what multiplies its output: a tiny scale, a shut gate, a saturated activation. Give
        it its own learning rate, or freeze it on purpose.

    Yields:
        One finding that names all such layers.

    Raises:
        NotApplicable: there is one layer only, or most updates are lost in rounding.
    """
    learning = evidence.learning
    assert learning is not None
    if len(learning.share) < 2:
        raise NotApplicable("a network of one layer")
    trace = _judged(evidence)
    explained: set[str] = set()
    for change in (spine.largest_drop(trace), spine.largest_rise(trace)):
        if change is not None and abs(change.nats) > 7:
            explained |= set(_layers_below(evidence, trace, change, 7.0))
            if change.nats > 0:
                explained |= set(learning.share)
    rounded = [share > 0.5 for share in learning.unmoved.values()]
    if rounded and sum(rounded) > len(rounded) / 2:
        raise NotApplicable("most layers stay bit for bit the same, which SP101 or SP211 explains")
    held = _held(evidence)
    weak = [
        layer
        for layer in spine.weak_layers(evidence, idle)
        if layer not in explained
        and not _woken(learning, layer)
        and not spine.single_numbers(trace, layer)
        and learning.update_ratio.get(layer, 0.0) < still
        and (held is None or layer in held)
    ]
    if not weak:
        return
    worst = min(weak, key=lambda layer: abs(learning.share[layer]))
    many = len(weak) > 0.1 * len(learning.share)
    yield finding(
        idle_layer,
        sites=weak,
        value=abs(learning.share[worst]),
        unit="share of the learning",
        threshold=idle / len(learning.share),
        severity="issue" if many else "tip",
        explanation=(
            f"layers {spine.some(weak)} would move by "
            f"{learning.update_ratio.get(worst, 0.0):.0e} of their weights in the next update of "
            f"{learning.optimizer}, and have {abs(learning.share[worst]):.0e} of the learning "
            f"among {len(learning.share)} layers"
        ),
    )


def _woken(learning: Learning, layer: str) -> bool:
    """Whether a gradient that was exactly zero has appeared during the rehearsed updates."""
    return learning.share[layer] == 0 and learning.later_share.get(layer, 0.0) != 0


def _held(evidence: Evidence) -> set[str] | None:
    """The layers that the optimizer holds a parameter of; None where it is assumed to hold all."""
    if evidence.optimizer is None:
        return None
    return {name.rpartition(".")[0] for name in evidence.optimizer.held}


#: activations that cannot grow, so that growing differences are chaos and not growth
_BOUNDED = frozenset({"tanh", "erf", "softsign", "hardtanh", "sin"})


@rule(
    "SP107",
    "Chaos: small differences grow with depth",
    needs=("deltas",),
    cures=("critical-init", "orthogonal-init", "residual", "self-normalize"),
)
def chaos(evidence: Evidence, *, nats: float = 3.0, per_layer: float = 0.05) -> Iterator[Finding]:
    """Neighbouring inputs are torn apart, and the error signal grows with every layer.

    How it is detected:
        On a spine of bounded activations (tanh, erf, softsign) without skips: the
        relative sensitivity |delta| * rms(activation) grows on the way back by more than `nats` in
        all and `per_layer` nats per layer, from the first such activation to the last, and depth
        has not made the samples alike.

    Why it matters:
        In the chaotic phase (chi_1 > 1, Poole et al. 2016) the output depends on the input like a
        hash: the net fits the training set and generalises to nothing, and gradients explode.
        torch's gain of 5/3 for tanh lies there.

    How to cure it:
        Initialise at the critical line for the activation (tanh: gain 1, or orthogonal), or use
        residual connections.

    Yields:
        One finding, from the first bounded activation to the last.

    Raises:
        NotApplicable: there is no chain of bounded activations without skips.
    """
    trace = _judged(evidence)
    _needs_spine(trace)
    sites = [s for s in spine.hidden(trace) if s.op in _BOUNDED]
    layers = len(sites) - 1
    weights = sum(spine.has_weights(trace, b) for b in trace.blocks)
    if layers < 3 or layers < weights / 2 or any(b.residual for b in trace.blocks):
        raise NotApplicable("no chain of bounded activations (tanh, erf, softsign) without skips")
    level = spine.levels(trace)
    start, last = sites[0], sites[-1]
    if not (start.activation.rms > 0 and last.activation.rms > 0):
        return
    gain = level[start.name] - level[last.name]
    gain += math.log(start.activation.rms / last.activation.rms)
    apart = last.activation.cosine <= max(start.activation.cosine, 0.5) or trace.batch < 2
    if not gain > nats or gain / layers < per_layer or not apart:
        return
    yield finding(
        chaos,
        sites=(start.name, last.name),
        value=gain,
        unit="nats",
        threshold=nats,
        explanation=(
            f"a small relative change at {start.name} arrives {_factor(gain)} times as large at "
            f"{last.name} ({gain / layers:+.2f} nats per layer over {layers} layers), while the "
            f"mean cosine between samples goes from {start.activation.cosine:.2f} to "
            f"{last.activation.cosine:.2f}"
        ),
    )


BACKWARD_RULES: tuple[Rule, ...] = (vanishing, exploding, idle_layer, chaos)
