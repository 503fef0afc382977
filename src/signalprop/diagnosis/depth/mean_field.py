"""Rules that hold a network against mean-field theory, and its blocks against each other.

What theory says of an initialisation becomes a finding only where the pass itself shows it: a
network that theory calls too deep, and that hands its signal on all the same, is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from signalprop.capture.trace import Block, Site, Trace
from signalprop.diagnosis.depth import spine
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule
from signalprop.errors import SignalpropError
from signalprop.theory import Activation, MeanField

#: hidden layers that a stack has at least
LAYERS = 6


@dataclass(frozen=True)
class Stack:
    """A plain network: weights and one activation in turn, nothing between.

    Attributes:
        layers: how many hidden layers.
        first: site of the first.
        last: site of the last activation.
        activation: name of its activation.
        field: mean-field theory for that and the median variances of its weights.
    """

    layers: int
    first: str
    last: str
    activation: str
    field: MeanField


def stack_of(evidence: Evidence) -> Stack:
    """The plain network that a trace is of.

    Args:
        evidence: what was measured.

    Returns:
        Its stack.

    Raises:
        NotApplicable: it has skips, normalisation, several activations or too few layers.
    """
    trace = evidence.trace
    if any(b.residual or b.parts.keys() - {"weights", "slope", "other"} for b in trace.blocks):
        raise NotApplicable("theory's depth scales are those of plain layers")
    layers = [
        (trace.sites[below.end], trace.sites[above.end])
        for below, above in zip(trace.blocks, trace.blocks[1:], strict=False)
        if below.parts.keys() == {"weights"} and above.parts.keys() == {"slope"}
    ]
    ops = {site.op for _, site in layers}
    if len(layers) < LAYERS or len(ops) != 1:
        raise NotApplicable(f"it is no stack of {LAYERS} layers with one activation")
    found = [_variances(trace, site) for site, _ in layers]
    known = [pair for pair in found if pair is not None]
    if len(known) < LAYERS:
        raise NotApplicable("the weights of its layers are not known")
    first, last = layers[0][0], layers[-1][1]
    module = evidence.module_of(last) if last.name == last.module else None
    try:
        phi = Activation.of(last.op if module is None else module)
        field = MeanField(phi, median(w for w, _ in known), median(b for _, b in known))
    except SignalpropError as why:
        raise NotApplicable(str(why)) from None
    return Stack(len(layers), first.name, last.name, last.op, field)


def _variances(trace: Trace, site: Site) -> tuple[float, float] | None:
    """n_in Var(W) and Var(b) of a site's module."""
    own = {w.name.rpartition(".")[2]: w for w in trace.weights.values() if w.module == site.module}
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or len(weight.shape) < 2 or not weight.finite:
        return None
    return math.prod(weight.shape[1:]) * weight.rms**2, bias.rms**2 if bias is not None else 0.0


# ---- SP114 -------------------------------------------------------------------------------------


@rule(
    "SP114",
    "Deeper than its initialisation bears",
    severity="tip",
    needs=("deltas", "learning"),
    cures=("critical-init", "he-init", "residual", "highway", "self-normalize"),
)
def too_deep(
    evidence: Evidence, *, scales: float = 6.0, nats: float = 7.0, idle: float = 1e-4
) -> Iterator[Finding]:
    """The network is in the ordered phase, and deeper than what it hands on reaches.

    How it is detected:
        For a plain stack of layers with one activation. Mean-field theory for that activation and
        the measured variances of weights and biases gives the depth xi_c over which the
        correlation of two inputs settles by a factor e; more layers than `scales` xi_c cannot be
        trained (Schoenholz et al. 2017). It is told where the pass agrees: delta has lost `nats`,
        and some layers get less than `idle` of a fair part of the optimizer's next updates, as in
        SP101: an adaptive optimizer bears more depth.

    Why it matters:
        Beyond that depth the output does not depend on the input, and delta does not on the output.
        It says what the initialisation is worth, and how far it is from the edge of chaos.

    How to cure it:
        Move the weights' variance to the critical line for this activation (He for ReLU, 1/n for
        tanh with small biases); or residual connections, which have no such depth.

    Yields:
        One finding.

    Raises:
        NotApplicable: it is no plain stack of six layers.
    """
    stack = stack_of(evidence)
    field = stack.field
    if not field.chi_1 < 1:
        return
    # where nothing is left of the variance, correlations go with the squared error signal
    depth = field.xi_c if math.isfinite(field.xi_c) else -1 / math.log(max(field.chi_1, 1e-300))
    bears = scales * depth
    if stack.layers <= bears:
        return
    if evidence.trace.decay > -nats or not spine.weak_layers(evidence, idle):
        return
    yield finding(
        too_deep,
        sites=(stack.first, stack.last),
        value=stack.layers / depth,
        unit="correlation depths",
        threshold=scales,
        explanation=(
            f"{stack.layers} layers of {stack.activation} with a weight variance of "
            f"{field.weight_variance:.2f} / n multiply the squared error signal by chi = "
            f"{field.chi_1:.2f} each: mean-field theory gives such a network about "
            f"{max(bears, 1):.0f} layers"
        ),
    )


# ---- SP115 -------------------------------------------------------------------------------------


@rule(
    "SP115",
    "Initialised on the chaotic side of the edge",
    severity="tip",
    needs=("deltas",),
    cures=("critical-init", "smaller-init", "orthogonal-init"),
)
def beyond_the_edge(
    evidence: Evidence, *, scales: float = 6.0, nats: float = 3.0
) -> Iterator[Finding]:
    """The network is in the chaotic phase, and deep enough for it to matter.

    How it is detected:
        For a plain stack as in SP114: the measured variances give chi_1 > 1, there are more layers
        than `scales` xi_c or the activations have no bound, and delta has grown by `nats` and more
        on its way back, as chi_1 says it does.

    Why it matters:
        Two inputs that differ by little end far apart, so what is learned for one says nothing
        about its neighbour, and the gradient grows exponentially with depth (Poole et al. 2016).
        `calculate_gain("tanh")` = 5/3 is on this side.

    How to cure it:
        Lower the gain to the critical line (1 for tanh), or use orthogonal weights there.

    Yields:
        One finding.

    Raises:
        NotApplicable: it is no plain stack of six layers.
    """
    stack = stack_of(evidence)
    field = stack.field
    deep = stack.layers > scales * field.xi_c or field.phase == "unbounded"
    if not (field.chi_1 > 1 and deep and evidence.trace.decay > nats):
        return
    yield finding(
        beyond_the_edge,
        sites=(stack.first, stack.last),
        value=field.chi_1,
        unit="chi_1",
        threshold=1.0,
        explanation=(
            f"with a weight variance of {field.weight_variance:.2f} / n each layer of "
            f"{stack.activation} multiplies the squared error signal by {field.chi_1:.2f}; "
            f"over {stack.layers} layers delta grows by {evidence.trace.decay:.1f} nats"
        ),
    )


# ---- SP116 -------------------------------------------------------------------------------------


@rule(
    "SP116",
    "One block has an outlying gain",
    severity="tip",
    needs=("deltas",),
    cures=("reinitialise", "normalise"),
)
def outlying_block(
    evidence: Evidence, *, nats: float = 3.0, spread: float = 6.0, blocks: int = 5
) -> Iterator[Finding]:
    """One layer multiplies the error signal by something quite other than its equals do.

    How it is detected:
        Among layers on the spine whose weights have the same shape, or residual blocks of the same
        shape, where there are `blocks` of them and more: one whose weights change delta by more
        than `nats` otherwise than the middle one, and by more than `spread` times the median
        deviation. A block that delta does not pass at all is left to other rules.

    Why it matters:
        A loaded or hand-set weight of the wrong scale hides in a total that looks fine: the one
        block saturates, or drowns, what all others do.

    How to cure it:
        Initialise that layer like its equals, or normalise after it.

    Yields:
        One finding for the block that is furthest out.

    Raises:
        NotApplicable: there are not enough equal blocks.
    """
    groups: dict[tuple[object, ...], list[tuple[str, float]]] = {}
    for block in evidence.trace.blocks:
        gain = block.decay if block.residual else block.parts.get("weights")
        shape = _shape(evidence.trace, block)
        if gain is not None and math.isfinite(gain) and shape is not None:
            groups.setdefault(shape, []).append((block.end, gain))
    equal = {shape: found for shape, found in groups.items() if len(found) >= blocks}
    if not equal:
        raise NotApplicable(f"there are not {blocks} blocks alike")
    worst: tuple[float, str, float, float] | None = None
    for found in equal.values():
        middle = median(gain for _, gain in found)
        usual = median(abs(gain - middle) for _, gain in found)
        name, gain = max(found, key=lambda pair: abs(pair[1] - middle))
        off = abs(gain - middle)
        if off > max(nats, spread * usual) and (worst is None or off > worst[0]):
            worst = (off, name, gain, middle)
    if worst is not None:
        off, name, gain, middle = worst
        yield finding(
            outlying_block,
            sites=(name,),
            value=off,
            unit="nats from the middle",
            threshold=nats,
            explanation=(
                f"{name} changes delta by {gain:+.1f} nats, blocks of the same shape by "
                f"{middle:+.1f}"
            ),
        )


def _shape(trace: Trace, block: Block) -> tuple[object, ...] | None:
    if block.residual:
        return ("residual", *trace.sites[block.end].shape[1:])
    weights = [
        w.shape
        for w in trace.weights.values()
        if w.module == trace.sites[block.end].module and len(w.shape) > 1
    ]
    return weights[0] if len(weights) == 1 else None


# ---- SP117 -------------------------------------------------------------------------------------


@rule(
    "SP117",
    "Residual branch too strong",
    severity="tip",
    needs=("deltas",),
    cures=("residual-scaling", "rezero", "normalise"),
)
def strong_branch(
    evidence: Evidence, *, per_block: float = 0.15, nats: float = 3.4, blocks: int = 4
) -> Iterator[Finding]:
    """Every residual block makes the error signal larger, by more than depth can bear.

    How it is detected:
        Of at least `blocks` residual blocks on the spine the median one makes delta grow by more
        than `per_block` nats on its way back, and from the last to the first of them, with what
        lies between, delta grows by more than `nats`.

    Why it matters:
        J = I + X with a branch of mean square gain v multiplies delta's square by 1 + v: L blocks
        by (1 + v)^L. A branch scaled by 1/sqrt(L) makes that e^v at any depth; one that starts at
        zero makes it 1.

    How to cure it:
        Scale the branch by 1/sqrt(L), or start it at zero (ReZero, SkipInit, Fixup); or normalise
        inside the branch.

    Yields:
        One finding.

    Raises:
        NotApplicable: there are not enough residual blocks.
    """
    every = evidence.trace.blocks
    places = [i for i, b in enumerate(every) if b.residual and math.isfinite(b.decay)]
    if len(places) < blocks:
        raise NotApplicable(f"there are not {blocks} residual blocks")
    found = [every[i] for i in places]
    usual = median(b.decay for b in found)
    total = sum(b.decay for b in every[places[0] : places[-1] + 1])
    if usual > per_block and total > nats:
        power = math.expm1(2 * usual)
        yield finding(
            strong_branch,
            sites=(found[0].start, found[-1].end),
            value=usual,
            unit="nats per block",
            threshold=per_block,
            explanation=(
                f"the branch of a residual block adds {power:.2g} of the skip's mean square, so "
                f"{len(found)} blocks make delta grow by {total:.1f} nats; branches scaled by "
                f"1/sqrt({len(found)}) would by {0.5 * power:.1f}"
            ),
        )


MEAN_FIELD_RULES: tuple[Rule, ...] = (too_deep, beyond_the_edge, outlying_block, strong_branch)
