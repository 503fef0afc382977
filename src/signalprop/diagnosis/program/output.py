"""Rules about the end of the network: what its last activation is to the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator

from signalprop.capture.trace import LossCall, Site, Trace
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program.words import quoted
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule
from signalprop.diagnosis.samples import output_activation, silent_share

#: losses that apply log_softmax themselves, and those that apply a sigmoid themselves
SOFTMAX_INSIDE = frozenset({"cross_entropy"})
SIGMOID_INSIDE = frozenset({"binary_cross_entropy_with_logits", "multilabel_soft_margin_loss"})
#: losses of classes and probabilities
CLASSIFICATION = SOFTMAX_INSIDE | SIGMOID_INSIDE | {"nll_loss", "kl_div", "binary_cross_entropy"}
#: losses that compare numbers with numbers
REGRESSION = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})

#: what an activation can put out, by its name; those with no entry reach every number
RANGES: dict[str, tuple[float, float]] = {
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "softplus": (0.0, math.inf),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "erf": (-1.0, 1.0),
    "log_softmax": (-math.inf, 0.0),
    "logsigmoid": (-math.inf, 0.0),
    "exp": (0.0, math.inf),
}


def loss_calls(trace: Trace) -> tuple[LossCall, ...]:
    """The loss functions seen.

    Returns:
        All of them, at least one.

    Raises:
        NotApplicable: there is none.
    """
    if not trace.losses:
        raise NotApplicable("no loss function of torch was seen; the loss is written by hand")
    return trace.losses


def place(call: LossCall) -> tuple[str, ...]:
    """The site that made the input of a loss, where it is known."""
    return (call.site,) if call.site is not None else ()


def output(call: LossCall) -> str:
    """The output of the network in a sentence, with its place."""
    return f"the output of {quoted(call.site)}" if call.site else "the network's output"


@rule(
    "SP204",
    "Activation on the output does not fit the loss",
    cures=(
        "remove-output-activation",
        "add-sigmoid",
        "use-bce-with-logits",
        "use-cross-entropy",
        "scale-targets",
    ),
)
def unfit_output(
    evidence: Evidence,
    *,
    floor: float = 0.05,
    cut: float = 0.1,
    margin: float = 0.5,
    lost: float = 0.2,
    most: float = 0.5,
    mute: float = 0.99,
) -> Iterator[Finding]:
    """The last activation keeps the network from putting out what the loss asks for.

    How it is detected:
        A regression loss compares the output of a bounded activation with targets that lie outside
        its range by more than `margin` standard deviations of the targets. A loss on logits is
        given the output of a ReLU of which more than a share `cut` is exactly zero, or of a tanh,
        so that it cannot fall below `floor` nats. A softmax runs over one unit and is always 1,
        whatever the loss. The last activation (softmax, sigmoid, tanh) is at an end of its range,
        to rounding, for more than a share `lost` of the samples, so that their delta before it is
        exactly zero, although their loss is not at its floor. Below a share `most` this is a tip
        before the first update, as the other samples may still free them; and of a ReLU under a
        regression loss it is looked at only where more than `mute` of all samples have no delta.
        At the floor are losses no more than a twentieth of the loss with other samples' targets
        above the smallest one: those of samples that are fitted perfectly, masked, or on the good
        side of a hinge.
        `binary_cross_entropy` is given numbers outside 0..1. As a tip: a sigmoid trained by a
        regression loss on targets that are all 0 or 1, and a ReLU output that is zero everywhere.

    Why it matters:
        What lies outside the range cannot be learned, and where the activation is flat no error
        signal passes: a ReLU output below zero gets none at all, and a sigmoid that is sure of the
        wrong answer gets almost none under squared error, while cross-entropy would give it the
        largest.

    How to cure it:
        End the model with its linear layer and let the loss bring the activation
        (`cross_entropy`, `binary_cross_entropy_with_logits`); for regression keep the last layer
        linear, or scale the targets into the range of the activation.

    Yields:
        One finding for every output that does not fit.
    """
    seen: set[tuple[str, str | None]] = set()
    flat = _always_one(evidence.trace) or _lost(evidence, lost, most, mute)
    if flat is not None:
        yield flat
    for call in evidence.trace.losses if flat is not None else loss_calls(evidence.trace):
        if flat is not None and call.site in flat.sites:
            continue
        if (call.op, call.site) in seen:
            continue
        seen.add((call.op, call.site))
        found = (
            _constant(call)
            or _outside_unit(evidence.trace, call)
            or _logits(evidence.trace, call, floor, cut)
            or _regression(evidence.trace, call, margin)
        )
        if found is not None:
            yield found


def _always_one(trace: Trace) -> Finding | None:
    """A softmax over one unit at the end of the model, before whatever loss."""
    found = output_activation(trace)
    if found is None or found[0].op not in ("softmax", "log_softmax"):
        return None
    seen, level = found[0].activation, 1.0 if found[0].op == "softmax" else 0.0
    if not (seen.mean == level == seen.rms):
        return None
    return _single((found[0].name,), f"the {found[0].op} at {quoted(found[0].name)}")


def _lost(evidence: Evidence, lost: float, most: float, mute: float) -> Finding | None:
    """Samples that can learn nothing, as the last activation is flat for them."""
    found, facts = output_activation(evidence.trace), evidence.samples
    if found is None or facts is None:
        return None
    site = found[0]
    if facts.lost <= lost:
        return None
    scores = {call.op for call in evidence.trace.losses} & CLASSIFICATION
    one_sided = site.op in ("relu", "exp", "softplus") and not scores
    if one_sided and silent_share(evidence.trace) <= mute:
        return None
    early = evidence.optimizer is not None and evidence.optimizer.fresh
    early = early and silent_share(evidence.trace) <= mute and facts.lost <= most
    binary = ("use-bce-with-logits", "remove-output-activation")
    cures = {
        "softmax": ("use-cross-entropy", "remove-output-activation"),
        "sigmoid": binary,
        "hardsigmoid": binary,
    }
    return finding(
        unfit_output,
        sites=(site.name,),
        value=facts.lost,
        unit="share of samples without an error signal",
        threshold=lost,
        explanation=(
            f"the {site.op} at the output, {quoted(site.name)}, is at an end of its range for "
            f"{facts.lost:.0%} of the samples, where its slope is zero: their loss is "
            f"{facts.loss:.3g} on average, but their error signal is exactly zero."
        ),
        severity="tip" if early else "issue",
        cures=cures.get(site.op, binary if scores else ("remove-output-activation",)),
    )


def _constant(call: LossCall) -> Finding | None:
    """A softmax over one unit, in the model or in the loss."""
    single = call.op in ("cross_entropy", "nll_loss") and call.classes == 1
    level = {"softmax": 1.0, "log_softmax": 0.0}.get(call.site_op or "")
    always = level is not None and call.input.low == level == call.input.high
    if not (single or always):
        return None
    where = f"the softmax of {call.op}" if single and not always else quoted(call.site or "")
    return _single(place(call), where)


def _single(sites: tuple[str, ...], where: str) -> Finding:
    return finding(
        unfit_output,
        sites=sites,
        value=1.0,
        unit="outputs under the softmax",
        threshold=2.0,
        explanation=(
            f"{where} runs over a single output, which makes it the same for every input: nothing "
            "can be learned. One output needs a sigmoid, or two classes need two outputs."
        ),
        cures=("use-bce-with-logits",),
    )


def _outside_unit(trace: Trace, call: LossCall) -> Finding | None:
    if call.op != "binary_cross_entropy":
        return None
    low, high = call.input.low, call.input.high
    if not (low < 0 or high > 1):
        return _bare_scores(trace, call)
    return finding(
        unfit_output,
        sites=place(call),
        value=low if low < 0 else high,
        unit="output",
        threshold=0.0 if low < 0 else 1.0,
        explanation=(
            f"binary_cross_entropy needs probabilities, but {output(call)} lies between {low:.3g} "
            f"and {high:.3g}: there is no sigmoid before it."
        ),
        cures=("use-bce-with-logits", "add-sigmoid"),
    )


def _bare_scores(trace: Trace, call: LossCall) -> Finding | None:
    """The output of a layer with weights is in 0..1 by chance only."""
    site = trace.sites.get(call.site or "")
    if site is None or site.kind != "weights":
        return None
    return finding(
        unfit_output,
        sites=place(call),
        value=call.input.high,
        unit="output",
        threshold=1.0,
        explanation=(
            f"binary_cross_entropy needs probabilities, but {output(call)} comes straight from a "
            "layer with weights: only this batch happens to lie within 0 and 1."
        ),
        cures=("use-bce-with-logits", "add-sigmoid"),
    )


def _logits(trace: Trace, call: LossCall, floor: float, cut: float) -> Finding | None:
    """Activations between the last layer and a loss on logits, softmax and sigmoid apart."""
    if call.op not in SOFTMAX_INSIDE | SIGMOID_INSIDE:
        return None
    where = quoted(call.site or "")
    if call.site_op in ("relu", "relu6"):
        site = trace.sites[call.site] if call.site else None
        zeros = site.activation.zeros if site is not None else 0.0
        if call.op in SIGMOID_INSIDE and call.target is not None:
            lowest = (1 - call.target.mean) * math.log(2)
            if lowest > floor:
                told = f"no probability falls below 0.5 and the loss not below {lowest:.2f}"
                return _floored(call, lowest, floor, f"pass a ReLU at {where}, so that {told}")
        if zeros <= cut:
            return None
        return finding(
            unfit_output,
            sites=place(call),
            value=zeros,
            unit="share of outputs cut to zero",
            threshold=cut,
            explanation=(
                f"{call.op} takes logits of either sign, but they pass a ReLU at {where}: "
                f"{zeros:.0%} of them are cut to exactly zero and get no error signal."
            ),
            cures=("remove-output-activation",),
        )
    if call.site_op not in ("tanh", "softsign", "erf"):
        return None
    classes = call.classes or 1
    if call.op in SOFTMAX_INSIDE:
        lowest = math.log1p((classes - 1) * math.exp(-2))
    else:
        lowest = math.log1p(math.exp(-1))
    if lowest <= floor:
        return None
    told = f"and stay between -1 and 1, so that {call.op} cannot fall below {lowest:.2f}"
    return _floored(call, lowest, floor, f"pass a {call.site_op} at {where} {told}")


def _floored(call: LossCall, lowest: float, floor: float, told: str) -> Finding:
    return finding(
        unfit_output,
        sites=place(call),
        value=lowest,
        unit="nats, the lowest loss possible",
        threshold=floor,
        explanation=f"the logits {told}.",
        cures=("remove-output-activation",),
    )


def _regression(trace: Trace, call: LossCall, margin: float) -> Finding | None:
    target = call.target
    if call.op not in REGRESSION or target is None or not target.finite or target.std == 0:
        return None
    if call.site_op not in RANGES:
        return None
    low, high = RANGES[call.site_op or ""]
    below, above = (low - target.low) / target.std, (target.high - high) / target.std
    if max(below, above) > margin:
        bound = f"cannot go below {low:g}" if below >= above else f"cannot exceed {high:g}"
        return finding(
            unfit_output,
            sites=place(call),
            value=max(below, above),
            unit="standard deviations of the targets out of range",
            threshold=margin,
            explanation=(
                f"{output(call)} is a {call.site_op} and {bound}, but the targets run from "
                f"{target.low:.3g} to {target.high:.3g}: those outside can never be reached."
            ),
            cures=("remove-output-activation", "scale-targets"),
        )
    site = trace.sites[call.site] if call.site else None
    if call.site_op in ("relu", "relu6") and site is not None:
        return _silent(site)
    if call.site_op == "sigmoid" and _binary(call):
        return finding(
            unfit_output,
            sites=place(call),
            value=target.mean,
            unit="share of targets that are 1, the others being 0",
            threshold=0.0,
            explanation=(
                f"{output(call)} is a sigmoid, trained by {call.op} on targets that are 0 or 1: "
                "where it is sure and wrong the error signal vanishes; use cross-entropy."
            ),
            severity="tip",
            cures=("use-bce-with-logits",),
        )
    return None


def _silent(site: Site) -> Finding | None:
    if site.activation.zeros < 1:
        return None
    return finding(
        unfit_output,
        sites=(site.name,),
        value=1.0,
        unit="share of outputs that are zero",
        threshold=1.0,
        explanation=(
            f"the ReLU at the output, {quoted(site.name)}, is zero for every sample of the "
            "batch, so no error signal passes it."
        ),
        severity="tip",
        cures=("remove-output-activation",),
    )


def _binary(call: LossCall) -> bool:
    """Whether all targets are 0 or 1, both there."""
    target = call.target
    return target is not None and target.whole and target.low == 0 and target.high == 1


OUTPUT_RULES: tuple[Rule, ...] = (unfit_output,)
