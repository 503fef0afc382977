"""Cures of the targets: their shape, dtype, range and scale."""

from __future__ import annotations

from itertools import islice
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.program.given import batches_of
from signalprop.cures.program.meaning import class_numbers
from signalprop.cures.program.seen import Look, look, prepared
from signalprop.cures.program.steps import (
    Cast,
    ClassNumbers,
    FirstClass,
    Replaced,
    Scaled,
    Shaped,
    Shifted,
    Transposed,
    Unscaled,
)
from signalprop.cures.training import Training
from signalprop.diagnosis.program.output import RANGES, REGRESSION
from signalprop.diagnosis.program.target import SIGN_TARGETS, UNIT_TARGETS
from signalprop.diagnosis.program.words import shape_text
from signalprop.errors import LossError

#: losses that take class numbers
CLASSES = frozenset({"cross_entropy", "nll_loss"})
#: what torch's losses leave out unless told otherwise
IGNORED = -100


@cure("match-target-shape", treats=("SP205",), changes="settings")
def match_target_shape(training: Training, data: Any) -> Training:
    """Give the target the shape that the loss and the output need.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: the shapes fit, or no reshaping makes them fit.
    """
    seen = look(training, data)
    a, b = tuple(seen.scores.shape), tuple(seen.target.shape)
    op = seen.call.op if seen.call is not None else seen.kind
    told = f"output {shape_text(a)} and target {shape_text(b)}"
    if op in CLASSES:
        if len(a) == 3 and b == a[:2] and b != (a[0], a[2]):
            line = "loss = lambda output, target, loss=loss: loss(output.movedim(-1, 1), target)"
            return training.changed(line, loss=Transposed(training.loss))
        wanted = (a[0], *a[2:]) if len(a) > 1 else ()
        if b in (wanted, a):
            raise DoesNotApply(f"{told} fit {op}")
    else:
        wanted = a
    if a == b:
        raise DoesNotApply(f"{told} have the same shape")
    if prod(b) == prod(wanted) and wanted:
        shape = ", ".join(map(str, (-1, *wanted[1:])))
        return _with(training, f"target = target.reshape({shape})", Shaped(wanted[1:]))
    if b and a and a[0] != b[0]:
        raise DoesNotApply(f"{told} have different numbers of samples; repair the data")
    if class_numbers(seen.target, a) is not None and a[1] > 2 and op not in CLASSES:
        raise DoesNotApply(f"{told}: class numbers need cross_entropy, see use_cross_entropy")
    if b and len(a) >= 2 and op not in CLASSES and b in ((a[0],), (a[0], *(1,) * (len(a) - 1))):
        first = "target" if len(b) == len(a) else "target.reshape(-1" + ", 1" * (len(a) - 1) + ")"
        line = f"target = {first}.expand(-1, {', '.join(map(str, a[1:]))})"
        return _with(training, line, Shaped(a[1:], expand=True))
    raise DoesNotApply(
        f"{told} cannot be brought together by reshaping the target; give the last layer as many "
        "outputs as there are numbers per target"
    )


def _with(training: Training, line: str, step: Any, **more: Any) -> Training:
    return training.changed(line, prepare=(*training.prepare, step), **more)


@cure("cast-targets", treats=("SP205",), changes="settings")
def cast_targets(training: Training, data: Any) -> Training:
    """Give the target the dtype that the loss takes.

    Args:
        training: the network and how it is trained.
        data: a batch.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: the dtype fits, or the values are not what that dtype holds.
    """
    seen = look(training, data)
    scores, y = seen.scores, seen.target
    op = seen.call.op if seen.call is not None else seen.kind
    if op in CLASSES and y.shape != scores.shape:
        if y.dtype in (torch.int64, torch.uint8):
            raise DoesNotApply(f"class numbers of dtype {y.dtype} fit {op}")
        if y.is_complex() or not bool((y == y.to(torch.int64)).all()):
            raise DoesNotApply(f"the targets are no class numbers, which {op} needs; use mse_loss")
        return _with(training, "target = target.long()", Cast(torch.int64))
    if y.is_floating_point():
        raise DoesNotApply(f"the targets are {y.dtype} already")
    if op == "nll_loss":
        return _with(training, "target = target.argmax(1)", ClassNumbers(1))
    return _with(training, "target = target.to(output.dtype)", Cast(scores.dtype))


@cure("shift-labels", treats=("SP207",), changes="settings")
def shift_labels(training: Training, data: Any) -> Training:
    """Let the class numbers start at 0.

    The smallest shift is taken that brings the labels into range: 1..C loses 1.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: they are in range, or no shift brings them there.
    """
    seen = look(training, data)
    low, high, classes, ignored = _labels(seen, _all(training, seen, data))
    by = low if low < 0 else high - classes + 1
    if low >= 0 and high < classes:
        raise DoesNotApply(f"the labels {low} to {high} fit {classes} outputs")
    if low - by < 0 or high - by >= classes:
        raise DoesNotApply(
            f"the labels {low} to {high} are more than {classes} outputs can hold, however they "
            "are shifted; give the last layer more outputs"
        )
    line = f"target = target {'-' if by > 0 else '+'} {abs(by)}"
    readout = (FirstClass(by), *training.readout) if by > 0 else training.readout
    return _with(training, line, Shifted(by, ignored), readout=readout)


def _all(
    training: Training, seen: Look, data: Any, *, columns: bool = False, most: int = 64
) -> Tensor:
    """The targets of the first batches in a row, or in rows where they have two dimensions."""
    others = islice(batches_of(data, most), 1, None)
    found = [seen.target, *(prepared(training, one).target for one in others)]
    return torch.cat([y.reshape(len(y), -1) if columns else y.reshape(-1) for y in found])


def _labels(seen: Look, y: Tensor) -> tuple[int, int, int, int | None]:
    """Smallest and largest label, number of classes, and the label that is left out."""
    scores = seen.scores
    op = seen.call.op if seen.call is not None else seen.kind
    if op not in (*CLASSES, "multi_margin_loss") or y.is_floating_point() or scores.ndim == 0:
        raise DoesNotApply("the loss is given no class numbers")
    ignored = seen.call.ignored if seen.call is not None else None
    kept = y if ignored is None else y[y != ignored]
    if kept.numel() == 0:
        raise DoesNotApply(f"every label is the ignored value {ignored}")
    classes = scores.shape[1] if scores.ndim > 1 else scores.shape[0]
    return int(kept.min()), int(kept.max()), classes, ignored


@cure("use-zero-one-labels", treats=("SP207",), changes="settings")
def use_zero_one_labels(training: Training, data: Any) -> Training:
    """Turn two labels, such as -1 and +1, into 0 and 1.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: the labels lie within 0 and 1, or there are more than two.
    """
    seen = look(training, data)
    if not _is(seen, UNIT_TARGETS):
        raise DoesNotApply("the loss is no binary cross-entropy, which alone needs 0 and 1")
    y = _all(training, seen, data).to(torch.float32)
    if bool(((y >= 0) & (y <= 1)).all()):
        raise DoesNotApply("the labels lie within 0 and 1 already")
    values = sorted(set(y.unique().tolist()))
    if set(values) <= {-1.0, 1.0}:
        values = [-1.0, 1.0]
    if len(values) != 2:
        raise DoesNotApply(
            f"there are {len(values)} different labels; class numbers of more than two classes "
            "need cross_entropy"
        )
    low, high = values
    line = f"target = (target - {low:g}) / {high - low:g}" if low else f"target = target / {high:g}"
    line = "target = (target + 1) / 2" if (low, high) == (-1, 1) else line
    return _with(training, line, Scaled(torch.tensor(low), torch.tensor(high - low)))


@cure("use-sign-labels", treats=("SP207",), changes="settings")
def use_sign_labels(training: Training, data: Any) -> Training:
    """Turn labels 0 and 1 into -1 and +1.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: the loss takes no signs, or the labels are no 0 and 1.
    """
    seen = look(training, data)
    if not _is(seen, SIGN_TARGETS):
        raise DoesNotApply("the loss takes no targets of -1 and +1; counts are never negative")
    y = _all(training, seen, data)
    if not bool(((y == 0) | (y == 1)).all()) or not bool((y == 0).any()):
        raise DoesNotApply("the labels are not 0 and 1")
    half = torch.tensor(0.5)
    return _with(training, "target = 2 * target - 1", Scaled(half, half))


def _is(seen: Look, ops: frozenset[str]) -> bool:
    return (seen.call is not None and seen.call.op in ops) or seen.kind in ops


@cure("scale-targets", treats=("SP204", "SP214"), changes="settings")
def scale_targets(training: Training, data: Any) -> Training:
    """Bring regression targets to mean 0 and standard deviation 1, or into the output's range.

    Per column, from up to 64 batches. Behind a bounded activation they are brought into the middle
    eight tenths of its range, so that every one can be reached. The readout undoes it.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: it is no regression, or the targets are scaled already.
    """
    seen = look(training, data)
    y = seen.target
    if not _is(seen, REGRESSION) or y.is_complex() or y.ndim == 0:
        raise DoesNotApply("the loss is no regression: only numbers to be predicted are scaled")
    value = _all(training, seen, data, columns=y.ndim == 2).to(torch.float64)
    if not bool(value.isfinite().all()):
        raise DoesNotApply("the targets are not finite; clean the data first")
    value = value if value.ndim == 2 else value.reshape(-1, 1)
    end = seen.end
    bounds = RANGES.get(end.op) if end is not None else None
    low, high = value.amin(0), value.amax(0)
    if bounds is not None and end is not None and end.op == "softmax":
        raise DoesNotApply("the output is a softmax, which is for classes; take it off instead")
    if bounds is None:
        shift, scale = value.mean(0), value.std(0, correction=0)
        if bool((shift.abs() <= 0.5).all()) and bool(((scale >= 0.5) & (scale <= 2)).all()):
            raise DoesNotApply("the targets have mean 0 and standard deviation 1 already")
        told = "target = (target - mean) / std  # mean and std of the training targets"
    elif bounds[0] > -torch.inf and bounds[1] < torch.inf:
        width = bounds[1] - bounds[0]
        scale = (high - low) / (0.8 * width)
        scale = torch.where(scale > 0, scale, 1.0)
        shift = low - (bounds[0] + 0.1 * width) * scale
        told = "target = (target - shift) / scale  # into the range of the output's activation"
    else:
        scale = value.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        shift = low - 0.1 * scale if bounds[0] == 0 else high + 0.1 * scale
        told = "target = (target - shift) / scale  # to the side that the activation reaches"
    if bounds is not None and bool((low >= bounds[0]).all()) and bool((high <= bounds[1]).all()):
        raise DoesNotApply("every target lies within the range of the output already")
    scale = torch.where(scale > 0, scale, 1.0)
    shift, scale = (t.squeeze(0) if len(t) == 1 else t for t in (shift, scale))
    shift, scale = shift.to(torch.float32), scale.to(torch.float32)
    readout = (*training.readout, Unscaled(shift, scale))
    return _with(training, told, Scaled(shift, scale), readout=readout)


@cure("set-ignore-index", treats=("SP207",), changes="settings")
def set_ignore_index(training: Training, data: Any) -> Training:
    """Let the loss leave out the one label that lies outside the classes.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no label lies outside, or several different ones do.
        LossError: every label does.
    """
    seen = look(training, data)
    y = _all(training, seen, data)
    low, _, classes, ignored = _labels(seen, y)
    outside = ((y < 0) | (y >= classes)) & ((y != ignored) if ignored is not None else True)
    values = y[outside].unique().tolist()
    if len(values) != 1:
        raise DoesNotApply(
            f"{len(values)} different labels lie outside the classes 0 to {classes - 1}; one is "
            "needed that stands for positions to be left out"
        )
    value = int(values[0])
    if value == classes and low >= 1:
        raise DoesNotApply(f"the labels run from {low} to {value}: they start at 1, shift them")
    if bool(outside.all()):
        raise LossError(f"every label is {value}; give data with others, too")
    loss = training.loss
    if loss in (F.cross_entropy, F.nll_loss):
        made = nn.CrossEntropyLoss if loss is F.cross_entropy else nn.NLLLoss
        line = f"loss = torch.nn.{made.__name__}(ignore_index={value})"
        return training.changed(line, loss=made(ignore_index=value))
    new = IGNORED if ignored is None else ignored
    line = f"target = target.masked_fill(target == {value}, {new})"
    return _with(training, line, Replaced(value, new))
