"""Cures of the modes of BatchNorm and Dropout."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.surgery import copied


def _frozen(model: nn.Module) -> set[nn.Module]:
    """Modules in frozen parts: the nearest one around them that has parameters trains none."""
    found: set[nn.Module] = set()

    def visit(module: nn.Module, around: bool) -> None:
        own = list(module.parameters())
        frozen = not any(p.requires_grad for p in own) if own else around
        if frozen:
            found.add(module)
        for child in module.children():
            visit(child, frozen)

    visit(model, False)
    return found


@cure("train-mode", treats=("SP208",))
def train_mode(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Put the model into training mode, frozen parts apart.

    The same as `model.train()`, but BatchNorm and Dropout in parts whose parameters are all frozen
    stay as they are.

    Args:
        model: any module.
        inplace: change the model itself instead of a copy.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: all that is trained is in training mode already.
    """
    frozen = _frozen(model)
    if all(m.training or m in frozen for m in model.modules()):
        raise DoesNotApply("all that is trained is in training mode already")
    model = model if inplace else copied(model)
    frozen = _frozen(model)
    for module in model.modules():
        if module not in frozen:
            module.training = True
    return model


@cure("eval-frozen", treats=("SP208", "SP209"))
def eval_frozen(model: nn.Module, *, every: bool = False, inplace: bool = False) -> nn.Module:
    """Put BatchNorm and Dropout of frozen parts into evaluation mode.

    `model.train()` undoes it, so it is to be called again after that.

    Args:
        model: any module.
        every: every BatchNorm, frozen or not: it then uses the statistics it has.
        inplace: change the model itself instead of a copy.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: none of these is in training mode.
    """

    def wanted(one: nn.Module) -> list[nn.Module]:
        frozen = _frozen(one)
        return [
            m
            for m in one.modules()
            if m.training and isinstance(m, (_BatchNorm, _DropoutNd))
            and (m in frozen or (every and isinstance(m, _BatchNorm)))
            and not (isinstance(m, _BatchNorm) and not m.track_running_stats)
        ]  # fmt: skip

    if not wanted(model):
        raise DoesNotApply(
            "no BatchNorm or Dropout of a frozen part is in training mode; freeze it first with "
            "requires_grad_(False), or take group_norm"
        )
    model = model if inplace else copied(model)
    for module in wanted(model):
        module.eval()
    return model
