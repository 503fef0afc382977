"""What a loss is, found by trying it; and which targets are classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from signalprop.capture import batch as batches
from signalprop.capture.batch import Loss
from signalprop.capture.sandbox import random_state
from signalprop.diagnosis.program.output import REGRESSION


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
