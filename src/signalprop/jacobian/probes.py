"""Random vectors for estimators, from a generator of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from signalprop.jacobian.operator import Operator, working


def generator_of(generator: torch.Generator | None) -> torch.Generator:
    """The given generator, or a fresh one that always starts the same."""
    return torch.Generator().manual_seed(0) if generator is None else generator


def gaussian(op: Operator, size: int, count: int, generator: torch.Generator) -> Tensor:
    """Standard normal vectors (batch, size, count), drawn where the generator lives."""
    drawn = torch.randn((op.batch, size, count), generator=generator, device=generator.device)
    return drawn.to(device=op.device, dtype=working(op.dtype))


def signs(op: Operator, size: int, count: int, generator: torch.Generator) -> Tensor:
    """Vectors of independent fair signs (batch, size, count)."""
    shape = (op.batch, size, count)
    drawn = torch.randint(0, 2, shape, generator=generator, device=generator.device)
    return (drawn * 2 - 1).to(device=op.device, dtype=working(op.dtype))
