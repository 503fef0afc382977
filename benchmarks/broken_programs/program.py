"""A described program, ready to train: model, data, loss, optimizer, batches, metric."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from benchmarks.broken_programs import compile as compiled
from benchmarks.broken_programs import keras
from benchmarks.broken_programs.data import Data, load
from benchmarks.broken_programs.descriptions import Case, Which
from benchmarks.broken_programs.spec import Spec
from torch import Tensor, nn

#: a batch to be diagnosed has as many samples as the program's own, but within these
FEWEST, MOST = 32, 256
#: the early diagnosis is made after one epoch, but within these numbers of updates
EARLIEST, LATEST = 50, 300


@dataclass
class Session:
    """A training under way.

    Attributes:
        model: in training mode.
        optimizer: with its state.
        steps: updates made.
        loss: the last one.
        seconds: spent on updates.
    """

    model: nn.Sequential
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    batches: Iterator[Tensor]
    steps: int = 0
    loss: float = math.nan
    seconds: float = 0.0


@dataclass(frozen=True)
class Program:
    """One program of one case.

    Attributes:
        case: the case.
        which: `buggy` (a healthy case has nothing else) or `correct`.
        spec: what it consists of.
    """

    case: Case
    which: Which
    spec: Spec

    @property
    def name(self) -> str:
        """`DL-SO-48385830/buggy`."""
        return f"{self.case.id}/{self.which}"

    @cached_property
    def data(self) -> Data:
        """Its data; loaded once."""
        return load(self.spec.data)

    @cached_property
    def loss(self) -> compiled.Loss:
        """Its loss, of output and target."""
        return compiled.loss(self.spec.loss, self.data.y)

    @property
    def batch_size(self) -> int:
        """Samples per update."""
        size = self.spec.run.get("batch_size", self.spec.batch_size)
        return len(self.data.x) if size is None else min(size, len(self.data.x))

    @property
    def steps(self) -> int:
        """Updates in all."""
        return self.spec.run.get("epochs", self.spec.epochs) * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Updates per pass over the data."""
        return math.ceil(len(self.data.x) / self.batch_size)

    @property
    def early(self) -> int:
        """Updates before the early diagnosis."""
        return min(max(self.steps_per_epoch, EARLIEST), LATEST, self.steps)

    def model(self, seed: int) -> nn.Sequential:
        """The untrained model of that seed; the global random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return keras.build(self.spec.layers, self.data.x.shape[1:])

    def start(self, seed: int, model: nn.Sequential | None = None) -> Session:
        """A training before its first update.

        Args:
            seed: draws the weights and the order of the samples.
            model: instead of the program's own.

        Returns:
            The training.
        """
        model = self.model(seed) if model is None else model
        model.train()
        optimizer, schedule = compiled.optimizer(self.spec.optimizer, model, self._penalties(model))
        return Session(model, optimizer, schedule, self._batches(seed))

    def go_on(self, session: Session, until: int) -> None:
        """Train until so many updates are made, or until the loss is not finite."""
        model, optimizer, schedule = session.model, session.optimizer, session.schedule
        x, y = self.data.x, self.data.y
        before = time.perf_counter()
        while session.steps < until:
            rows = next(session.batches)
            value = self._value(model(x[rows]), y[rows])
            session.loss = float(value.detach())
            if not math.isfinite(session.loss):
                break
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            session.steps += 1
        session.seconds += time.perf_counter() - before

    def _value(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss; nan where torch's binary cross-entropy would raise because the output is."""
        if not bool(torch.isfinite(output).all()):
            return torch.tensor(math.nan)
        return self.loss(output, target)

    def measure(self, model: nn.Sequential) -> tuple[float, float]:
        """Metric and loss on the test data, in evaluation mode."""
        training = model.training
        model.eval()
        with torch.no_grad():
            parts = [model(part) for part in self.data.x_test.split(500)]
            output = torch.cat(parts)
            value = float(self._value(output, self.data.y_test))
        model.train(training)
        return compiled.metric(self.case.metric, output, self.data.y_test, value), value

    def train(self, seed: int, steps: int | None = None) -> tuple[float, Session]:
        """Train from the start.

        Args:
            seed: draws weights and order.
            steps: updates; as the program says where None.

        Returns:
            The metric, and the training as it ended.
        """
        session = self.start(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.go_on(session, self.steps if steps is None else steps)
        return self.measure(session.model)[0], session

    def batch(self, seed: int) -> tuple[Tensor, Tensor]:
        """The batch that is diagnosed: some samples of the training data."""
        size = min(max(self.batch_size, FEWEST), MOST, len(self.data.x))
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self.data.x), generator=generator)[:size]
        return self.data.x[rows], self.data.y[rows]

    def constant(self) -> float:
        """The metric of the best constant output."""
        target = self.data.y_test

        def of(level: float) -> float:
            return float(self.loss(torch.full_like(target, level), target))

        return compiled.constant(self.case.metric, target, of)

    def _batches(self, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield from torch.randperm(len(self.data.x), generator=generator).split(self.batch_size)

    def _penalties(self, model: nn.Sequential) -> dict[str, float]:
        """Keras's l2 of every kernel, by name of the parameter."""
        layers: list[Any] = [layer for layer in self.spec.layers if layer["type"] in WEIGHTED]
        names = [n for n, m in model.named_children() if isinstance(m, nn.Linear | nn.Conv2d)]
        if len(layers) != len(names):  # a model that is not the program's own
            return {}
        pairs = zip(names, layers, strict=True)
        return {f"{name}.weight": layer["l2"] for name, layer in pairs if "l2" in layer}


WEIGHTED = ("Dense", "Conv2D")


def programs(cases: tuple[Case, ...]) -> Iterator[Program]:
    """All programs of some cases."""
    for case in cases:
        for which, spec in case.programs():
            yield Program(case, which, spec)
