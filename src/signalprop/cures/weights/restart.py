"""Runs modules' own initialisation once more, through parametrisations and ties."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

#: how torch and others call the method that draws a module's parameters
_METHODS = ("reset_parameters", "_reset_parameters")


def restarted(tops: Iterable[nn.Module]) -> int:
    """Initialise modules and what is inside them, inner modules first.

    Args:
        tops: modules.

    Returns:
        How many were initialised.
    """
    done = 0
    seen: set[int] = set()
    drawn: set[int] = set()
    for top in tops:
        for module in _inner_first(top, seen):
            done += _one(module, drawn)
        scheme = getattr(top, "_init_weights", None)
        if callable(scheme):
            with torch.no_grad():
                for module in top.modules():
                    if _trained(module):
                        scheme(module)
            done += 1
    return done


def _inner_first(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    if id(module) in seen:
        return
    seen.add(id(module))
    for name, child in module.named_children():
        if name != "parametrizations":
            yield from _inner_first(child, seen)
    yield module


def _trained(module: nn.Module) -> bool:
    return all(p.requires_grad for p in module.parameters())


def _one(module: nn.Module, drawn: set[int]) -> bool:
    method = next((m for m in _METHODS if callable(getattr(module, m, None))), None)
    own = list(module.parameters())
    if method is None or not (own or list(module.buffers())) or not _trained(module):
        return False
    if own and all(id(p) in drawn for p in own) and not module._modules:
        return False  # tied to one that has been drawn
    kept = [(p, p.detach().clone()) for p in own if id(p) in drawn and not module._modules]
    if parametrize.is_parametrized(module):
        _parametrised(module, method)
    else:
        getattr(module, method)()
    with torch.no_grad():
        for p, value in kept:
            p.copy_(value)
    drawn.update(id(p) for p in own)
    return True


def _parametrised(module: nn.Module, method: str) -> None:
    """What is computed cannot be drawn: a plain twin is, and its values are handed over."""
    # not by remove_parametrizations, which takes the property off the class of both
    plain = copy.deepcopy(module)
    plain.__class__ = type(module).__bases__[0]
    names = [*plain.get_submodule("parametrizations")._modules]
    del plain._modules["parametrizations"]
    for name in names:
        plain._parameters[name] = nn.Parameter(getattr(module, name).detach().clone())
    getattr(plain, method)()
    with torch.no_grad():
        for name, p in plain.named_parameters(recurse=False):
            if name in names:
                setattr(module, name, p.detach())
            else:
                getattr(module, name).copy_(p)
