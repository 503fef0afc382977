"""Cures of the optimizer: what it holds, and which one it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from signalprop.capture.observe import unwrapped
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.training import Group, Training

#: optimizers that divide a gradient by its own size
ADAPTIVE = frozenset(
    {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "Adadelta", "SparseAdam",
     "Adafactor", "Muon"}
)  # fmt: skip


@cure("rebuild-optimizer", treats=("SP212",), changes="settings")
def rebuild_optimizer(training: Training, data: Any) -> Training:
    """Make the optimizer anew, so that it holds every parameter that is trained.

    Args:
        training: the network and how it is trained.
        data: not looked at.

    Returns:
        The changed training; parameters that were missing join the largest group.

    Raises:
        DoesNotApply: the optimizer holds them all, or nothing is trained.
    """
    recipe = training.optimizer.explicit(training.model)
    model = unwrapped(training.model)
    named = training.model.named_parameters()
    trained = [name for name, p in named if p.requires_grad]
    if not trained:
        raise DoesNotApply(f"{type(model).__name__} has no parameter that is trained")
    held = {name for group in recipe.groups for name in group.names}
    missing = tuple(name for name in trained if name not in held)
    if not missing:
        raise DoesNotApply("the optimizer holds every parameter that is trained")
    return training.rebuilt(replace(recipe, left_out=missing).whole())


@cure("adam", treats=("SP101", "SP103", "SP211"), changes="settings")
def adam(training: Training, data: Any, *, lr: float = 1e-3) -> Training:
    """Train with Adam, which divides every gradient by its own size (Kingma & Ba 2015).

    Groups keep their weight decay and the ratios of their learning rates.

    Args:
        training: the network and how it is trained.
        data: not looked at.
        lr: the largest learning rate.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: the optimizer does so already.
    """
    recipe = training.optimizer.explicit(training.model)
    name = getattr(recipe.kind, "__name__", "")
    if name in ADAPTIVE:
        raise DoesNotApply(f"{name} divides every gradient by its own size already")
    most = recipe.rate

    def of(group: Group) -> Group:
        share = float(group.options.get("lr", most)) / most if most > 0 else 1.0
        decay = float(group.options.get("weight_decay", 0.0))
        return replace(
            group, options={"lr": lr * share} | ({"weight_decay": decay} if decay else {})
        )

    groups = tuple(of(group) for group in recipe.groups)
    return training.rebuilt(replace(recipe, kind=torch.optim.Adam, groups=groups))
