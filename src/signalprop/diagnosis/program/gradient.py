"""The rule about parameters that no gradient reaches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from signalprop.capture.trace import Trace, Weight
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program.words import quoted, some
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


GRADIENT_RULES: tuple[Rule, ...] = (unused,)
