"""Cures of residual networks: quieter branches (`residual-scaling`), or silent ones (`rezero`).

A branch is what a residual block adds to its input. It is changed where it ends: at the weights of
its last layer, or, where a normalisation follows that would undo this, at the scale of that.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from signalprop.capture import observe
from signalprop.capture.trace import Block, Trace
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.structure.flow import flow, is_layer
from signalprop.cures.surgery import copied
from signalprop.errors import SignalpropError


@dataclass(frozen=True)
class End:
    """Where a branch ends.

    Attributes:
        path: of the module whose scale is the branch's.
        activation: the activation behind it; None where there is none.
    """

    path: str
    activation: str | None


@cure(
    "residual-scaling",
    treats=("SP102", "SP105", "SP108", "SP109", "SP117"),
    changes="model with data",
)
def residual_scaling(
    model: nn.Module, data: Any, *, inplace: bool = False, scale: float | None = None
) -> nn.Module:
    r"""Scale every residual branch by 1/sqrt(L), L the number of residual additions.

    Branches of variance 1 let the stream grow by (1 + 1/L)^L < e instead of 2^L. It is done once
    and to the parameters, as in GPT-2 (Radford et al. 2019, section 2.3: residual layers by
    1/sqrt(N), N = 2 * blocks; a transformer block adds twice): to weight and bias of the last layer
    of a branch, or of the normalisation behind it. With a rectifier or nothing behind them the
    branch is scaled exactly, with another activation in first order.

    Meant for before training: what a trained network computes is changed.

    Args:
        model: any module with residual additions.
        data: a batch, on which the branches are seen.
        inplace: change the model itself instead of a copy.
        scale: another factor than 1/sqrt(L), above 0.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: there is no residual addition, or no branch that can be scaled.
        SignalpropError: the model cannot be run on the data, or an option is none.
    """
    if scale is not None and not 0 < scale < float("inf"):
        raise SignalpropError(f"scale has to be a finite number above 0, not {scale!r}")
    ends, count = _ends(model, data)
    factor = count**-0.5 if scale is None else float(scale)
    if factor == 1.0:
        raise DoesNotApply("there is one residual addition only, whose factor is 1")
    return _times(model, ends, factor, inplace)


@cure("rezero", treats=("SP109", "SP117"), changes="model with data")
def rezero(model: nn.Module, data: Any, *, inplace: bool = False) -> nn.Module:
    r"""Start every residual branch at zero, so that its block is the identity.

    The last layer of a branch, or the normalisation behind it, begins with weight and bias 0: gamma
    of the last BatchNorm (Goyal et al. 2017, section 5.1), the last convolution (Zhang, Dauphin &
    Ma 2019, Fixup). The first step moves that layer alone, as with alpha = 0 in ReZero (Bachlechner
    et al. 2020, eq. 1), and no parameter comes on top. A branch with an activation behind its last
    layer is left alone: a rectifier would keep it at zero for good.

    Args:
        model: any module with residual additions.
        data: a batch, on which the branches are seen.
        inplace: change the model itself instead of a copy.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: there is no residual addition, or no branch that can begin at zero.
        SignalpropError: the model cannot be run on the data.
    """
    ends, _ = _ends(model, data)
    bare = [end for end in ends if end.activation is None]
    if not bare:
        raise DoesNotApply(
            "every residual branch has an activation behind its last layer, which could not leave "
            "zero"
        )
    modules = dict(model.named_modules())
    if all(not p.any() for end in bare for p in _scales(modules[end.path])):
        raise DoesNotApply("every residual branch begins at zero already")
    return _times(model, bare, 0.0, inplace)


def _ends(model: nn.Module, data: Any) -> tuple[list[End], int]:
    """Where the branches end, and how many residual additions there are."""
    seen = flow(model, data)
    trace = observe.trace(model, data, seen.loss)
    blocks = [block for block in trace.blocks if block.residual]
    if not blocks:
        raise DoesNotApply("the network has no residual additions; the cure residual adds them")
    modules = dict(model.named_modules())
    held = Counter(id(p) for m in modules.values() for p in m._parameters.values() if p is not None)
    found: dict[str, End] = {}
    for block in blocks:
        end = _end(block, trace, modules)
        if end is not None and all(held[id(p)] == 1 for p in _scales(modules[end.path])):
            found.setdefault(end.path, end)
    if not found:
        raise DoesNotApply(
            "no residual branch ends in a layer or normalisation with weights of its own"
        )
    return list(found.values()), len(blocks)


def _end(block: Block, trace: Trace, modules: dict[str, nn.Module]) -> End | None:
    """The last module of a branch that has a scale."""
    activation: str | None = None
    for name in reversed(block.inner):
        site = trace.sites[name]
        if site.kind == "slope":
            activation = activation or site.op
        for path in (site.module, *site.aliases):
            module = modules.get(path)
            if module is None:
                continue
            if site.kind == "normalisation" or is_layer(module):
                # a normalisation without a scale undoes whatever is done in front of it
                return End(path, activation) if _scales(module) else None
    return None


def _scales(module: nn.Module) -> list[Tensor]:
    """Parameters, or originals of parametrised ones, that scale what a module makes."""
    if isinstance(module, nn.RNNBase):
        return []
    inner = module.out_proj if isinstance(module, nn.MultiheadAttention) else module
    if parametrize.is_parametrized(inner, "weight"):
        return list(inner.parametrizations["weight"].parameters())  # type: ignore[index]
    own = (inner._parameters.get("weight"), inner._parameters.get("bias"))
    return [] if own[0] is None else [p for p in own if p is not None]


def _times(model: nn.Module, ends: list[End], factor: float, inplace: bool) -> nn.Module:
    """The ends of branches times a factor."""
    root = model if inplace else copied(model)
    modules = dict(root.named_modules())
    changed = False
    for end in ends:
        module = modules[end.path]
        inner = module.out_proj if isinstance(module, nn.MultiheadAttention) else module
        assert isinstance(inner, nn.Module)
        with torch.no_grad():
            for name in ("weight", "bias"):
                changed = _scaled(inner, name, factor) or changed
    if not changed:
        raise DoesNotApply("the weights at the ends of the branches are parametrised to a norm")
    return root


def _scaled(module: nn.Module, name: str, factor: float) -> bool:
    """One tensor times a factor; whether it is that now."""
    if not parametrize.is_parametrized(module, name):
        value = module._parameters.get(name)
        if value is None:
            return False
        value.mul_(factor)
        return True
    before = getattr(module, name).clone()
    try:
        setattr(module, name, before * factor)
    except (RuntimeError, NotImplementedError):  # no way back from the value
        return False
    if torch.allclose(getattr(module, name), before * factor, rtol=1e-4, atol=0.0):
        return True
    setattr(module, name, before)
    return False
