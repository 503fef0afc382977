"""What a network has before it is cured: at its start, or after some updates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
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


@dataclass(frozen=True)
class Found:
    """What there is to cure.

    Attributes:
        findings: at the start, and those that show later on.
        note: what shows only later on; or "".
        idle: whether no issue was found at the start, and yet the loss does not fall.
    """

    findings: Sequence[Finding]
    note: str = ""
    idle: bool = False


def diagnosed(training: Training, data: Data, batch_dim: int) -> Diagnosis:
    """The diagnosis of a training at its start, on a batch of it or a few small ones."""
    own = copy.deepcopy(training.model)
    return _of(training, own, training.optimizer.build(own), data, batch_dim)


def early(
    training: Training, data: Data, batch_dim: int, updates: int
) -> tuple[Diagnosis | None, tuple[float, ...]]:
    """Look at a training after some updates, on a copy.

    Returns:
        Its diagnosis, None where it came to none, and its loss up to there.
    """
    own = replace(training, model=copied(training.model))
    runner = Runner(own, data, seed=0, total=updates, batch_dim=batch_dim)
    with random_state():
        torch.manual_seed(0)
        runner.train(updates)
        try:
            return _of(own, own.model, runner.optimizer, data, batch_dim), runner.curve
        except SignalpropError:
            return None, runner.curve


def falls_sick(
    training: Training, data: Data, batch_dim: int, before: Diagnosis, updates: int
) -> Found:
    """What is found at the start and after some updates.

    Args:
        training: the untouched network.
        data: the batches.
        batch_dim: dimension of the samples.
        before: its diagnosis at the start.
        updates: after how many it is looked at again.

    Returns:
        The findings at the start; where none of them is an issue, those of later on as well.
    """
    if any(f.severity == "issue" for f in before.findings):
        return Found(before.findings)
    later, curve = early(training, data, batch_dim, updates)
    known = {f.code for f in before.findings}
    issues = [f for f in later.findings if f.severity == "issue"] if later else []
    new = [f for f in issues if f.code not in known]
    told = ", ".join(f"{f.code} {f.title}" for f in new)
    note = f"after {updates} updates there is more: {told}" if new else ""
    end = fmean(curve[-max(len(curve) // 4, 1) :])
    idle = len(curve) > 1 and not end < curve[0]
    if idle:
        risen = f"{updates} updates take the loss from {curve[0]:.3g} to {end:.3g}"
        note = f"{note}; {risen}" if note else risen
    return Found((*before.findings, *new), note, idle)


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
