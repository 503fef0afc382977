"""Rules about what reaches the parameters: no gradient at all, or one that is no number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from signalprop.capture.trace import Site, Trace, Weight
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program_words import quoted, some
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule
from signalprop.diagnosis.samples import nothing_moves

_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.ParameterList)


@rule("SP201", "Parameter without a gradient", needs=("deltas",), cures=("freeze", "reconnect"))
def unused(evidence: Evidence, *, share: float = 0.0, apart: float = 0.2) -> Iterator[Finding]:
    """Parameters are meant to be trained, but the loss does not depend on them.

    How it is detected:
        A parameter that requires a gradient got none although the loss was differentiated, and
        these are more than `share` of the trained parameters. Whole submodules are named once.
        Parameters that are frozen, or that the given optimizer does not hold, are left out. A
        gradient that is exactly zero is something else and is not meant here: a zero head, ReZero
        and LoRA start that way. But where every gradient is exactly zero, and more than a share
        `apart` of the samples has a loss above the smallest, nothing ever moves. The activation at
        the output (SP204) or dead units (SP110) may be the cause, and are named instead.

        It is an issue where a part lies between the input and the loss and is cut off (a later
        layer reads a tensor that was detached, or no error signal comes back to any input), and
        where a module is never called although the module that owns it runs. It is a tip where
        the rest of the network is not harmed: a module that was called but whose output the loss
        does not use (a pooler, an auxiliary head), one among several in a list of which others
        ran (experts that got no token), the leftover head of a network of which only parts are
        called, and a single parameter of a module that learns otherwise.

    Why it matters:
        A detached encoder keeps its random weights, and the layers above learn from noise. A
        forgotten layer makes the network smaller than its definition. Weight decay still shrinks
        such weights, and distributed training stops because it waits for their gradient.

    How to cure it:
        Remove `.detach()`, `.data`, `.item()`, `torch.no_grad()` and `argmax` from the way to the
        loss, call the module, or freeze it with `requires_grad_(False)` where that is meant.

    Yields:
        One finding for what is cut off or forgotten, and one for what is left over.

    Raises:
        NotApplicable: the pass stopped before there were gradients.
    """
    trace = evidence.trace
    if trace.failure is not None:
        raise NotApplicable("the pass stopped before there were gradients")
    trained = {n: w for n, w in trace.weights.items() if w.trained and _meant(evidence, n)}
    lost = {n: w for n, w in trained.items() if w.gradient is None}
    if evidence.samples is not None and nothing_moves(trace, evidence.samples, apart):
        yield finding(
            unused,
            sites=tuple(trained),
            value=1.0,
            unit="share of the parameters with a gradient of exactly zero",
            threshold=share,
            explanation=(
                f"every gradient is exactly zero at a loss of {trace.loss:.3g}, and the samples' "
                "losses differ: something flat (a step, a clamp, an argmax) lies between the "
                "network and the loss"
            ),
            cures=("reconnect",),
        )
    total = sum(math.prod(w.shape) for w in trained.values())
    lost_share = sum(math.prod(w.shape) for w in lost.values()) / max(total, 1)
    if not lost or lost_share <= share:
        return
    groups = _folded(lost, trained)
    judged = {group: _cause(evidence, group, names) for group, names in groups.items()}
    for severity in ("issue", "tip"):
        found = {g: why for g, (grade, why) in judged.items() if grade == severity}
        if not found:
            continue
        names = list(found)
        part = sum(math.prod(lost[n].shape) for g in names for n in groups[g]) / max(total, 1)
        reasons = list(dict.fromkeys(found.values()))
        told = "; ".join(f"{some(g for g in names if found[g] == why)}: {why}" for why in reasons)
        yield finding(
            unused,
            sites=[g or "model" for g in names],
            value=part,
            unit="share of the trained parameters",
            threshold=share,
            explanation=f"{told}. {part:.1%} of the trained parameters get no gradient.",
            severity="issue" if severity == "issue" else "tip",
            cures=("reconnect", "freeze") if severity == "issue" else ("freeze",),
        )


def _meant(evidence: Evidence, name: str) -> bool:
    """Whether the optimizer is to train it: others are another optimizer's business."""
    facts = evidence.optimizer
    return facts is None or not facts.held or name in facts.held


def _folded(lost: Mapping[str, Weight], trained: Mapping[str, Weight]) -> dict[str, list[str]]:
    """Parameters without a gradient, by the highest module of which nothing gets one."""
    alive = {""} if len(lost) < len(trained) else set()
    for name in trained:
        if name not in lost:
            parts = name.split(".")
            alive |= {".".join(parts[:i]) for i in range(1, len(parts))}
    groups: dict[str, list[str]] = {}
    for name, weight in lost.items():
        parts = weight.module.split(".") if weight.module else []
        paths = ("", *(".".join(parts[: i + 1]) for i in range(len(parts))))
        group = next((path for path in paths if path not in alive), name)
        groups.setdefault(group, []).append(name)
    return groups


def _cause(evidence: Evidence, group: str, names: list[str]) -> tuple[str, str]:
    """Severity, and what became of it."""
    trace = evidence.trace
    if group in trace.weights:
        return "tip", "not used, though other parameters of its module are"
    sites = [s for s in trace.sites.values() if _inside(s.module, group)]
    called = bool(sites) or any(trace.weights[n].order is not None for n in names)
    if not called:
        return _never_called(evidence, group)
    last = max((s.order for s in sites), default=-1)
    reader = _reads_cut(trace, last)
    if reader is not None:
        return "issue", f"called, but {quoted(reader)} reads a tensor detached from it"
    inputs = [s for s in trace.sites.values() if s.op == "input"]
    if inputs and all(s.delta is None for s in inputs):
        return "issue", "called, but no error signal comes back through it to the input"
    return "tip", "called, but the loss does not use its output"


def _inside(path: str, group: str) -> bool:
    return not group or path == group or path.startswith(f"{group}.")


def _reads_cut(trace: Trace, after: int) -> str | None:
    """A layer that learns, and that read a tensor without a graph after the part had run."""
    later = (trace.sites[name] for name in trace.rootless if name in trace.sites)
    return next((s.name for s in later if s.order > after and s.delta is not None), None)


def _never_called(evidence: Evidence, group: str) -> tuple[str, str]:
    model, trace = evidence.model, evidence.trace
    parent, _, own = group.rpartition(".")
    try:
        owner = model.get_submodule(parent)
    except AttributeError:
        return "tip", "never called"
    if isinstance(owner, _CONTAINERS):
        others = [f"{parent}.{n}" for n, _ in owner.named_children() if n != own]
        if any(_ran(trace, other) for other in others):
            return "tip", "not called for this batch, though others of the same list are"
    while isinstance(owner, _CONTAINERS) and parent:
        parent = parent.rpartition(".")[0]
        owner = model.get_submodule(parent)
    if parent and not any(s.module == parent or parent in s.aliases for s in trace.sites.values()):
        return "tip", "never called, nor is the module it belongs to"
    return "issue", "never called"


def _ran(trace: Trace, path: str) -> bool:
    return any(w.order is not None for w in trace.weights.values() if _inside(w.module, path))


# ---- SP202 -----------------------------------------------------------------------------------


@rule(
    "SP202",
    "First value that is not finite",
    cures=("clean-data", "guard-operation", "float32", "swap-activation", "normalise", "he-init"),
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
    return before is not None and before.activation.rms > headroom * torch.finfo(dtype).max


def _against_overflow(site: Site) -> tuple[str, ...]:
    if site.dtype in ("float16", "bfloat16"):
        return ("float32", "guard-operation")
    # no wider type helps for long: what grows like this has to be smaller
    scale = ("swap-activation", "normalise") if site.op == "exp" else ("normalise", "he-init")
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
        ("guard-operation",),
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


GRADIENT_RULES: tuple[Rule, ...] = (unused, not_finite)
