"""Cures of the end of a network: its last activation, its loss, and how many outputs it has.

An activation that is a module of its own is replaced by `Identity`. One that `forward` applies by a
function cannot be taken off from outside: the loss is then changed to one that takes what the
model puts out. What is taken off is added to the readout, so that a metric of the user's sees the
same kind of numbers as before.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from signalprop.capture.observe import unwrapped
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.inputs import Cast, ClassNumbers, Shaped, Transposed
from signalprop.cures.modes import Look, class_numbers, look
from signalprop.cures.surgery import copied, operate
from signalprop.cures.training import Training
from signalprop.diagnosis.program_output import RANGES, REGRESSION, SIGMOID_INSIDE
from signalprop.diagnosis.program_words import shape_text

SIGMOIDS = frozenset({"sigmoid", "hardsigmoid", "logsigmoid"})
SOFTMAXES = frozenset({"softmax", "log_softmax"})
#: losses of classes
CLASSED = frozenset({"cross_entropy", "nll_loss", "probability_nll", "kl_div"})
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


# ---- the last activation ---------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    """The activation that makes the output.

    Attributes:
        op: its name; "" where there is none.
        path: of its module, where it can be taken off; None for a function in `forward`, a module
            that is used several times, or one in the loss.
        why: why it cannot be taken off.
        in_loss: whether the user's loss function applies it.
    """

    op: str
    path: str | None
    why: str = ""
    in_loss: bool = False


def end_of(training: Training, seen: Look) -> End:
    """The activation that makes the output of a network."""
    site = seen.end
    if site is None or not (site.op in RANGES or site.op == "exponential"):
        return End("", None)
    if site.module == "loss":
        return End(site.op, None, "the loss function applies it", in_loss=True)
    module = unwrapped(training.model).get_submodule(site.module)
    if site.module == "" or any(True for _ in module.children()) or any(module.parameters()):
        where = f"module {site.module!r}" if site.module else type(module).__name__
        return End(site.op, None, f"forward() of {where} applies {site.op}; return its argument")
    calls = sum(s.module == site.module for s in seen.trace.sites.values())
    if calls > 1:
        why = f"{site.module!r} is used {calls} times; give the output one of its own"
        return End(site.op, None, why)
    return End(site.op, site.module)


def without(training: Training, path: str) -> tuple[str, nn.Module, nn.Module]:
    """The line to paste, the model without the activation at a path, and the activation."""
    model = copied(training.model)
    gone = unwrapped(model).get_submodule(path)
    operate(model, lambda _, module: nn.Identity() if module is gone else None, inplace=True)
    return f"model.set_submodule({path!r}, torch.nn.Identity())", model, gone


def appended(training: Training, last: nn.Module) -> tuple[str, nn.Module]:
    """The line to paste, and the model with an activation after its output; names stay."""
    model = copied(training.model)
    inner = unwrapped(model)
    told = f"torch.nn.{last!r}"
    if type(inner) is nn.Sequential:
        inner.append(last.train(inner.training))
        return f"model.append({told})", model
    inner.register_forward_hook(Then(last))
    return f"model.register_forward_hook(lambda module, args, output: {told}(output))", model


@dataclass(frozen=True)
class Then:
    """A forward hook that applies an activation to the output."""

    last: nn.Module

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Apply it."""
        return self.last(output)


class Exp(nn.Module):
    """Probabilities of their logarithms."""

    def forward(self, x: Tensor) -> Tensor:
        """exp(x)."""
        return x.exp()


# ---- losses ----------------------------------------------------------------------------------


class OfLog(nn.Module):
    """A loss of log-probabilities or logits, given the logarithm of probabilities."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss; a probability of zero counts as the smallest number there is."""
        return self.loss(output.clamp(min=torch.finfo(output.dtype).tiny).log(), target)


def on(line: str, given: str) -> str:
    """The line `loss = ...` with something else in place of the output."""
    made = line.removeprefix("loss = ")
    return f"loss = lambda output, target, loss={made}: loss({given}, target)"


def of_log(training: Training) -> Training:
    """The program with its loss on the logarithm of the output."""
    line = on("loss = loss", "output.clamp(min=torch.finfo(output.dtype).tiny).log()")
    return training.changed(line, loss=OfLog(training.loss))


def instead(kind: type[nn.Module], loss: Any) -> tuple[str, nn.Module]:
    """The line to paste, and a loss of torch with the options it shares with the user's own."""
    options: dict[str, Any] = {}
    if isinstance(loss, nn.Module):
        weighted = (nn.NLLLoss, nn.CrossEntropyLoss)
        same = isinstance(loss, weighted) == issubclass(kind, weighted)
        known = inspect.signature(kind).parameters
        for name in ("weight", "reduction", "ignore_index", "label_smoothing", "pos_weight"):
            value = getattr(loss, name, None)
            usual = known[name].default if name in known else value
            weight = isinstance(value, Tensor)
            if value is not None and name in known and (same if weight else value != usual):
                options[name] = value
    told = ", ".join(
        f"{k}=loss.{k}" if isinstance(v, Tensor) else f"{k}={v!r}" for k, v in options.items()
    )
    return f"loss = torch.nn.{kind.__name__}({told})", kind(**options)


def _sums_to_one(x: Tensor) -> bool:
    if x.ndim < 2 or x.shape[1] < 2 or not x.is_floating_point() or bool((x < 0).any()):
        return False
    return any(bool((x.sum(d) - 1).abs().max() <= 1e-2) for d in {1, x.ndim - 1})


# ---- softmax and sigmoid before a loss that applies its own ----------------------------------


@cure("remove-softmax", treats=("SP203",), changes="training")
def remove_softmax(training: Training, data: Any) -> Training:
    """Take the softmax off the end of the model, as the loss applies its own.

    Where `forward` applies it by a function, the loss takes the logarithm of the probabilities
    instead: cross_entropy(log p) is -log p of the right class, the same loss.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: there is no softmax, or the loss needs it.
    """
    seen = look(training, data)
    end, kind = end_of(training, seen), seen.kind or (seen.call.op if seen.call else "")
    if kind == "probability_nll" and not end.in_loss:
        raise DoesNotApply("the loss takes probabilities, so the softmax belongs there")
    if kind not in CLASSED and not end.in_loss and kind not in SIGMOID_INSIDE:
        raise DoesNotApply("the loss applies no softmax or logarithm of its own")
    if end.op != "softmax" and not _sums_to_one(seen.scores):
        raise DoesNotApply("the output comes from no softmax")
    if end.in_loss:
        line, loss = instead(nn.CrossEntropyLoss, training.loss)
        return training.changed(line, loss=loss)
    if end.path is None:
        if kind in SIGMOID_INSIDE:
            raise DoesNotApply(end.why or "forward() makes the probabilities; return the scores")
        return of_log(training)
    line, model, gone = without(training, end.path)
    readout = (gone, *training.readout)
    if kind == "kl_div":
        raise DoesNotApply("kl_div needs log-probabilities; use_log_softmax gives them")
    if kind == "nll_loss":
        told, loss = instead(nn.CrossEntropyLoss, training.loss)
        return training.changed(line, told, model=model, loss=loss, readout=readout)
    return training.changed(line, model=model, readout=readout)


@cure("remove-sigmoid", treats=("SP203",), changes="training")
def remove_sigmoid(training: Training, data: Any) -> Training:
    """Take the sigmoid off the end of the model, as the loss applies its own.

    Where `forward` applies it by a function, binary_cross_entropy takes its place in the loss.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: there is no sigmoid, or the loss needs it.
    """
    seen = look(training, data)
    end, kind = end_of(training, seen), seen.kind or (seen.call.op if seen.call else "")
    if end.op not in SIGMOIDS | SOFTMAXES or (end.op in SOFTMAXES and kind not in SIGMOID_INSIDE):
        raise DoesNotApply("the output comes from no sigmoid")
    if kind not in SIGMOID_INSIDE and kind != "cross_entropy" and not end.in_loss:
        raise DoesNotApply("the loss applies no sigmoid or softmax of its own")
    if end.in_loss:
        made = nn.CrossEntropyLoss if kind == "cross_entropy" else nn.BCEWithLogitsLoss
        line, loss = instead(made, training.loss)
        return training.changed(line, loss=loss)
    if end.path is None:
        weighted = getattr(training.loss, "pos_weight", None) is not None
        if kind == "cross_entropy" or end.op != "sigmoid" or weighted:
            raise DoesNotApply(end.why)
        line, loss = instead(nn.BCELoss, training.loss)
        return training.changed(line, loss=loss)
    line, model, gone = without(training, end.path)
    return training.changed(line, model=model, readout=(gone, *training.readout))


@cure("use-log-softmax", treats=("SP203",), changes="training")
def use_log_softmax(training: Training, data: Any) -> Training:
    """Give a loss of log-probabilities the logarithm of a softmax.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: the loss takes no log-probabilities, or it is given them.
    """
    seen = look(training, data)
    end, kind = end_of(training, seen), seen.kind or (seen.call.op if seen.call else "")
    scores = seen.scores
    if kind not in ("nll_loss", "kl_div", "cross_entropy"):
        raise DoesNotApply("the loss takes no log-probabilities")
    if end.op in ("log_softmax", "logsigmoid") or not bool((scores > 1e-3).any()):
        raise DoesNotApply("the output holds log-probabilities already")
    if end.in_loss:
        line, loss = instead(nn.CrossEntropyLoss, training.loss)
        return training.changed(line, loss=loss)
    if end.op == "softmax" and end.path is not None:
        _, model, gone = without(training, end.path)
        dim = getattr(gone, "dim", None)
        dim = dim if isinstance(dim, int) else 1
        operate(
            model,
            lambda name, _: nn.LogSoftmax(dim) if name == end.path else None,
            inplace=True,
        )
        line = f"model.set_submodule({end.path!r}, torch.nn.LogSoftmax(dim={dim}))"
        return training.changed(line, model=model, readout=(Exp(), *training.readout))
    if end.op == "softmax" or _sums_to_one(scores):
        return of_log(training)
    if kind == "cross_entropy":
        raise DoesNotApply("cross_entropy takes raw scores, and is given them")
    line, model = appended(training, nn.LogSoftmax(1 if scores.ndim > 1 else 0))
    return training.changed(line, model=model)


# ---- an activation that does not fit ---------------------------------------------------------


@cure("remove-output-activation", treats=("SP204",), changes="training")
def remove_output_activation(training: Training, data: Any) -> Training:
    """End the model with its linear layer, for a regression or a loss on logits.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training; the activation is not read out, as it kept the output from its
        targets.

    Raises:
        DoesNotApply: there is none, it cannot be taken off, or the loss needs it.
    """
    seen = look(training, data)
    end, kind = end_of(training, seen), seen.kind or (seen.call.op if seen.call else "")
    if not end.op:
        raise DoesNotApply("the output comes from no activation")
    if kind not in REGRESSION | SIGMOID_INSIDE | {"cross_entropy"}:
        raise DoesNotApply("the loss is no regression and takes no logits")
    if end.op == "log_softmax" and kind == "cross_entropy":
        raise DoesNotApply("a log_softmax before cross_entropy changes nothing")
    if kind in REGRESSION and _reached(seen, end):
        raise DoesNotApply(f"every target lies within the range of the {end.op} on the output")
    if end.path is None:
        raise DoesNotApply(end.why)
    line, model, gone = without(training, end.path)
    squashed = kind not in REGRESSION and end.op in SIGMOIDS | SOFTMAXES
    readout = (gone, *training.readout) if squashed else training.readout
    return training.changed(line, model=model, readout=readout)


def _reached(seen: Look, end: End) -> bool:
    """Whether the activation can put out every target, and puts out more than one value now."""
    low, high = RANGES.get(end.op, (0.0, torch.inf))
    y, scores = seen.target, seen.scores
    return bool(((y >= low) & (y <= high)).all()) and bool((scores != scores.reshape(-1)[0]).any())


@cure("add-sigmoid", treats=("SP204",), changes="training")
def add_sigmoid(training: Training, data: Any) -> Training:
    """Put a sigmoid after the output, which binary_cross_entropy needs.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: the loss takes no probabilities, or it is given them.
    """
    seen = look(training, data)
    kinds = {seen.kind, seen.call.op if seen.call else ""}
    if "binary_cross_entropy" not in kinds:
        raise DoesNotApply("the loss is no binary cross-entropy of probabilities")
    if (end := end_of(training, seen)).op in SIGMOIDS | SOFTMAXES:
        raise DoesNotApply(f"the output comes from a {end.op} already")
    line, model = appended(training, nn.Sigmoid())
    return training.changed(line, model=model)


# ---- another loss ----------------------------------------------------------------------------


@cure("use-bce-with-logits", treats=("SP204", "SP205"), changes="training")
def use_bce_with_logits(training: Training, data: Any) -> Training:
    """Train by binary cross-entropy on logits; sigmoid or softmax of the output goes.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training; the readout applies the sigmoid.

    Raises:
        DoesNotApply: it is so already, the targets are not within 0 and 1, or the activation is
            applied in `forward`.
    """
    seen = look(training, data)
    end, kind = end_of(training, seen), seen.kind or (seen.call.op if seen.call else "")
    scores, y = seen.scores, seen.target
    if y.is_complex() or not bool(((y >= 0) & (y <= 1)).all()):
        raise DoesNotApply("the targets do not lie within 0 and 1")
    if y.shape != scores.shape and y.numel() != scores.numel():
        told = f"output {shape_text(tuple(scores.shape))}, target {shape_text(tuple(y.shape))}"
        raise DoesNotApply(f"there is no target for every output ({told}); see use_cross_entropy")
    if kind in SIGMOID_INSIDE and not end.op:
        raise DoesNotApply("the loss is binary cross-entropy on logits already")
    single = scores.ndim < 2 or scores.shape[1] == 1
    if end.op == "softmax" and not single and class_numbers(y, tuple(scores.shape)) is not None:
        raise DoesNotApply("the output is a softmax over several classes; see use_cross_entropy")
    if kind in REGRESSION and sorted(y.unique().tolist()) != [0, 1]:
        raise DoesNotApply("the targets are not 0 and 1, both there; squared error fits them")
    return _binary(training, seen, end)


def _fitted(training: Training, seen: Look) -> tuple[list[str], tuple[Any, ...]]:
    """Lines and steps that give the target the output's shape and dtype."""
    scores, y = seen.scores, seen.target
    lines: list[str] = []
    prepare = training.prepare
    if y.shape != scores.shape:
        rest = tuple(scores.shape[1:])
        lines.append(f"target = target.reshape({', '.join(map(str, (-1, *rest)))})")
        prepare = (*prepare, Shaped(rest))
    if y.dtype != scores.dtype:
        lines.append("target = target.to(output.dtype)")
        prepare = (*prepare, Cast(scores.dtype))
    return lines, prepare


def _binary(training: Training, seen: Look, end: End) -> Training:
    lines, prepare = _fitted(training, seen)
    if end.op == "sigmoid" and end.path is None and not end.in_loss:
        line, loss = instead(nn.BCELoss, training.loss)
        return training.changed(*lines, line, loss=loss, prepare=prepare)
    if end.op and end.path is None and not end.in_loss:
        raise DoesNotApply(end.why)
    model = training.model
    if end.path is not None:
        line, model, _ = without(training, end.path)
        lines.append(line)
    line, loss = instead(nn.BCEWithLogitsLoss, training.loss)
    readout = (nn.Sigmoid(), *training.readout)
    return training.changed(*lines, line, model=model, loss=loss, prepare=prepare, readout=readout)


@cure("use-cross-entropy", treats=("SP203", "SP204", "SP205"), changes="training")
def use_cross_entropy(training: Training, data: Any) -> Training:
    """Train classes by cross-entropy on raw scores; softmax or sigmoid of the output goes.

    Targets may be class numbers of any dtype or one-hot. A network of one output and labels 0 and 1
    gets binary cross-entropy on logits, which is the same for two classes.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training; the readout applies the softmax.

    Raises:
        DoesNotApply: it is so already, the targets are no classes, or the activation is applied in
            `forward`.
    """
    seen = look(training, data)
    end, kind = end_of(training, seen), seen.kind or (seen.call.op if seen.call else "")
    scores, y = seen.scores, seen.target
    shape = tuple(scores.shape)
    if len(shape) < 2 or shape[1] == 1:
        if y.numel() == scores.numel() and bool(((y == 0) | (y == 1)).all()):
            if kind in SIGMOID_INSIDE and not end.op:
                raise DoesNotApply("the loss is binary cross-entropy on logits already")
            return _binary(training, seen, end)
        raise DoesNotApply("one output cannot tell classes apart; give the last layer more outputs")
    numbers = class_numbers(y, shape)
    if numbers is None or int(numbers[0].max()) >= shape[numbers[1]]:
        raise DoesNotApply(
            f"targets of shape {shape_text(tuple(y.shape))} are no classes of an output of shape "
            f"{shape_text(shape)}"
        )
    if kind == "cross_entropy" and (not end.op or end.op == "log_softmax"):
        raise DoesNotApply("the loss is cross_entropy on raw scores already")
    if kind == "nll_loss" and end.op == "log_softmax":
        raise DoesNotApply("nll_loss after log_softmax is cross_entropy already")
    found, dim = numbers
    lines: list[str] = []
    prepare = training.prepare
    if tuple(y.shape) == shape:
        lines, prepare = [f"target = target.argmax({dim})"], (*prepare, ClassNumbers(dim))
    else:
        if y.shape != found.shape:
            lines.append(f"target = target.reshape{shape_text((-1, *found.shape[1:]))}")
            prepare = (*prepare, Shaped(tuple(found.shape[1:])))
        if y.dtype != torch.int64:
            lines.append("target = target.long()")
            prepare = (*prepare, Cast(torch.int64))
    model, readout = training.model, training.readout
    line, loss = instead(nn.CrossEntropyLoss, training.loss)
    if end.path is not None:
        told, model, _ = without(training, end.path)
        lines.append(told)
    if end.op == "softmax" and end.path is None and not end.in_loss:
        line = on(line, "output.clamp(min=torch.finfo(output.dtype).tiny).log()")
        loss = OfLog(loss)
    elif end.op in SIGMOIDS - {"logsigmoid"} and end.path is None and not end.in_loss:
        raise DoesNotApply(end.why)
    elif end.op in SIGMOIDS | SOFTMAXES or kind == "probability_nll":
        readout = (nn.Softmax(dim), *readout)
    if dim != 1:
        line, loss = on(line, "output.movedim(-1, 1)"), Transposed(loss)
    return training.changed(*lines, line, model=model, loss=loss, prepare=prepare, readout=readout)


@cure("use-mse", treats=("SP205",), changes="training")
def use_mse(training: Training, data: Any) -> Training:
    """Train numbers by squared error; a softmax of the output goes.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: it is so already, or the output has another number of values than the target.
    """
    seen = look(training, data)
    end = end_of(training, seen)
    scores, y = seen.scores, seen.target
    kinds = {seen.kind, seen.call.op if seen.call else ""}
    if kinds & REGRESSION:
        raise DoesNotApply("the loss is a regression already")
    if kinds & (SIGMOID_INSIDE | {"binary_cross_entropy"}) and y.unique().numel() <= 2:
        raise DoesNotApply("the targets take two values only, for which cross-entropy is made")
    if y.is_complex() or y.numel() != scores.numel():
        raise DoesNotApply(
            f"the output has shape {shape_text(tuple(scores.shape))} and the target "
            f"{shape_text(tuple(y.shape))}; give the last layer as many outputs as a target has "
            "numbers"
        )
    if scores.ndim > 1 and class_numbers(y, tuple(scores.shape)) is not None and y.ndim > 1:
        raise DoesNotApply("the targets are classes, for which cross-entropy is made")
    if end.op and end.path is None and not end.in_loss:
        raise DoesNotApply(end.why)
    model = training.model
    lines, prepare = _fitted(training, seen)
    if end.path is not None:
        told, model, _ = without(training, end.path)
        lines.append(told)
    line, loss = instead(nn.MSELoss, training.loss)
    return training.changed(*lines, line, model=model, loss=loss, prepare=prepare)


# ---- more outputs ----------------------------------------------------------------------------


@cure("add-outputs", treats=("SP207",), changes="training")
def add_outputs(training: Training, data: Any) -> Training:
    """Widen the last layer to hold every label of the batch; its old rows stay.

    The new rows are drawn as torch draws those of a new layer, U(-1/sqrt(fan in), 1/sqrt(fan in)).

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: every label fits, they start at 1, or the last layer cannot be widened.
    """
    seen = look(training, data)
    scores, y = seen.scores, seen.target
    op = seen.call.op if seen.call is not None else seen.kind
    ignored = seen.call.ignored if seen.call is not None else None
    kept = y if ignored is None else y[y != ignored]
    if op not in CLASSED or y.is_floating_point() or kept.numel() == 0 or scores.ndim < 2:
        raise DoesNotApply("the loss is given no class numbers")
    classes, beyond = scores.shape[1], kept[kept >= scores.shape[1]].unique()
    if beyond.numel() == 0:
        raise DoesNotApply(f"every label fits the {classes} outputs")
    if int(kept.min()) < 0:
        raise DoesNotApply("there are labels below 0, which no output stands for")
    if beyond.numel() == 1 and int(beyond) > classes:
        raise DoesNotApply(
            f"{int(beyond)} is the only label above {classes - 1}; it looks like a mark for what "
            "is to be left out, see set_ignore_index"
        )
    weight = getattr(training.loss, "weight", None)
    if isinstance(weight, Tensor):
        raise DoesNotApply("the loss has a weight for every class; give it more of them, too")
    path = _last_linear(training, seen, classes)
    model = copied(training.model)
    layer = unwrapped(model).get_submodule(path)
    count = int(beyond.max()) + 1
    _widen(layer, count)
    name = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
    line = f"# in the model: {path or type(layer).__name__} with {name}={count}"
    return training.changed(line, model=model)


def _last_linear(training: Training, seen: Look, classes: int) -> str:
    """Path of the layer whose outputs are the classes."""
    model = unwrapped(training.model)
    sites = sorted(seen.trace.sites.values(), key=lambda s: -s.order)
    for site in sites:
        if site.kind == "weights" or site.op in ("input", "add"):
            break
    else:
        raise DoesNotApply("no layer with weights makes the output")
    layer = model.get_submodule(site.module)
    count = getattr(layer, "out_features", getattr(layer, "out_channels", None))
    if type(layer) not in LINEAR or count != classes or getattr(layer, "groups", 1) != 1:
        raise DoesNotApply(f"the layer before the loss, {site.name!r}, cannot be widened")
    weight = layer._parameters.get("weight")
    uses = sum(p is weight for _, p in model.named_parameters(remove_duplicate=False))
    if weight is None or uses != 1:
        raise DoesNotApply(f"the weights of {site.name!r} are shared; widen the other one as well")
    return site.module


def _widen(layer: nn.Module, count: int) -> None:
    fan = layer.get_parameter("weight")[0].numel()
    for name, old in list(layer._parameters.items()):
        if old is None:
            continue
        rows = torch.empty(count - len(old), *old.shape[1:]).uniform_(-(fan**-0.5), fan**-0.5)
        new = torch.cat([old.detach(), rows.to(old)])
        layer._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
    name = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
    setattr(layer, name, count)
