"""Cures of the loss: one that fits the targets, on what the model puts out without activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.program.ends import (
    SIGMOIDS,
    SOFTMAXES,
    End,
    OfLog,
    end_of,
    instead,
    on,
    without,
)
from signalprop.cures.program.meaning import class_numbers
from signalprop.cures.program.seen import Look, look
from signalprop.cures.program.steps import Cast, ClassNumbers, Shaped, Transposed
from signalprop.cures.training import Training
from signalprop.diagnosis.program.output import REGRESSION, SIGMOID_INSIDE
from signalprop.diagnosis.program.words import shape_text


@cure("use-bce-with-logits", treats=("SP202", "SP204", "SP205"), changes="training")
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


@cure("use-cross-entropy", treats=("SP202", "SP203", "SP204", "SP205"), changes="training")
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
