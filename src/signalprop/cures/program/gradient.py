"""Cures of parameters without a gradient; and of gradients that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from signalprop.capture.observe import observe, raise_failure, unwrapped
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.program.seen import again, prepared
from signalprop.cures.surgery import copied
from signalprop.cures.training import Training
from signalprop.diagnosis.engine import diagnose
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.program.finite import not_finite
from signalprop.diagnosis.program.gradient import unused
from signalprop.diagnosis.rule import NotApplicable
from signalprop.diagnosis.time.cut import truncated


@cure("freeze", treats=("SP201",), changes="training")
def freeze(training: Training, data: Any) -> Training:
    """Freeze the parameters that the loss does not depend on.

    Members of a list of which others get a gradient are left alone: an expert that no sample chose
    in this batch is chosen in another.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: every trained parameter gets a gradient.
    """
    model = unwrapped(training.model)
    seen = observe(model, again(prepared(training, data)), training.loss)
    raise_failure(seen)
    weights = seen.trace.weights.values()
    idle = [w.name for w in weights if w.trained and w.gradient is None]
    alive = {w.name for w in weights if w.trained and w.gradient is not None}
    idle = [n for n in idle if not _one_of_several(model, n, alive)]
    if not idle:
        raise DoesNotApply("every trained parameter gets a gradient, or is chosen by other batches")
    if not alive:
        raise DoesNotApply("no parameter gets a gradient at all: freezing would leave nothing")
    after = copied(training.model)
    parameters = dict(unwrapped(after).named_parameters())
    for name in idle:
        parameters[name].requires_grad_(False)
    whole = _folded(idle, [n for n, p in model.named_parameters() if p.requires_grad])
    lines = [
        f"model.get_{'parameter' if n in parameters else 'submodule'}({n!r}).requires_grad_(False)"
        for n in whole
    ]
    return training.changed(*lines, model=after)


def _one_of_several(model: nn.Module, name: str, alive: set[str]) -> bool:
    parts = name.split(".")
    for i in range(1, len(parts) - 1):
        path, own = ".".join(parts[:i]), ".".join(parts[: i + 1])
        several = isinstance(model.get_submodule(path), (nn.ModuleList, nn.ModuleDict))
        if several and not any(a.startswith(f"{own}.") for a in alive):
            return any(a.startswith(f"{path}.") for a in alive)
    return False


def _folded(idle: list[str], trained: list[str]) -> list[str]:
    """Whole modules instead of their parameters, where all of them are idle."""
    found: dict[str, None] = {}
    for name in idle:
        parts = name.split(".")
        paths = (".".join(parts[:i]) for i in range(1, len(parts)))
        inside = {p: [n for n in trained if n.startswith(f"{p}.")] for p in paths}
        found[next((p for p, held in inside.items() if set(held) <= set(idle)), name)] = None
    return list(found)


@cure("reconnect", treats=("SP201", "SP306"), changes="training")
def reconnect(training: Training, data: Any) -> Training:
    """Bring a part that is cut off back on the way to the loss: to be done by hand.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Raises:
        DoesNotApply: says which part is cut off, and what to change.
    """
    told = _told(unused, training, data) or _cut(training, data)
    if told is None:
        raise DoesNotApply("every trained parameter gets a gradient, and no state is cut off")
    raise DoesNotApply(
        f"only forward() itself can be repaired: {told} Take .detach(), .data, .item(), no_grad() "
        "and argmax off its way to the loss, call what is never called, or freeze it"
    )


@cure("guard-operation", treats=("SP202",), changes="training")
def guard_operation(training: Training, data: Any) -> Training:
    """Keep an operation away from where it has no finite value or slope: to be done by hand.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Raises:
        DoesNotApply: says which operation it is, and what to change.
    """
    told = _told(not_finite, training, data)
    if told is None:
        raise DoesNotApply("loss and gradients are finite")
    raise DoesNotApply(
        f"only the operation itself can be repaired: {told} Write log(x + eps), sqrt(x + eps), "
        "x / (sum + eps), or torch.softmax and logsumexp in place of your own exp"
    )


def _cut(training: Training, data: Any) -> str | None:
    """What the rule about truncation says of a program."""
    found = diagnose(
        training.model, again(prepared(training, data)), training.loss, rules=(truncated,)
    ).findings
    return next((f.explanation for f in found), None)


def _told(judge: Callable[..., Any], training: Training, data: Any) -> str | None:
    """What a rule says of a program."""
    model = unwrapped(training.model)
    seen = observe(model, again(prepared(training, data)), training.loss)
    evidence = Evidence(
        seen.trace, model, training.loss, None, None, None, None, (), None, {}, {}
    )  # fmt: skip
    try:
        return next((f.explanation for f in judge(evidence)), None)
    except NotApplicable as why:
        raise DoesNotApply(str(why)) from None
