"""The rule about numbers that are none: where the first nan or infinity comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from signalprop.capture.trace import Site, Trace, Weight
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program.words import quoted
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule


@rule(
    "SP202",
    "First value that is not finite",
    cures=(
        "clean-data",
        "guard-operation",
        "use-cross-entropy",
        "use-bce-with-logits",
        "float32",
        "swap-activation",
        "self-normalize",
        "normalise",
        "he-init",
    ),
)
def not_finite(evidence: Evidence, *, headroom: float = 1e-3) -> Iterator[Finding]:
    """A nan or an infinity reaches the loss or the gradients; this is where it begins.

    How it is detected:
        Only where the loss, the gradient of a trained parameter, or a parameter itself is not
        finite, or where the model or the loss raised after a site that is not (torch's
        `binary_cross_entropy` refuses a nan): infinities that are masked out, as in attention, do
        no harm. Then the first place is
        looked for in this order: parameters, inputs, targets, the first site in execution order,
        the loss; and, where all of these are finite, the last site with a delta that is not. A
        site of -inf alone before a softmax is a mask and is passed over. Where the values before
        it came within a factor `headroom` of the largest number of their dtype, the message says
        overflow.

    Why it matters:
        One nan makes every parameter nan in one update. What is seen is a loss of nan; what is to
        be repaired is the first operation that made one.

    How to cure it:
        Remove or fill in missing values in the data. Guard the operation: log(x + eps),
        sqrt(x + eps), division by a sum that can be zero, softmax over a row that is masked
        everywhere. On overflow keep that part in float32, or lower the scale: initialisation,
        normalisation, an activation that does not grow like exp.

    Yields:
        One finding, for the first place.

    Raises:
        NotApplicable: the pass stopped before there was a loss, and all was finite up to there.
    """
    trace = evidence.trace
    early = trace.failure is not None and trace.failure.phase != "backward"
    if early and not _bad_sites(trace) and all(w.finite for w in trace.weights.values()):
        raise NotApplicable("the pass stopped before there was a loss")
    found = _root(evidence, headroom)
    if found is not None:
        where, told, cures = found
        if early and trace.failure is not None:
            told += f" So the pass stopped: {trace.failure.message}."
        yield finding(
            not_finite,
            sites=(where,),
            value=max(1, _count(trace)),
            unit="places that are not finite",
            threshold=0,
            explanation=told,
            cures=cures,
        )


def _root(evidence: Evidence, headroom: float) -> tuple[str, str, tuple[str, ...]] | None:
    """Place, explanation and cures of the first value that is not finite."""
    trace = evidence.trace
    weight = next((w for w in trace.weights.values() if not w.finite and _used(w)), None)
    if weight is not None:
        return (
            weight.name,
            f"the parameter {quoted(weight.name)} itself is not finite.",
            ("reinitialise",),
        )
    loss_bad = not math.isfinite(trace.loss) and _has_loss(trace)
    gradients_bad = any(
        w.gradient is not None and not math.isfinite(w.gradient) for w in trace.weights.values()
    )
    stopped = trace.failure is not None and bool(_bad_sites(trace))
    if not (loss_bad or gradients_bad or stopped):
        return None
    for name, given in trace.inputs.items():
        # -inf alone is a mask; what it does is seen further on
        if not given.finite and not (given.low == -math.inf and math.isfinite(given.high)):
            kind = "nan" if math.isnan(given.low) else "an infinity"
            return (
                name,
                f"the data holds {kind}: {name}, shape {list(given.shape)}.",
                ("clean-data",),
            )
    for call in trace.losses:
        if call.target is not None and not call.target.finite and call.input.finite:
            return "target", f"the target given to {call.op} is not finite.", ("clean-data",)
    if loss_bad or _bad_sites(trace):
        place = _forward(evidence, headroom)
        if place is not None:
            return place
    return _in_loss(trace) if loss_bad else _backward(trace)


def _count(trace: Trace) -> int:
    """Sites with an activation or a delta that is not finite: what grew out of the first."""
    return sum(
        not s.activation.finite or (s.delta is not None and not s.delta.finite)
        for s in trace.sites.values()
    )


def _used(weight: Weight) -> bool:
    return weight.order is not None or weight.gradient is not None


def _has_loss(trace: Trace) -> bool:
    return trace.failure is None or trace.failure.phase == "backward"


def _bad_sites(trace: Trace) -> list[Site]:
    """Sites that are not finite, masks before a softmax left out."""
    sites = list(trace.sites.values())
    bad = []
    for i, site in enumerate(sites):
        if site.activation.finite or site.op == "input":
            continue
        after = sites[i + 1].op if i + 1 < len(sites) else ""
        masked = "softmax" in after or "attention" in after or not after
        if site.activation.mean == -math.inf and masked:
            continue
        bad.append(site)
    return bad


def _forward(evidence: Evidence, headroom: float) -> tuple[str, str, tuple[str, ...]] | None:
    trace = evidence.trace
    bad = _bad_sites(trace)
    if not bad:
        return None
    site = bad[0]
    before = max(
        (s for s in trace.sites.values() if s.order < site.order and s.activation.finite),
        key=lambda s: s.order,
        default=None,
    )
    mean = site.activation.mean
    kind = "nan" if math.isnan(mean) else "an infinity"
    buffer = _bad_buffer(evidence, site.module)
    told = f"{quoted(site.name)} is the first to put out {kind}"
    if buffer is not None:
        return site.name, f"{told}: its buffer {buffer} is not finite.", ("reinitialise",)
    if before is not None:
        told += f"; the site before it, {quoted(before.name)}, is finite"
        told += f" (rms {before.activation.rms:.3g})"
    if _overflows(site, before, headroom):
        return site.name, f"{told}. It overflows {site.dtype}.", _against_overflow(site)
    return site.name, f"{told}.", ("guard-operation",)


def _overflows(site: Site, before: Site | None, headroom: float) -> bool:
    dtype = getattr(torch, site.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        return False
    if site.op == "exp":
        return True
    if before is None:
        return False
    size, largest = before.activation.rms, torch.finfo(dtype).max
    # a fifth of ln(largest) is a small number for anything but what grows as exp does
    return size > (0.2 * math.log(largest) if _steep(site) else headroom * largest)


def _steep(site: Site) -> bool:
    """Whether numbers came to infinity in one step, and neither by weights nor by a division."""
    divided = site.op in ("div", "true_divide", "reciprocal", "rsqrt", "log")
    return site.activation.mean == math.inf and site.kind != "weights" and not divided


def _against_overflow(site: Site) -> tuple[str, ...]:
    if site.dtype in ("float16", "bfloat16"):
        return ("float32", "guard-operation")
    # no wider type helps for long: what grows like this has to be smaller
    scale = (
        ("swap-activation", "self-normalize", "normalise")
        if _steep(site)
        else ("normalise", "he-init")
    )
    return (*scale, "guard-operation")


def _bad_buffer(evidence: Evidence, path: str) -> str | None:
    try:
        module = evidence.model.get_submodule(path)
    except AttributeError:
        return None
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point() and not bool(torch.isfinite(buffer).all()):
            return name
    return None


def _in_loss(trace: Trace) -> tuple[str, str, tuple[str, ...]]:
    for call in trace.losses:
        target = call.target
        if (
            target is not None
            and call.ignored is not None
            and target.low == target.high == call.ignored
        ):
            return (
                "loss",
                (
                    f"every target given to {call.op} is the ignored value {call.ignored}, so the "
                    "loss divides zero by zero."
                ),
                ("clean-data",),
            )
    last = next((s for s in reversed(list(trace.sites.values())) if s.activation.finite), None)
    told = f"the loss is {trace.loss}, while every site of the network is finite"
    if last is not None:
        told += f"; the last one is {quoted(last.name)} (rms {last.activation.rms:.3g})"
    return (
        "loss",
        f"{told}. It begins in the loss: log of zero, division by zero, or overflow.",
        # torch's own take logits, and are safe
        ("use-cross-entropy", "use-bce-with-logits", "guard-operation"),
    )


def _backward(trace: Trace) -> tuple[str, str, tuple[str, ...]]:
    sites = [s for s in trace.sites.values() if s.delta is not None]
    bad = [s for s in sites if s.delta is not None and not s.delta.finite]
    if not bad:
        name = next(
            w.name
            for w in trace.weights.values()
            if w.gradient is not None and not math.isfinite(w.gradient)
        )
        return (
            name,
            (
                f"the gradient of {quoted(name)} is not finite, while the loss "
                f"({trace.loss:.3g}) and every delta are."
            ),
            ("guard-operation",),
        )
    site = bad[-1]
    after = next((quoted(s.name) for s in sites if s.order > site.order), "the loss")
    return (
        site.name,
        (
            f"the loss is finite ({trace.loss:.3g}), but the error signal that comes back to "
            f"{quoted(site.name)} is not: an operation between it and {after} has no finite "
            "slope here, for example sqrt, a norm or a division at zero."
        ),
        ("guard-operation",),
    )


FINITE_RULES: tuple[Rule, ...] = (not_finite,)
