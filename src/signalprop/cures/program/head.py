"""Cures of the last activation: one that the loss applies itself, or that does not fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.program.ends import (
    CLASSED,
    SIGMOIDS,
    SOFTMAXES,
    End,
    Exp,
    appended,
    end_of,
    instead,
    of_log,
    without,
)
from signalprop.cures.program.seen import Look, look
from signalprop.cures.surgery import operate
from signalprop.cures.training import Training
from signalprop.diagnosis.program.output import RANGES, REGRESSION, SIGMOID_INSIDE


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


def _sums_to_one(x: Tensor) -> bool:
    if x.ndim < 2 or x.shape[1] < 2 or not x.is_floating_point() or bool((x < 0).any()):
        return False
    return any(bool((x.sum(d) - 1).abs().max() <= 1e-2) for d in {1, x.ndim - 1})
