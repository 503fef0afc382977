"""Cures of the updates: how large they may become, and how many samples each is made of."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from torch import nn

from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.program.given import batches_of
from signalprop.cures.program.run import Run
from signalprop.cures.program.seen import prepared
from signalprop.cures.training import Training


@cure("warm-up", treats=("SP210",), changes="settings")
def warm_up(training: Training, data: Any, *, updates: int = 100) -> Training:
    """Let the learning rate rise linearly over the first updates.

    lr_t = lr t / updates (Goyal et al. 2017, section 2.2). For Adam 2 / (1 - beta2) updates, 2000
    by default, make the estimate of the second moment sound (Ma & Yarats 2021, section 5).

    Args:
        training: the network and how it is trained.
        data: not looked at.
        updates: how many.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: it is warmed up as long already.
    """
    if updates < 2 or training.warmup >= updates:
        raise DoesNotApply(f"it is warmed up over {max(training.warmup, updates)} updates already")
    return training.changed(
        f"warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / {updates}, "
        f"total_iters={updates})",
        "warmup.step()  # after every optimizer.step()",
        warmup=updates,
    )


@cure("clip-gradient", treats=("SP102", "SP210", "SP302"), changes="settings")
def clip_gradient(
    training: Training, data: Any, *, measured: int = 16, share: float = 0.03
) -> Training:
    """Bound the norm of the whole gradient (Pascanu, Mikolov & Bengio 2013, algorithm 1).

    The bound is the median norm over some batches; for SGD no more than what changes the weights
    by the share `share` of their norm in one update, as the median says nothing good of a gradient
    that explodes in every batch.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader.
        measured: batches of a loader whose gradient is measured.
        share: largest |update| / |weights| of SGD.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no gradient is finite, all are zero, or the bound is as low already.
    """
    many = list(batches_of(data, measured))
    run = Run(training, many)
    norms = [n for n in (run.norm() for _ in many) if math.isfinite(n) and n > 0]
    if not norms:
        raise DoesNotApply("no gradient is finite and above zero, so there is nothing to clip")
    bound = median(norms)
    recipe = training.optimizer.explicit(training.model)
    rate = recipe.rate
    if getattr(recipe.kind, "__name__", "") in ("SGD", "ASGD") and rate > 0:
        momentum = max(float(g.options.get("momentum", 0.0)) for g in recipe.groups)
        weights = [p.detach() for p in training.model.parameters() if p.requires_grad]
        size = float(nn.utils.get_total_norm(weights))
        if size > 0:
            bound = min(bound, share * size * (1 - min(momentum, 0.99)) / rate)
    bound = float(f"{bound:.1e}")
    if training.clip is not None and training.clip <= bound:
        raise DoesNotApply(f"the gradient is clipped to {training.clip:g} already")
    line = f"torch.nn.utils.clip_grad_norm_(model.parameters(), {bound:g})"
    return training.changed(f"{line}  # before optimizer.step()", clip=bound)


@cure("larger-batch", treats=("SP209",), changes="settings")
def larger_batch(training: Training, data: Any, *, samples: int = 32) -> Training:
    """Put several batches together into one.

    Args:
        training: the network and how it is trained.
        data: a batch.
        samples: the batch has as many at least.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: it has as many already.
    """
    size = prepared(training, data).size
    merge = math.ceil(samples / size)
    if merge <= training.merge:
        raise DoesNotApply(f"the batch has {size * training.merge} samples already")
    line = f"loader = torch.utils.data.DataLoader(dataset, batch_size={merge * size}, "
    return training.changed(f"{line}shuffle=True, drop_last=True)", merge=merge)
