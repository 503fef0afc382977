"""Rules about depth, forward: what happens to the activations from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

from signalprop.capture.trace import Site, Trace
from signalprop.diagnosis.depth import spine
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule


@rule(
    "SP104",
    "Activations vanish with depth",
    cures=("he-init", "lsuv", "normalise", "self-normalize"),
)
def activations_vanish(evidence: Evidence, *, nats: float = 7.0) -> Iterator[Finding]:
    """The activations become tiny before they reach the head.

    How it is detected:
        The rms of the last hidden activation of the spine is more than `nats` (a factor 1100) below
        the largest before it. The head itself is not counted (a zero head is sound), nor is a dip
        that a later normalisation makes good.

    Why it matters:
        What arrives at the head is rounding noise and biases; the head fits the mean of the targets
        and stops.

    How to cure it:
        Initial weights for the activation (He, LeCun), layer-sequential unit variance on a batch of
        data, or normalisation.

    Yields:
        One finding, at the last activation before the head.

    Raises:
        NotApplicable: there are fewer than three activations.
    """
    sites = spine.hidden(evidence.trace)
    if len(sites) < 3:
        raise NotApplicable("fewer than three activations between input and head")
    first = next((s for s in sites if s.activation.rms > 0), sites[0])
    peak = max(sites, key=lambda s: s.activation.rms if s.activation.finite else -1.0)
    last = sites[-1]
    if peak.activation.rms <= 0 or not last.activation.finite or peak.order >= last.order:
        return
    change = (
        math.log(last.activation.rms / peak.activation.rms) if last.activation.rms else -math.inf
    )
    if change >= -nats:
        return
    yield finding(
        activations_vanish,
        sites=(last.name, peak.name),
        value=change,
        unit="nats",
        threshold=-nats,
        explanation=(
            f"the rms of the activations falls from {peak.activation.rms:.2g} at {peak.name} to "
            f"{last.activation.rms:.2g} at {last.name}, the last one before the head "
            f"(input {first.activation.rms:.2g})"
        ),
    )


@rule(
    "SP105",
    "Activations explode with depth",
    cures=("he-init", "lsuv", "normalise", "residual-scaling", "swap-activation", "self-normalize"),
)
def activations_explode(evidence: Evidence, *, nats: float = 7.0) -> Iterator[Finding]:
    """The activations grow beyond any scale on their way up.

    How it is detected:
        The largest rms on the spine is more than `nats` (a factor 1100) above the rms at the input
        end, and above one times that factor: an embedding that starts small and is brought to scale
        is no explosion.

    Why it matters:
        The loss starts far from chance, its gradient is dominated by a few samples, half precision
        overflows.

    How to cure it:
        Smaller initial weights, residual branches scaled by 1/sqrt(depth) or from zero,
        normalisation, an activation that grows no faster than its input.

    Yields:
        One finding, at the largest activation.

    Raises:
        NotApplicable: there are fewer than three activations.
    """
    sites = [s for s in evidence.trace.spine_sites() if s.activation.finite]
    if len(sites) < 3:
        raise NotApplicable("fewer than three activations on the spine")
    base = max(sites[0].activation.rms, 1.0)
    peak = max(sites, key=lambda s: s.activation.rms)
    growth = math.log(peak.activation.rms / base) if peak.activation.rms else -math.inf
    if growth <= nats:
        return
    yield finding(
        activations_explode,
        sites=(peak.name,),
        value=growth,
        unit="nats",
        threshold=nats,
        explanation=(
            f"the rms of the activations grows from {sites[0].activation.rms:.2g} at "
            f"{sites[0].name} to {peak.activation.rms:.2g} at {peak.name}"
        ),
    )


@rule(
    "SP106",
    "Inputs become indistinguishable with depth",
    needs=("learning",),
    cures=("normalise", "residual", "highway", "critical-init", "self-normalize"),
)
def indistinguishable(
    evidence: Evidence,
    *,
    distance: float = 2e-4,
    grown: float = 1.1,
    floor: float = 1e-7,
    collapsed: float = 0.1,
    near: float = 1e-2,
    samples: int = 4,
) -> Iterator[Finding]:
    """Different inputs arrive at the head as the same vector, and the next updates do not help.

    How it is detected:
        The distance 1 - (mean cosine between two samples) at the last hidden activation, relative
        to that at the input end of the spine, now and after the rehearsed updates on copies. It is
        found where it then is below `distance` and has not grown by a factor of `grown` (or to
        `floor`, float32's resolution), and where the updates have made it fall to a share
        `collapsed` of itself and below `near`. Not applicable below `samples` samples, nor where
        the last hidden layer is one wide: two numbers of one sign have a cosine of 1.

    Why it matters:
        The head cannot tell samples apart that arrive alike, however healthy the gradient norms
        look: this is the ordered phase of mean-field theory, correlation going to 1 (Poole et al.
        2016; Schoenholz et al. 2017). Adam often pulls the samples apart within a few updates, and
        then nothing is found; plain SGD rarely does. LayerNorm without skips keeps the gradient and
        loses the distance as soon as it is trained.

    How to cure it:
        Initialise at the edge of chaos for the activation, use residual connections, or BatchNorm.

    Yields:
        One finding, at the last activation before the head.

    Raises:
        NotApplicable: there are too few samples, or they do not differ.
    """
    before = relative_distance(evidence.trace, samples)
    if evidence.later is None:
        return
    after = relative_distance(evidence.later, samples)
    pulled = after >= grown * before and after > floor
    lost = after < distance and not pulled
    if not (lost or (after < collapsed * before and after < near)):
        return
    start, last = ends(evidence.later)
    when = "" if lost and before < distance else "after a few updates on copies, "
    yield finding(
        indistinguishable,
        sites=(last.name,),
        value=after,
        unit="of the distance at the input",
        threshold=distance if lost else near,
        explanation=(
            f"{when}two samples that have a mean cosine of {start.activation.cosine:.3f} at "
            f"{start.name} have {cosine(last.activation.cosine)} at {last.name}, the last "
            "activation before the head"
        ),
    )


def relative_distance(trace: Trace, samples: int = 4) -> float:
    """1 - (mean cosine between samples) at the last hidden activation over that at the input end.

    Returns:
        The ratio, 0 where the samples have become the same.

    Raises:
        NotApplicable: it cannot be taken.
    """
    if trace.batch < samples:
        raise NotApplicable(f"needs at least {samples} samples, got {trace.batch}")
    start, last = ends(trace)
    if spine.width(trace, last.name) < 2:
        raise NotApplicable("the last hidden layer is one wide, so its cosine says nothing")
    if math.isnan(start.activation.cosine) or math.isnan(last.activation.cosine):
        raise NotApplicable("the samples lie in one row, or an activation is not finite")
    if last.activation.rms == 0:
        raise NotApplicable("the last hidden activation is zero")
    far = 1 - start.activation.cosine
    if far <= 1e-6:
        raise NotApplicable("the samples of the batch do not differ at the input")
    return max(1 - last.activation.cosine, 0.0) / far


def ends(trace: Trace) -> tuple[Site, Site]:
    """The first and the last hidden activation of the spine.

    Returns:
        Their sites.

    Raises:
        NotApplicable: there are none.
    """
    sites = spine.hidden(trace)
    if len(sites) < 2:
        raise NotApplicable("no hidden activation on the spine")
    return sites[0], sites[-1]


def cosine(value: float) -> str:
    """`0.4567`, `1 - 5e-05`."""
    if 1 - value < 1e-6:
        return "1 to within rounding"
    return f"1 - {1 - value:.0e}" if 1 - value < 1e-3 else f"{value:.4f}"


@rule(
    "SP108",
    "Tokens collapse to one direction",
    cures=("residual", "residual-scaling", "normalise"),
)
def token_collapse(evidence: Evidence, *, distance: float = 1e-2) -> Iterator[Finding]:
    """The positions of a sequence become the same vector: rank collapse.

    How it is detected:
        1 - (mean cosine between two tokens of a sample) at the last residual sum or normalisation
        is below `distance` times that at the first one.

    Why it matters:
        Attention averages; without skips strong enough against it the tokens converge doubly
        exponentially to one vector (Dong, Cordonnier & Loukas 2021), and the gradients of queries
        and keys vanish (Noci et al. 2022).

    How to cure it:
        Keep the skips, scale the branches by 1/sqrt(depth), keep the feed-forward parts.

    Yields:
        One finding, at the last residual sum or normalisation.

    Raises:
        NotApplicable: there is no stream of tokens.
    """
    tokens = [s for s in evidence.trace.sites.values() if s.activation.token_cosine is not None]
    if len(tokens) < 3:
        raise NotApplicable("no stream of tokens (batch, tokens, features)")
    first, last = tokens[0], tokens[-1]
    near, far = 1 - _token_cosine(last), 1 - _token_cosine(first)
    if math.isnan(near) or math.isnan(far) or far <= 1e-6:
        raise NotApplicable("the tokens do not differ at the input")
    if near >= distance * far:
        return
    yield finding(
        token_collapse,
        sites=(last.name,),
        value=near / far,
        unit="of the distance at the first",
        threshold=distance,
        explanation=(
            f"the tokens of a sample have a mean cosine of {_token_cosine(first):.3f} at "
            f"{first.name} and {cosine(_token_cosine(last))} at {last.name}"
        ),
    )


def _token_cosine(site: Site) -> float:
    value = site.activation.token_cosine
    return math.nan if value is None else value


@rule(
    "SP109",
    "Residual stream grows exponentially",
    cures=("residual-scaling", "normalise", "rezero"),
)
def stream_grows(
    evidence: Evidence, *, per_block: float = 0.15, nats: float = 3.4
) -> Iterator[Finding]:
    """Every residual block multiplies the stream, instead of adding a little to it.

    How it is detected:
        The rms of the residual stream grows by more than `nats` (a factor 30) in all, and by more
        than `per_block` nats per block over the upper half of the blocks. A sum of independent
        branches of equal size grows with the square root of depth, ever slower; only branches that
        grow with the stream keep up that rate.

    Why it matters:
        Variance 2^depth at He initialisation: activations and gradients overflow, and the upper
        blocks drown what the lower ones wrote.

    How to cure it:
        Normalise the input of each branch, scale branches by 1/sqrt(depth), or start them at zero
        (ReZero, Fixup, SkipInit).

    Yields:
        One finding, from the last residual block to the first.

    Raises:
        NotApplicable: there are fewer than four residual blocks.
    """
    stream = [evidence.trace.sites[b.end] for b in evidence.trace.blocks if b.residual]
    if len(stream) < 4:
        raise NotApplicable("fewer than four residual blocks on the spine")
    rms = [s.activation.rms for s in stream]
    if not all(math.isfinite(r) and r > 0 for r in rms):
        return
    total = math.log(max(rms) / rms[0])
    middle = len(rms) // 2
    rate = math.log(rms[-1] / rms[middle]) / (len(rms) - 1 - middle)
    if total <= nats or rate <= per_block:
        return
    yield finding(
        stream_grows,
        sites=(stream[-1].name, stream[0].name),
        value=rate,
        unit="nats per block",
        threshold=per_block,
        explanation=(
            f"the rms of the residual stream grows from {rms[0]:.2g} at {stream[0].name} to "
            f"{rms[-1]:.2g} at {stream[-1].name}, a factor {math.exp(rate):.2f} per block in the "
            "upper half"
        ),
    )


FORWARD_RULES: tuple[Rule, ...] = (
    activations_vanish,
    activations_explode,
    indistinguishable,
    token_collapse,
    stream_grows,
)
