"""What an optimizer tells: its parameters, its learning rates, how its step was called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from signalprop.watching.updates.parameter import Sums


def evaluates(args: Any, kwargs: Any) -> bool:
    """Whether `optimizer.step` was given a function that evaluates the loss."""
    return any(callable(given) for given in (*args[1:], *kwargs.values()))  # args[0] is itself


def unscaled(sums: list[Sums], optimizer: torch.optim.Optimizer) -> list[Sums]:
    """Take out a loss scale that is left to the optimizer's own kernel."""
    scale = getattr(optimizer, "grad_scale", None)
    if isinstance(scale, Tensor):
        factor = 1 / (float(scale) if scale.device.type == "cpu" else scale.double())
        for one in sums:
            one.gradient = one.gradient * factor * factor
            one.decrease = None if one.decrease is None else one.decrease * factor
            one.before = one.product = None
    return sums


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters that it holds."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def rates_of(optimizers: Sequence[torch.optim.Optimizer]) -> Mapping[str, float]:
    """Largest learning rate of each optimizer's groups, where it is known without a wait."""
    found = {}
    for i, optimizer in enumerate(optimizers):
        rates = [group.get("lr") for group in optimizer.param_groups]
        known = [
            float(r)
            for r in rates
            if isinstance(r, (int, float)) or (isinstance(r, Tensor) and r.device.type == "cpu")
        ]
        if known:
            found["learning_rate" if i == 0 else f"learning_rate/{i + 1}"] = max(known)
    return found
