"""One leg of a trial: some updates of one candidate with one seed, and how good it then is."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from signalprop.capture import batch as batches
from signalprop.capture.batch import Batch
from signalprop.capture.sandbox import random_state
from signalprop.cures.training import Training, applied
from signalprop.cures.trials.data import Data
from signalprop.cures.trials.metric import Score, infer


@dataclass(frozen=True)
class Outcome:
    """What came of a candidate with one seed, so far.

    Attributes:
        step: updates so far.
        metric: value on the held-out batches, the higher the better; -inf where it diverged.
        metric_name: its name.
        loss: of its own loss on the held-out batches.
        curve: training loss, some twenty means over the updates of each leg.
        sampling: standard error of the metric for how few samples it was judged on; 0 where it
            is not known.
        failed: why it could not go on; `""` where it could.
        seconds: that its updates took, evaluation left out.
    """

    step: int
    metric: float
    metric_name: str
    loss: float
    curve: tuple[float, ...]
    sampling: float
    failed: str
    seconds: float


@dataclass
class State:
    """Where a training stands between two legs."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: tuple[Tensor, ...]
    curve: tuple[float, ...]
    seconds: float


class Runner:
    """One candidate with one seed.

    Args:
        training: the candidate, not yet trained; its model is trained in place.
        data: the batches.
        seed: of the order of the batches, and of dropout.
        total: updates of the whole training: of so many the order of the batches is drawn.
        score: the user's own metric.
        batch_dim: dimension of the samples.
    """

    def __init__(
        self,
        training: Training,
        data: Data,
        *,
        seed: int,
        total: int,
        score: Score | None = None,
        batch_dim: int = 0,
    ) -> None:
        self.training, self.data, self.score = training, data, score
        self.model, self.loss = training.model, training.loss
        self.optimizer = training.optimizer.build(self.model)
        self.rates: list[Any] = [group.get("lr") for group in self.optimizer.param_groups]
        self.batch_dim, self.seed, self.total = batch_dim, seed, total
        self.order = data.order(seed, total * training.merge)
        self.read: dict[int, tuple[Batch, tuple[tuple[Tensor, int], ...]]] = {}
        self._compares = batches.takes_target(training.loss)
        self._checked = False
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        self._evaluates = closure is not None and closure.default is closure.empty
        self.step = 0
        self.curve: tuple[float, ...] = ()
        self.seconds = 0.0
        self.random: tuple[Tensor, ...] = ()

    def state(self) -> State:
        """To go on from later, in this process or another."""
        return State(self.step, self.model.state_dict(), self.optimizer.state_dict(),
                     self.random, self.curve, self.seconds)  # fmt: skip

    def resume(self, state: State) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.step, self.curve, self.seconds = state.step, state.curve, state.seconds
        self.random = state.random

    def run(self, until: int) -> Outcome:
        """Train up to an update, and judge.

        Returns:
            The outcome; a training that fails says why, and never raises.
        """
        with random_state(), one_thread():
            if self.random:
                _set_random(self.random)
            else:
                torch.manual_seed(self.seed)
            failed = self.train(until)
            self.random = _random()
            if failed:
                return self._outcome(-math.inf, "", math.inf, failed)
            try:
                metric, name, loss, sampling = self._judge()
            except Exception as error:  # whatever a user's metric or model says
                return self._outcome(-math.inf, "", math.inf, _said(error))
        if not math.isfinite(loss) and not math.isfinite(metric):
            return self._outcome(-math.inf, name, loss, "it diverged on the held-out data")
        return self._outcome(metric, name, loss, "", sampling)

    def _outcome(
        self, metric: float, name: str, loss: float, failed: str, sampling: float = 0.0
    ) -> Outcome:
        spent = round(self.seconds, 4)
        return Outcome(self.step, metric, name, loss, self.curve, sampling, failed, spent)

    def train(self, until: int) -> str:
        """Train up to an update; why it could not, or `""`."""
        model, warmup = self.model, self.training.warmup
        was = model.training
        model.train()
        started = time.perf_counter()
        losses: list[Tensor] = []
        try:
            for step in range(self.step, until):
                if warmup and step <= warmup:
                    self._set_rates(min(1.0, (step + 1) / warmup))
                losses.append(self._update(step))
                self.step = step + 1
        except Exception as error:  # a candidate that cannot be trained has lost, no more
            return _said(error)
        finally:
            self.seconds += time.perf_counter() - started
            model.train(was)
            if losses:
                self.curve += _thinned(torch.stack(losses).double())
        if not math.isfinite(self.curve[-1]):
            return "it diverged: the training loss is not finite"
        return ""

    def _update(self, step: int) -> Tensor:
        """One update; the loss before it."""

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            merge, total = self.training.merge, torch.zeros(())
            for index in self.order[step * merge : (step + 1) * merge]:
                batch = self._batch(index)
                value = self._loss(self.model(*batch.args, **batch.kwargs), batch) / merge
                value.backward()
                total = total + value.detach() if merge > 1 else value.detach()
            if self.training.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
            return total

        if self._evaluates:  # LBFGS evaluates the loss itself
            return cast("Any", self.optimizer).step(closure).detach()
        loss = closure()
        self.optimizer.step()
        return loss

    def _loss(self, output: Any, batch: Batch) -> Tensor:
        """As `batches.loss_of`, which checks every time what cannot change."""
        if self._checked and self._compares and isinstance(output, Tensor):
            return cast("Any", self.loss)(output, batch.target)
        self._checked = True
        return batches.loss_of(output, batch, self.loss)

    def _set_rates(self, share: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share

    def _batch(self, index: int) -> Batch:
        """A batch as model and loss take it; read anew where the model has written to it."""
        batch, tensors = self.read.get(index, (None, ()))
        if batch is None or any(x._version != version for x, version in tensors):
            batch = self._prepared(self.data.train[index])
            leaves = tree_leaves((batch.args, batch.kwargs, batch.target))
            tensors = tuple((x, x._version) for x in leaves if isinstance(x, Tensor))
            self.read[index] = batch, tensors
        return batch

    def _prepared(self, raw: Any) -> Batch:
        read = batches.read(raw, self.model, self.loss, batch_dim=self.batch_dim, gradients=False)
        if not self.training.prepare:
            return read
        args, kwargs, target = applied(self.training.prepare, (read.args, read.kwargs, read.target))
        return replace(read, args=args, kwargs=kwargs, target=target)

    @torch.no_grad()
    def _judge(self) -> tuple[float, str, float, float]:
        was = self.model.training
        self.model.eval()
        metric, sums, total, count = None, None, 0.0, 0
        try:
            for raw in self.data.held_out:
                batch = self._prepared(raw)
                output = self.model(*batch.args, **batch.kwargs)
                total += float(batches.loss_of(output, batch, self.loss)) * batch.size
                count += batch.size
                if metric is None:
                    metric = infer(output, batch.target, self.loss, self.score)
                if metric.kind == "loss":
                    continue
                if metric.kind == "own":  # in the user's terms
                    raw_target = batches.read(raw, self.model, self.loss, gradients=False).target
                    found = metric.sums(applied(self.training.readout, output), raw_target)
                else:
                    found = metric.sums(output, batch.target)
                sums = found if sums is None else sums + found
        finally:
            self.model.train(was)
        assert metric is not None
        if sums is None:
            return -total / count, metric.name, total / count, 0.0
        return metric.value(sums), metric.name, total / count, metric.error(sums)


def _thinned(losses: Tensor, points: int = 20) -> tuple[float, ...]:
    """Means over pieces of equal length."""
    pieces = losses.tensor_split(min(points, len(losses)))
    return tuple(float(piece.mean()) for piece in pieces)


def _random() -> tuple[Tensor, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return (torch.get_rng_state(), *cuda)


def _set_random(states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(list(states[1:]))


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


@contextmanager
def one_thread() -> Iterator[None]:
    """What a leg computes must not depend on how many of them run at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
