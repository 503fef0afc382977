"""What a batch tells of a program; and cures of modes and of parameters without a gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from signalprop.capture import batch as batches
from signalprop.capture.batch import Batch, Loss
from signalprop.capture.observe import eager, observe, raise_failure, unwrapped
from signalprop.capture.sandbox import random_state, untouched
from signalprop.capture.trace import LossCall, Site, Trace
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.surgery import copied
from signalprop.cures.training import Training, applied
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.program_gradient import not_finite, unused
from signalprop.diagnosis.program_output import REGRESSION
from signalprop.diagnosis.rule import NotApplicable

# ---- what a batch tells ----------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """One batch seen through a program, its `prepare` steps applied.

    Attributes:
        batch: what the model and the loss are given.
        output: what the model returns for it.
        trace: the pass.
        call: the last loss function of torch that was given a target; None where there is none.
        loss: the loss.
    """

    batch: Batch
    output: Any
    trace: Trace
    call: LossCall | None
    loss: Loss

    @property
    def scores(self) -> Tensor:
        """The output, which must be one tensor."""
        output = batches._logits(self.output)
        if not isinstance(output, Tensor):
            raise DoesNotApply(
                f"the model returns {batches.describe(output)}, and only a single tensor is treated"
            )
        return output

    @property
    def target(self) -> Tensor:
        """The target, which must be one tensor."""
        if not self.batch.has_target or not isinstance(self.batch.target, Tensor):
            raise DoesNotApply("there is no tensor of targets: the loss is not (output, target)")
        return self.batch.target

    @property
    def kind(self) -> str:
        """What the loss is: a name in torch.nn.functional, or `probability_nll`, or ``."""
        found = meaning(self.loss, self.scores, self.target)
        if found is None and self.call is not None and self.call.input.shape == self.scores.shape:
            found = self.call.op
        return found or ""

    @property
    def end(self) -> Site | None:
        """The site that made the output, if it is an activation; else the one that made it."""
        sites = self.trace.sites
        if self.call is not None and self.call.site in sites:
            return sites[self.call.site or ""]
        inside = [s for s in sites.values() if s.module != "loss" and s.op != "input"]
        last = max(inside, key=lambda s: s.order, default=None)
        return last if last is not None and last.shape == tuple(self.scores.shape) else None


def look(training: Training, data: Any) -> Look:
    """One pass of a program over a batch, which leaves nothing behind.

    Args:
        training: the program.
        data: a batch.

    Returns:
        What was seen; the loss may have raised.

    Raises:
        SignalpropError: the batch is not understood, or the model raised.
    """
    model, loss = unwrapped(training.model), training.loss
    batch = prepared(training, data)
    seen = observe(model, again(batch), loss)
    if seen.trace.failure is not None and seen.trace.failure.phase == "forward":
        raise_failure(seen)
    with untouched(model), eager(), torch.no_grad():
        output = model(*batch.args, **batch.kwargs)
    calls = [c for c in seen.trace.losses if c.target is not None]
    return Look(batch, output, seen.trace, calls[-1] if calls else None, loss)


def prepared(training: Training, data: Any) -> Batch:
    """The first batch of the data, after the program's `prepare` steps."""
    with random_state():
        batch = batches.read(data, unwrapped(training.model), training.loss, gradients=False)
    args, kwargs, target = applied(training.prepare, (batch.args, batch.kwargs, batch.target))
    return replace(batch, args=args, kwargs=kwargs, target=target)


def again(batch: Batch) -> Any:
    """A batch in the form in which users give it."""
    inputs = batch.kwargs or tuple(batch.args)
    return (inputs, batch.target) if batch.has_target else inputs


def meaning(loss: Loss, output: Tensor, target: Tensor) -> str | None:
    """What a loss is, by comparing it with torch's own on test outputs of four sizes.

    A loss that is another one times a constant counts as that one, so that reductions by sum are
    known, too.

    Args:
        loss: of (output, target).
        output: shape and device of what the model puts out.
        target: the targets.

    Returns:
        A name in torch.nn.functional, or `probability_nll`: minus the logarithm of the
        probability of the right class, given probabilities. None where it is none of these.
    """
    if loss is None or not batches.takes_target(loss):
        return None
    numbers = class_numbers(target, tuple(output.shape))
    wide = target.to(torch.float32) if not target.is_complex() else target
    numbered = numbers[0] if numbers else None
    generator = torch.Generator().manual_seed(0)
    shape = tuple(output.shape)
    draws = [s * torch.randn(shape, generator=generator).to(output.device) for s in (0.3, 1, 2, 3)]
    dim = numbers[1] if numbers else 1 if len(shape) > 1 else 0

    def classed(z: Tensor) -> Tensor:
        assert numbered is not None
        return F.cross_entropy(z.movedim(dim, 1), numbered)

    tests: list[tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = []
    if wide.shape == shape or prod(wide.shape) == prod(shape):
        fitted = wide.reshape(shape)
        for op in sorted(REGRESSION):
            tests.append((op, _same, partial(_against, getattr(F, op), fitted)))
        if bool(((wide >= 0) & (wide <= 1)).all()):
            with_logits = F.binary_cross_entropy_with_logits
            tests.append((with_logits.__name__, _same, lambda z: with_logits(z, fitted)))
            tests.append(("binary_cross_entropy", torch.sigmoid, lambda z: with_logits(z, fitted)))
    if numbered is not None:
        tests.append(("cross_entropy", _same, classed))
        tests.append(("nll_loss", lambda z: z.log_softmax(dim), classed))
        tests.append(("probability_nll", lambda z: z.softmax(dim), classed))
    with random_state(), torch.no_grad():
        return next((n for n, made, of in tests if _agree(loss, target, draws, made, of)), None)


def _same(z: Tensor) -> Tensor:
    return z


def _against(loss: Callable[..., Tensor], target: Tensor, z: Tensor) -> Tensor:
    return loss(z, target)


def _agree(
    loss: Any,
    target: Tensor,
    draws: list[Tensor],
    made: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
) -> bool:
    """Whether a loss is the reference times a constant."""
    try:
        own = torch.tensor([float(loss(made(z), target)) for z in draws])
        wanted = torch.tensor([float(reference(z)) for z in draws])
    except Exception:  # it is none that takes such outputs or targets
        return False
    if not bool((own.isfinite() & wanted.isfinite()).all()) or not bool(wanted.abs().min() > 0):
        return False
    ratio = own / wanted
    return bool(ratio[0] > 0) and bool((ratio / ratio[0] - 1).abs().max() < 2e-3)


def class_numbers(target: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, int] | None:
    """Targets as class numbers, and which dimension of the output counts the classes.

    Args:
        target: class numbers of any dtype, with or without a dimension of 1; or one-hot.
        shape: of the output.

    Returns:
        int64 of the output's shape without its classes, and the dimension; None where the targets
        are no such thing.
    """
    if len(shape) < 2 or target.is_complex() or target.numel() == 0:
        return None
    for dim in (1,) if len(shape) == 2 else (1, len(shape) - 1):
        rest, classes = (*shape[:dim], *shape[dim + 1 :]), shape[dim]
        if classes > 1 and tuple(target.shape) == shape and _one_hot(target, dim):
            return target.argmax(dim), dim
        if tuple(target.shape) in (rest, (*rest[:1], 1, *rest[1:]), (*rest, 1)):
            numbers = target.reshape(rest)
            if bool((numbers == numbers.to(torch.int64)).all()) and bool((numbers >= 0).all()):
                return numbers.to(torch.int64), dim
    return None


def _one_hot(target: Tensor, dim: int) -> bool:
    value = target.to(torch.float32)
    whole = bool(((value == 0) | (value == 1)).all())
    return whole and bool((value.sum(dim) == 1).all())


# ---- modes -----------------------------------------------------------------------------------


def _frozen(model: nn.Module) -> set[nn.Module]:
    """Modules in frozen parts: the nearest one around them that has parameters trains none."""
    found: set[nn.Module] = set()

    def visit(module: nn.Module, around: bool) -> None:
        own = list(module.parameters())
        frozen = not any(p.requires_grad for p in own) if own else around
        if frozen:
            found.add(module)
        for child in module.children():
            visit(child, frozen)

    visit(model, False)
    return found


@cure("train-mode", treats=("SP208",))
def train_mode(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Put the model into training mode, frozen parts apart.

    The same as `model.train()`, but BatchNorm and Dropout in parts whose parameters are all frozen
    stay as they are.

    Args:
        model: any module.
        inplace: change the model itself instead of a copy.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: all that is trained is in training mode already.
    """
    frozen = _frozen(model)
    if all(m.training or m in frozen for m in model.modules()):
        raise DoesNotApply("all that is trained is in training mode already")
    model = model if inplace else copied(model)
    frozen = _frozen(model)
    for module in model.modules():
        if module not in frozen:
            module.training = True
    return model


@cure("eval-frozen", treats=("SP208", "SP209"))
def eval_frozen(model: nn.Module, *, every: bool = False, inplace: bool = False) -> nn.Module:
    """Put BatchNorm and Dropout of frozen parts into evaluation mode.

    `model.train()` undoes it, so it is to be called again after that.

    Args:
        model: any module.
        every: every BatchNorm, frozen or not: it then uses the statistics it has.
        inplace: change the model itself instead of a copy.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: none of these is in training mode.
    """

    def wanted(one: nn.Module) -> list[nn.Module]:
        frozen = _frozen(one)
        return [
            m
            for m in one.modules()
            if m.training and isinstance(m, (_BatchNorm, _DropoutNd))
            and (m in frozen or (every and isinstance(m, _BatchNorm)))
            and not (isinstance(m, _BatchNorm) and not m.track_running_stats)
        ]  # fmt: skip

    if not wanted(model):
        raise DoesNotApply(
            "no BatchNorm or Dropout of a frozen part is in training mode; freeze it first with "
            "requires_grad_(False), or take group_norm"
        )
    model = model if inplace else copied(model)
    for module in wanted(model):
        module.eval()
    return model


# ---- parameters without a gradient -----------------------------------------------------------


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


@cure("reconnect", treats=("SP201",), changes="training")
def reconnect(training: Training, data: Any) -> Training:
    """Bring a part that is cut off back on the way to the loss: to be done by hand.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Raises:
        DoesNotApply: says which part is cut off, and what to change.
    """
    told = _told(unused, training, data)
    if told is None:
        raise DoesNotApply("every trained parameter gets a gradient")
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
