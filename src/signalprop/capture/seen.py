"""What a recorder holds while a pass runs; `assemble` turns it into a `Trace`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from signalprop.capture.kinds import Kind
from signalprop.capture.statistics import Scalar


@dataclass
class Seen:
    """A site while the pass runs; its statistics are still on the device."""

    base: str
    module: str
    op: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    node: Any
    output_nr: int
    entry: Any
    numel: int
    scalars: list[Scalar]
    order: int
    units: int | None = None
    unit_stat: str | None = None
    tokens: bool = False
    in_loss: bool = False
    aliases: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Kept:
    """Where a site's tensor hangs in autograd's graph, at the moment it was seen."""

    edge: GradientEdge
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> Kept:
        """The place of a tensor that requires a gradient."""
        return cls(get_gradient_edge(x), tuple(x.shape), x.dtype, x.device)


@dataclass(slots=True, eq=False)
class Frame:
    """A module being called."""

    module: torch.nn.Module
    path: str
    atomic: bool
    given: Tensor | None
    entry: Any
    version: int


@dataclass
class SeenLoss:
    """A call of a loss function: facts of the tensors it was given, which are not kept."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    given: list[Scalar]
    row_sums: list[Scalar]
    target_shape: tuple[int, ...] | None
    target_dtype: str
    target: list[Scalar]
    site: Seen | None
    ignored: int | None
