"""What a batch tells of a program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from signalprop.capture import batch as batches
from signalprop.capture.batch import Batch, Loss
from signalprop.capture.observe import eager, observe, raise_failure, unwrapped
from signalprop.capture.sandbox import random_state, untouched
from signalprop.capture.trace import LossCall, Site, Trace
from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program.given import first_of
from signalprop.cures.program.meaning import meaning
from signalprop.cures.training import Training, applied


@dataclass(frozen=True)
class Look:
    """One batch seen through a program, its `prepare` steps applied.

    Attributes:
        batch: what the model and the loss are given.
        output: what the model returns for it.
        trace: the pass.
        call: the last loss function of torch that was given a target; None where there is none.
        loss: the loss.
    """

    batch: Batch
    output: Any
    trace: Trace
    call: LossCall | None
    loss: Loss

    @property
    def scores(self) -> Tensor:
        """The output, which must be one tensor."""
        output = batches._logits(self.output)
        if not isinstance(output, Tensor):
            raise DoesNotApply(
                f"the model returns {batches.describe(output)}, and only a single tensor is treated"
            )
        return output

    @property
    def target(self) -> Tensor:
        """The target, which must be one tensor."""
        if not self.batch.has_target or not isinstance(self.batch.target, Tensor):
            raise DoesNotApply("there is no tensor of targets: the loss is not (output, target)")
        return self.batch.target

    @property
    def kind(self) -> str:
        """What the loss is: a name in torch.nn.functional, or `probability_nll`, or ``."""
        found = meaning(self.loss, self.scores, self.target)
        if found is None and self.call is not None and self.call.input.shape == self.scores.shape:
            found = self.call.op
        return found or ""

    @property
    def end(self) -> Site | None:
        """The site that made the output, if it is an activation; else the one that made it."""
        sites = self.trace.sites
        if self.call is not None and self.call.site in sites:
            return sites[self.call.site or ""]
        inside = [s for s in sites.values() if s.module != "loss" and s.op != "input"]
        last = max(inside, key=lambda s: s.order, default=None)
        return last if last is not None and last.shape == tuple(self.scores.shape) else None


def look(training: Training, data: Any) -> Look:
    """One pass of a program over a batch, which leaves nothing behind.

    Args:
        training: the program.
        data: a batch.

    Returns:
        What was seen; the loss may have raised.

    Raises:
        SignalpropError: the batch is not understood, or the model raised.
    """
    model, loss = unwrapped(training.model), training.loss
    batch = prepared(training, data)
    seen = observe(model, again(batch), loss)
    if seen.trace.failure is not None and seen.trace.failure.phase == "forward":
        raise_failure(seen)
    with untouched(model), eager(), torch.no_grad():
        output = model(*batch.args, **batch.kwargs)
    calls = [c for c in seen.trace.losses if c.target is not None]
    return Look(batch, output, seen.trace, calls[-1] if calls else None, loss)


def prepared(training: Training, data: Any) -> Batch:
    """The first batch of the data, after the program's `prepare` steps."""
    with random_state():
        batch = batches.read(
            first_of(data), unwrapped(training.model), training.loss, gradients=False
        )
    args, kwargs, target = applied(training.prepare, (batch.args, batch.kwargs, batch.target))
    return replace(batch, args=args, kwargs=kwargs, target=target)


def again(batch: Batch) -> Any:
    """A batch in the form in which users give it."""
    inputs = batch.kwargs or tuple(batch.args)
    return (inputs, batch.target) if batch.has_target else inputs
