"""Mean and standard deviation of inputs, batch after batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from signalprop.capture.batch import Batch


def floating(batch: Batch) -> Iterator[tuple[int | str, str, Tensor]]:
    """Key, name in the trace, and tensor of every floating input."""
    given: dict[int | str, Any] = dict(enumerate(batch.args)) | batch.kwargs
    for key, x in given.items():
        name = f"input:{key}" if isinstance(key, str) else f"input{key + 1}" if key else "input"
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
            yield key, name, x


class Moments:
    """Mean and standard deviation per feature of finite values, in float64, batch after batch."""

    def __init__(self, x: Tensor, dim: int) -> None:
        self.dim = dim % x.ndim
        nothing = torch.zeros(x.shape[self.dim], dtype=torch.float64)
        self.n, self.mean, self.square = nothing, nothing, nothing

    def add(self, x: Tensor) -> None:
        """One more batch (Chan, Golub & LeVeque 1983, equation 2.1)."""
        value = x.detach().to("cpu", torch.float64).movedim(self.dim, 0).flatten(1)
        good = value.isfinite()
        value = torch.where(good, value, 0.0)
        n = good.sum(1).to(torch.float64)
        mean = value.sum(1) / n.clamp(min=1)
        square = (torch.where(good, value - mean[:, None], 0.0) ** 2).sum(1)
        total = self.n + n
        apart = mean - self.mean
        weight = n / total.clamp(min=1)
        self.square = self.square + square + apart**2 * self.n * weight
        self.mean = self.mean + apart * weight
        self.n = total

    def result(self, ndim: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (population), which broadcast against the input."""
        std = (self.square / self.n.clamp(min=1)).sqrt()
        shape = [1] * ndim
        shape[self.dim] = -1
        return self.mean.reshape(shape), std.reshape(shape)
