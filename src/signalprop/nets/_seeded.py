"""Random numbers that belong to one module, and the global ones left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Seeded(nn.Module):
    """A module that draws from a generator of its own, on whatever device it is."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self._generator = torch.Generator().manual_seed(seed)

    def generator(self, device: torch.device) -> torch.Generator:
        """The module's generator; it starts again from the seed when the device changes."""
        if self._generator.device != torch.empty(0, device=device).device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform in [0, 1), of the shape, dtype and device of `like`."""
        drawn = self.generator(like.device)
        return torch.rand(like.shape, generator=drawn, device=like.device, dtype=like.dtype)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal, of the shape, dtype and device of `like`."""
        drawn = self.generator(like.device)
        return torch.randn(like.shape, generator=drawn, device=like.device, dtype=like.dtype)

    def bernoulli(self, p: Tensor) -> Tensor:
        """1 with probability p, else 0."""
        return (self.uniform(p) < p).to(p.dtype)

    def minibatches(self, data: Tensor, size: int) -> Iterator[Tensor]:
        """All rows once, in a new random order."""
        drawn = self.generator(data.device)
        order = torch.randperm(len(data), generator=drawn, device=data.device)
        for rows in order.split(size):
            yield data[rows]


def checked_rows(data: Tensor, width: int, *, in_unit: bool) -> Tensor:
    """Samples to learn from: finite floats (n, width), and within [0, 1] where that is needed.

    Args:
        data: the samples.
        width: how many inputs each has to have.
        in_unit: whether the entries are probabilities.

    Returns:
        The samples.

    Raises:
        TypeError: they are not a floating tensor.
        ValueError: they are none, of another width, not finite, or outside [0, 1].
    """
    if not isinstance(data, Tensor) or not data.is_floating_point():
        kind = str(data.dtype) if isinstance(data, Tensor) else type(data).__name__
        raise TypeError(f"expected a floating tensor of samples, got {kind}; convert it first")
    if data.dim() != 2 or data.shape[1] != width or len(data) == 0:
        raise ValueError(f"expected samples of shape (n, {width}), got {tuple(data.shape)}")
    if not bool(torch.isfinite(data).all()):
        raise ValueError("the samples hold inf or nan; remove or replace those entries")
    if in_unit and (float(data.min()) < 0 or float(data.max()) > 1):
        raise ValueError(
            f"binary units need values in [0, 1], got {float(data.min()):g} to "
            f"{float(data.max()):g}; scale the samples, or use units for real values"
        )
    return data


@contextmanager
def random_state() -> Iterator[None]:
    """Torch's global random number generators are afterwards as they were before."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Buffers (the running statistics of BatchNorm) are afterwards as they were before."""
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in kept:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
