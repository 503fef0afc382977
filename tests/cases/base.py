"""What a case is, how its batch is meant, and the data they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

Health = Literal["healthy", "sick", "odd"]
Built = tuple[nn.Module, Any, Callable[..., Tensor] | None]


@dataclass(frozen=True)
class Case:
    """One network as a user would write it.

    ``build()`` gives a fresh (model, batch, loss), the same every time. The
    batch is (inputs, target), where inputs is a tensor, a tuple of positional
    or a dict of keyword arguments; or a dict for a model that returns its own
    ``.loss`` (then loss is None); or a DataLoader of either. ``error`` is part
    of the sentence that refuses the case, compared without regard to case.
    """

    name: str
    build: Callable[[], Built]
    health: Health
    expect: frozenset[str] = frozenset()
    error: str | None = None
    optimizer: Callable[[nn.Module], Optimizer] | None = None
    note: str = ""

    def __repr__(self) -> str:
        return self.name


def seeded(build: Callable[..., Built], *args: Any) -> Callable[[], Built]:
    """Make `build(*args)` repeatable without touching the caller's random state."""

    @wraps(build)
    def fresh() -> Built:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return build(*args)

    return fresh


def healthy(name: str, optimizer: Callable, note: str = "") -> Callable[[Callable], Case]:
    """Turn the build function below it into a healthy case."""
    return lambda build: Case(name, seeded(build), "healthy", optimizer=optimizer, note=note)


def sick(
    name: str, *expect: str, optimizer: Callable | None = None, note: str = ""
) -> Callable[[Callable], Case]:
    """Turn the build function below it into a sick case."""
    return lambda build: Case(
        name, seeded(build), "sick", frozenset(expect), optimizer=optimizer, note=note
    )


def odd(
    name: str,
    *expect: str,
    error: str | None = None,
    optimizer: Callable | None = None,
    note: str = "",
) -> Callable[[Callable], Case]:
    """Turn the build function below it into an odd case."""
    return lambda build: Case(name, seeded(build), "odd", frozenset(expect), error, optimizer, note)


def collect(namespace: Mapping[str, Any]) -> tuple[Case, ...]:
    """The cases defined in a module, in the order they were written."""
    return tuple(value for value in namespace.values() if isinstance(value, Case))


# Running a case the plain way: the reference every traced pass is held against.


def first_batch(batch: Any) -> Any:
    """The batch itself, or the first one of a DataLoader."""
    is_batch = isinstance(batch, Tensor | tuple | list | Mapping)
    return next(iter(batch)) if isinstance(batch, Iterable) and not is_batch else batch


def call(model: nn.Module, inputs: Any) -> Any:
    """Call the model as its inputs are meant: one tensor, positional or keyword."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def plain_loss(model: nn.Module, batch: Any, loss: Callable[..., Tensor] | None) -> Tensor:
    """One plain forward pass up to the loss."""
    batch = first_batch(batch)
    if loss is None:
        return call(model, batch).loss
    inputs, target = batch
    return loss(call(model, inputs), target)


# Optimizers, as functions of the model.


def sgd(lr: float, momentum: float = 0.9) -> Callable[[nn.Module], Optimizer]:
    """SGD with momentum."""
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def adam(lr: float = 1e-3) -> Callable[[nn.Module], Optimizer]:
    """Adam."""
    return lambda model: torch.optim.Adam(model.parameters(), lr=lr)


def adamw(lr: float = 1e-3) -> Callable[[nn.Module], Optimizer]:
    """AdamW."""
    return lambda model: torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)


def rmsprop(lr: float = 1e-3) -> Callable[[nn.Module], Optimizer]:
    """RMSprop."""
    return lambda model: torch.optim.RMSprop(model.parameters(), lr=lr)


# Data: correlated as real features are, standardised as a careful user would.


def standardised(x: Tensor, dim: int | tuple[int, ...] = 0) -> Tensor:
    """Zero mean and unit variance over `dim`."""
    return (x - x.mean(dim, keepdim=True)) / x.std(dim, keepdim=True)


def features(n: int, width: int) -> Tensor:
    """`n` rows of `width` correlated features, each standardised."""
    factors = torch.randn(n, max(2, width // 2)) @ torch.randn(max(2, width // 2), width)
    return standardised(factors + 0.5 * width**0.5 * torch.randn(n, width))


def classes(x: Tensor, count: int) -> Tensor:
    """Labels 0..count-1 that a linear teacher gives, so that they can be learned."""
    scores = x.flatten(1) @ torch.randn(x[0].numel(), count)
    return standardised(scores).argmax(1)


def images(n: int, channels: int, size: int) -> Tensor:
    """Smooth random images with fine grain, standardised per channel."""
    coarse = F.interpolate(torch.randn(n, channels, 4, 4), size=size, mode="bilinear")
    return standardised(coarse + 0.3 * torch.randn(n, channels, size, size), (0, 2, 3))


def series(n: int, steps: int, width: int) -> Tensor:
    """Autoregressive series, (n, steps, width), standardised per feature."""
    x = [torch.randn(n, width)]
    for _ in range(steps - 1):
        x.append(0.7 * x[-1] + 0.7 * torch.randn(n, width))
    return standardised(torch.stack(x, 1), (0, 1))


def tokens(n: int, steps: int, vocabulary: int) -> Tensor:
    """Integer sequences of a Markov chain with three likely successors, (n, steps)."""
    successors = torch.randint(vocabulary, (vocabulary, 3))
    x = [torch.randint(vocabulary, (n,))]
    for _ in range(steps - 1):
        x.append(successors[x[-1], torch.randint(3, (n,))])
    return torch.stack(x, 1)
