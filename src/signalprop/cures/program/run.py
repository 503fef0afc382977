"""A copy of a program in training, to measure a learning rate or a gradient on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from signalprop.capture import batch as batches
from signalprop.capture.batch import Batch
from signalprop.capture.observe import eager
from signalprop.capture.sandbox import random_state
from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program.seen import prepared
from signalprop.cures.surgery import copied
from signalprop.cures.training import Training
from signalprop.errors import LossError, ModelError, SignalpropError


class Run:
    """A copy in training, with the same random numbers every time."""

    def __init__(self, training: Training, many: list[Any]) -> None:
        self.training = replace(training, model=copied(training.model))
        self.model = self.training.model
        self.recipe = training.optimizer.explicit(self.model)
        self.optimizer = self.recipe.build(self.model)
        self.share = [_lr(group) for group in self.optimizer.param_groups]
        self.many = cycle([prepared(training, one) for one in many])
        self.made = 0

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch."""
        with _dressed():
            value = self._loss(batch)
        if value.grad_fn is None:
            raise LossError("the loss does not depend on a trained parameter; reconnect the model")
        return value

    def _loss(self, batch: Batch) -> Tensor:
        return batches.loss_of(self.model(*batch.args, **batch.kwargs), batch, self.training.loss)

    def update(self, rate: float | None = None) -> float:
        """One update.

        Args:
            rate: the largest learning rate of the groups, which keep their ratios; None leaves it.

        Returns:
            The loss before it; no update is made where it is not finite.
        """
        most = max(self.share)
        for group, share in zip(self.optimizer.param_groups, self.share, strict=True):
            if rate is not None:
                group["lr"] = rate * (share / most if most else 1.0)
        batch = next(self.many)
        self.made += 1
        value = math.nan

        def closure() -> Tensor:
            nonlocal value
            self.optimizer.zero_grad()
            found = self.loss(batch)
            found.backward()
            if math.isnan(value):
                value = float(found.detach())
            return found

        with random_state(), eager():
            torch.manual_seed(self.made)
            found = closure()
            if not math.isfinite(value):
                return value
            if self.training.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
            step: Callable[..., Any] = self.optimizer.step
            try:
                step()
            except TypeError:  # LBFGS and its like evaluate the loss themselves
                step(closure)
            del found
        return value

    def norm(self) -> float:
        """Norm of the whole gradient of the next batch; makes no update."""
        batch = next(self.many)
        self.made += 1
        with random_state(), eager():
            torch.manual_seed(self.made)
            self.optimizer.zero_grad()
            self.loss(batch).backward()
        found = [p.grad for p in self.model.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(found)) if found else 0.0


@contextmanager
def _dressed() -> Iterator[None]:
    """What the user's code raises as one sentence."""
    try:
        yield
    except SignalpropError:
        raise
    except Exception as error:
        told = (str(error).strip().splitlines() or [""])[0].rstrip(". ")
        raise ModelError(
            f"the model or its loss raised {type(error).__name__}: {told}; repair that before the "
            "optimizer"
        ) from error


def _lr(group: dict[str, Any]) -> float:
    if "lr" not in group:
        raise DoesNotApply("the optimizer has no learning rate")
    return float(group["lr"])
