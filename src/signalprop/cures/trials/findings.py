"""What a network has before it is cured: at its start, or after some updates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from signalprop.capture.sandbox import random_state
from signalprop.cures.program.seen import again, prepared
from signalprop.cures.surgery import copied
from signalprop.cures.training import Training
from signalprop.cures.trials.data import Data
from signalprop.cures.trials.leg import Runner
from signalprop.diagnosis.engine import diagnose
from signalprop.diagnosis.finding import Diagnosis, Finding
from signalprop.errors import SignalpropError

#: updates after which a network that is healthy at its start is looked at again
EARLY = 100


def diagnosed(training: Training, data: Data, batch_dim: int) -> Diagnosis:
    """The diagnosis of a training at its start, on a batch of it or a few small ones."""
    own = copy.deepcopy(training.model)
    return _of(training, own, training.optimizer.build(own), data, batch_dim)


def early(training: Training, data: Data, batch_dim: int, updates: int) -> Diagnosis | None:
    """The diagnosis of a training after some updates, on a copy; None where it came to none."""
    own = replace(training, model=copied(training.model))
    runner = Runner(own, data, seed=0, total=updates, batch_dim=batch_dim)
    with random_state():
        torch.manual_seed(0)
        runner.train(updates)
        try:
            return _of(own, own.model, runner.optimizer, data, batch_dim)
        except SignalpropError:
            return None


def falls_sick(
    training: Training, data: Data, batch_dim: int, before: Diagnosis, updates: int
) -> tuple[Sequence[Finding], str]:
    """What is found, and a note where it shows only after some updates.

    Args:
        training: the untouched network.
        data: the batches.
        batch_dim: dimension of the samples.
        before: its diagnosis at the start.
        updates: after how many it is looked at again.

    Returns:
        The findings at the start; where none of them is an issue, those of later on as well. And
        the note, or "".
    """
    if any(f.severity == "issue" for f in before.findings):
        return before.findings, ""
    later = early(training, data, batch_dim, updates)
    known = {f.code for f in before.findings}
    new = (
        [f for f in later.findings if f.code not in known and f.severity == "issue"]
        if later
        else []
    )
    if not new:
        return before.findings, ""
    told = ", ".join(f"{f.code} {f.title}" for f in new)
    return (*before.findings, *new), f"after {updates} updates there is more: {told}"


def _of(
    training: Training,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    batch_dim: int,
) -> Diagnosis:
    # BatchNorm is to see the batches that it is trained with
    joins = not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    batch: Any = data.sample() if joins and batch_dim == 0 else data.train[0]
    if training.prepare:
        batch = again(prepared(training, batch))
    return diagnose(model, batch, training.loss, optimizer, batch_dim=batch_dim)
