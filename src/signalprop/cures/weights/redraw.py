"""Which layers of a network get new weights, and how they are given to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.followed.following import Following, Layer
from signalprop.nets._weights import (
    Fill,
    check_weight,
    filled,
    set_weight,
    undone_on_error,
    weight_parameters,
    zero_bias_,
)

#: how to fill the weight of a layer; None leaves the layer
Rule = Callable[[Layer], Fill | None]


def normal(gain: float) -> Fill:
    """Weights from N(0, gain^2 / fan_in)."""

    def fill(size: tuple[int, ...], fan_in: float, fan_out: float, like: Tensor) -> Tensor:
        return drawn(size, gain / fan_in**0.5, like)

    return fill


def drawn(size: tuple[int, ...], std: float, like: Tensor) -> Tensor:
    """Normal numbers in the dtype of `like`, drawn in float32 at least."""
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    return (torch.randn(size, dtype=wide, device=like.device) * std).to(like.dtype)


def eligible(model: nn.Module, seen: Following) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers that may get new weights, and why the others may not.

    Left out are queries, keys and values, frozen weights, weights that something else holds as
    well (an embedding), weights that were set to zero where no activation follows (a head or the
    end of a branch that shall start silent), and those that no real numbers can be written to.

    Args:
        model: the model.
        seen: what follows its layers.

    Returns:
        Layers by path, each weight once; reasons by path.
    """
    held: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for p in module._parameters.values():
            if p is not None:
                held.setdefault(id(p), []).append(module)
    own = {id(m) for layer in seen.layers.values() for m in layer.module.modules()}
    found: dict[str, Layer] = {}
    why: dict[str, str] = {}
    taken: dict[int, str] = {}
    for path, layer in seen.layers.items():
        parameters = weight_parameters(layer.module)
        try:
            check_weight(layer.module, path)
        except ValueError as error:
            why[path] = str(error)
            continue
        if layer.attention:
            why[path] = f"layer {path!r} makes queries, keys or values"
        elif not all(p.requires_grad for p in parameters):
            why[path] = f"the weight of layer {path!r} is frozen"
        elif any(id(m) not in own for p in parameters for m in held.get(id(p), ())):
            why[path] = f"the weight of layer {path!r} is also that of something else"
        elif id(parameters[0]) in taken:
            why[path] = f"the weight of layer {path!r} is that of {taken[id(parameters[0])]!r}"
        elif not layer.uses and not any(bool((p != 0).any()) for p in parameters):
            why[path] = f"the weight of layer {path!r} was set to zero"
        else:
            found[path] = layer
            taken |= {id(p): path for p in parameters}
    return found, why


def redraw(
    model: nn.Module,
    seen: Following,
    rule: Rule,
    *,
    bias: Callable[[Layer], float] | None = None,
    nothing: str = "no layer of it asks for new weights",
) -> list[str]:
    """Give layers new weights, and biases of 0; all of them or, after an error, none.

    Args:
        model: changed in place.
        seen: what follows its layers.
        rule: how each is filled. A parametrisation that cannot take on the weight (a spectral norm
            sets the scale itself) leaves its layer as it was.
        bias: standard deviation of the biases by layer; 0 everywhere without.
        nothing: why nothing is done, where the rule leaves all layers.

    Returns:
        Paths of the layers that were changed.

    Raises:
        DoesNotApply: none could be.
    """
    layers, why = eligible(model, seen)
    done: list[str] = []
    with undone_on_error(model), torch.no_grad():
        for path, layer in layers.items():
            fill = rule(layer)
            if fill is None:
                continue
            try:
                set_weight(layer.module, path, filled(layer.module, path, fill))
            except ValueError as error:
                nothing = str(error)
                continue
            zero_bias_(layer.module)
            own = layer.module._parameters.get("bias")
            if bias is not None and own is not None and own.requires_grad:
                own.copy_(drawn(tuple(own.shape), bias(layer), own))
            done.append(path)
    if not done:
        if not seen.layers:
            raise DoesNotApply("the model holds no linear or convolution layer")
        raise DoesNotApply(nothing if layers else next(iter(why.values())))
    return done
