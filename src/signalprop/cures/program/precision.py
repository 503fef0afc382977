"""Cures of weights in half precision."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from signalprop.capture.observe import unwrapped
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.program.steps import Given
from signalprop.cures.surgery import copied
from signalprop.cures.training import Training


@dataclass(frozen=True)
class Wide:
    """Floating inputs and targets of less than 32 bits in float32."""

    def __call__(self, given: Given) -> Given:
        """Change a batch."""
        args, kwargs, y = given
        return (
            tuple(self._wide(x) for x in args),
            {k: self._wide(x) for k, x in kwargs.items()},
            self._wide(y),
        )

    def _wide(self, x: Any) -> Any:
        narrow = isinstance(x, Tensor) and x.is_floating_point() and x.dtype.itemsize < 4
        return x.float() if narrow else x


@dataclass
class Autocast:
    """Two forward hooks, between which a model computes in another dtype."""

    dtype: torch.dtype
    entered: list[AbstractContextManager[Any]] = field(default_factory=list)

    def start(self, module: nn.Module, args: Any) -> None:
        """Before the forward pass."""
        device = next(module.parameters()).device.type
        context = torch.autocast(device, dtype=self.dtype)
        context.__enter__()
        self.entered.append(context)

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """After it, also where it raised."""
        if self.entered:
            self.entered.pop().__exit__(None, None, None)


def _narrow(model: nn.Module) -> list[torch.dtype]:
    tensors: Iterable[Tensor] = (*model.parameters(), *model.buffers())
    return [t.dtype for t in tensors if t.is_floating_point() and t.dtype.itemsize < 4]


@cure("float32", treats=("SP202",), changes="training")
def float32(training: Training, data: Any) -> Training:
    """Keep the weights and compute in float32, whose largest number is 3e38.

    Args:
        training: the network and how it is trained.
        data: not looked at.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no weight is of a narrower dtype.
    """
    if not _narrow(training.model):
        raise DoesNotApply(
            "the weights are in float32 already; take torch.autocast off, or lower the scale"
        )
    return training.changed(
        "model = model.float()",
        "inputs = inputs.float()",
        model=copied(training.model).float(),
        prepare=(*training.prepare, Wide()),
    )


@cure("float32-weights", treats=("SP211",), changes="training")
def float32_weights(training: Training, data: Any) -> Training:
    """Keep the weights in float32, which small updates move, and compute as before (autocast).

    Micikevicius et al. 2018, section 3.1. Weights in float16 are computed in float32 as well, as
    gradients in float16 would need their loss scaled.

    Args:
        training: the network and how it is trained.
        data: not looked at.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no weight is of a narrower dtype.
    """
    narrow = _narrow(training.model)
    if not narrow:
        raise DoesNotApply("the weights are in float32 already")
    model = copied(training.model).float()
    prepare = (*training.prepare, Wide())
    lines = ["model = model.float()", "inputs = inputs.float()"]
    if torch.bfloat16 in narrow:
        cast = Autocast(torch.bfloat16)
        inner = unwrapped(model)
        inner.register_forward_pre_hook(cast.start)
        inner.register_forward_hook(cast.end, always_call=True)
        lines.append("with torch.autocast(device_type, dtype=torch.bfloat16): output = model(...)")
    return training.changed(*lines, model=model, prepare=prepare)
