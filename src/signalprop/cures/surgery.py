"""The one way in which a cure changes the modules of a network."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from signalprop.errors import SignalpropError

#: given the name of a module and the module, what shall stand in its place; None leaves it
Change = Callable[[str, nn.Module], nn.Module | None]


def operate(model: nn.Module, change: Change, *, inplace: bool = False) -> nn.Module:
    """Replace modules, and keep everything else as it is.

    Every module is asked for once, by its first name, from the root down; one that is used in
    several places is replaced in all of them, and what is inside a replaced module is not asked
    for. A new module gets the mode of the old one, and new tensors its device and floating dtype.
    Tied weights stay tied; hooks, buffers and names stay. Hooks on a replaced module go with it.

    Args:
        model: any module.
        change: gives the replacement; a module may also be changed in place and None returned.
        inplace: change the model itself instead of a copy. Where the root itself is replaced only
            what is returned is new.

    Returns:
        The changed model.

    Raises:
        SignalpropError: the model cannot be copied.

    Examples:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> swap = lambda name, module: nn.SELU() if isinstance(module, nn.ReLU) else None
        >>> operate(net, swap)[1], net[1]
        (SELU(), ReLU())
    """
    root = model if inplace else copied(model)
    done: dict[nn.Module, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> nn.Module:
        if module in done:
            return done[module]
        done[module] = module  # a module may hold itself
        new = change(name, module)
        if new is not None and new is not module:
            done[module] = fitted(new, module, root)
            return done[module]
        for key, child in list(module._modules.items()):
            if child is None:
                continue
            after = visit(f"{name}.{key}" if name else key, child)
            if after is not child:
                module._modules[key] = after
        return module

    return visit("", root)


def copied(model: nn.Module) -> nn.Module:
    """A copy with its own tensors, tied where they were.

    Returns:
        The copy.

    Raises:
        SignalpropError: something in the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise SignalpropError(
            f"the model cannot be copied ({said[0].rstrip('.')}); pass inplace=True to change it "
            "itself, or build a second one"
        ) from error


def fitted(new: nn.Module, old: nn.Module, root: nn.Module) -> nn.Module:
    """A new module in the mode, and on the device and in the dtype, of the one it replaces.

    Args:
        new: the replacement; tensors that it shares with the old module are left alone.
        old: what it replaces.
        root: whose tensors count where the old module has none.

    Returns:
        The new module.
    """
    grads = [p.grad for p in old.parameters() if p.grad is not None]
    kept = {id(t) for t in (*_tensors(old), *grads)}
    candidates = (t for t in (*_tensors(old), *_tensors(root)) if t.is_floating_point())
    like = next(candidates, None)
    if like is not None:

        def moved(tensor: Tensor) -> Tensor:
            if id(tensor) in kept:
                return tensor
            dtype = like.dtype if tensor.is_floating_point() else None
            return tensor.to(device=like.device, dtype=dtype)

        for module in new.modules():
            # torch's own way: what is tied stays tied, and an LSTM finds its weights again
            module._apply(moved, recurse=False)
    inside = set(old.modules())
    if inside.isdisjoint(new.modules()):
        new.train(old.training)
    else:
        for module in set(new.modules()) - inside:
            module.training = old.training
    return new


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
