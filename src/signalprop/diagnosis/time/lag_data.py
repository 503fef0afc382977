"""The lag of what a model is trained on: sequences and targets out of a batch or a loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from signalprop.capture import batch as batches
from signalprop.capture.batch import Batch, Loss
from signalprop.capture.sandbox import generators_kept, random_state
from signalprop.diagnosis.time.lag import Lag, estimate

#: samples that are enough, batches that are looked at, and numbers of an input that are held
SAMPLES, BATCHES, HELD = 1024, 64, 1 << 24


def of_data(
    data: Any, model: torch.nn.Module, loss: Loss, batch_dim: int, lengths: Iterable[int]
) -> Lag | None:
    """The lag of what a model is trained on.

    Args:
        data: a batch, or a loader, of which some hundred samples are taken.
        model: the model, never run.
        loss: the loss, never called.
        batch_dim: dimension of the samples.
        lengths: how many steps the model's recurrent layers take; tells which dimension is time.

    Returns:
        The lag, or None where the data do not show one.
    """
    steps = frozenset(n for n in lengths if n > 1)
    found: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for read in _read(data, model, loss, batch_dim):
        one = _taken(read, batch_dim, steps)
        if one is None:
            break
        # sequences of another length cannot be laid upon each other
        if found and (one[0].shape[1:] != found[0][0].shape[1:] or one[1].ndim != found[0][1].ndim):
            continue
        found.append(one)
        rows = sum(len(x) for x, _, _ in found)
        if rows >= SAMPLES or sum(x.numel() for x, _, _ in found) >= HELD:
            break
    if not found:
        return None
    x = torch.cat([x for x, _, _ in found])
    ends = [n for _, _, n in found if n is not None]
    try:
        target = torch.cat([y for _, y, _ in found])
    except RuntimeError:  # targets of another shape from batch to batch
        return None
    return estimate(x, target, torch.cat(ends) if len(ends) == len(found) else None)


def _read(data: Any, model: torch.nn.Module, loss: Loss, batch_dim: int) -> Iterator[Batch]:
    """Batch after batch; the loader's and all other random numbers are left as they were."""
    with random_state():
        first = batches.first_of(data)
        if first is data:
            yield batches.read(data, model, loss, batch_dim=batch_dim, gradients=False)
            return
        with generators_kept(data):
            for i, one in enumerate(data):
                if i == BATCHES:
                    return
                yield batches.read(one, model, loss, batch_dim=batch_dim, gradients=False)


def _taken(
    data: Batch, batch_dim: int, steps: frozenset[int]
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Inputs (B, T, ...), target (B, ...), and lengths where they are among the inputs."""
    target = data.target
    if not isinstance(target, Tensor) or target.ndim == 0 or batch_dim > 1:
        return None
    turned = batch_dim == 1
    for x in data.inputs.values():
        x = x.transpose(0, 1) if turned and x.ndim > 1 else x
        symbols = x.ndim == 2 and not (x.is_floating_point() or x.is_complex())
        if (not symbols and x.ndim != 3) or x.is_complex() or x.shape[1] not in steps:
            continue
        if turned and target.ndim > 1 and target.shape[:2] == x.shape[1::-1]:
            target = target.transpose(0, 1)
        if len(target) != len(x):
            return None
        return x.detach().cpu(), target.detach().cpu(), _lengths(data, x)
    return None


def _lengths(data: Batch, x: Tensor) -> Tensor | None:
    for other in data.inputs.values():
        whole = other.ndim == 1 and not other.is_floating_point() and len(other) == len(x)
        if whole and int(other.min()) > 0 and int(other.max()) <= x.shape[1]:
            return other.detach().cpu().long()
    return None
