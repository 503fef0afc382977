"""Skips around the hidden layers of a network that has none: `residual` and `highway`.

Both go to the same places, see `signalprop.cures.structure.places`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.structure.hooked import Hook
from signalprop.cures.structure.places import Place, places
from signalprop.cures.structure.skipped import (
    HighwayHook,
    HighwaySequential,
    ResidualHook,
    ResidualSequential,
    SkipSequential,
)
from signalprop.cures.surgery import copied
from signalprop.errors import SignalpropError
from signalprop.nets.highway import gate_bias_for

#: names and values of the parameters of one skip
Made = Callable[[Place], dict[str, Tensor]]


@cure(
    "residual",
    treats=("SP101", "SP106", "SP107", "SP108", "SP112", "SP113", "SP114"),
    changes="model with data",
)
def residual(
    model: nn.Module,
    data: Any,
    *,
    inplace: bool = False,
    start: Literal["identity", "scaled"] = "identity",
    layers: int = 1,
) -> nn.Module:
    r"""Add skips around the hidden layers: x + alpha F(x).

    The Jacobian of a block becomes I + alpha F'(x). At alpha = 0 (SkipInit, De & Smith 2020;
    ReZero, Bachlechner et al. 2020, eq. 1) every block is the identity at the start,
    and the first step moves alpha alone; at 1/sqrt(L), for L skips, a branch F that keeps the
    variance lets it grow by (1 + 1/L)^L < e in all. Alpha is learnt either way.

    A skip goes around `layers` layers of an `nn.Sequential` and the activations and normalisations
    behind them; and around single layers, attention, recurrent layers and repeated blocks
    elsewhere, where every path to the loss runs through them. An activation that the forward
    function calls itself stays outside of the skip there. What has a skip already, what changes
    the shape, and the head are left alone.

    Names stay: the Sequential becomes one that adds skips between its children and has
    `alpha_<first child>` beside them; other modules get a forward hook and `skip_alpha`.

    Args:
        model: any module.
        data: a batch, on which the shapes are seen.
        inplace: change the model itself instead of a copy.
        start: "identity" (alpha = 0) or "scaled" (alpha = 1/sqrt(L)).
        layers: layers in a branch within a Sequential; widths in between may differ.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: there is no place for a skip.
        SignalpropError: the model cannot be run on the data, or an option is none.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> data = (torch.randn(16, 8), torch.randint(2, (16,)))
        >>> sorted(residual(net, data).state_dict())
        ['0.bias', '0.weight', '2.bias', '2.weight', 'alpha_0']
    """
    if start not in ("identity", "scaled"):
        raise SignalpropError(f'start has to be "identity" or "scaled", not {start!r}')
    found = _found(model, data, layers)
    value = 0.0 if start == "identity" else len(found) ** -0.5

    def made(place: Place) -> dict[str, Tensor]:
        return {"alpha": torch.tensor(value)}

    return _put(model, found, made, ResidualSequential, ResidualHook, inplace)


@cure("highway", treats=("SP101", "SP106", "SP114"), changes="model with data")
def highway(
    model: nn.Module,
    data: Any,
    *,
    inplace: bool = False,
    bias: float | None = None,
    layers: int = 1,
) -> nn.Module:
    r"""Add gated skips around the hidden layers: T F(x) + (1 - T) x.

    T = sigmoid(W x + b), b negative (Srivastava, Greff & Schmidhuber 2015, eq. 3): the layers carry
    (1 - sigmoid(b))^L of the error signal past all of them. The gate of a convolution is a 1x1
    convolution. W is drawn from N(0, 2 / fan_in) with torch's own random numbers, as in the paper.
    On top come width^2 + width parameters for every skip.

    Places and names as for `residual`; the parameters are `gate_weight_<first child>` and
    `gate_bias_<first child>`, or `skip_gate_weight` and `skip_gate_bias`.

    Args:
        model: any module.
        data: a batch, on which the shapes are seen.
        inplace: change the model itself instead of a copy.
        bias: b at the start; None takes what carries half of the error signal past all skips, and
            at most -1.
        layers: layers in a branch within a Sequential.

    Returns:
        The changed model.

    Raises:
        DoesNotApply: there is no place for a skip.
        SignalpropError: the model cannot be run on the data, or an option is none.
    """
    if bias is not None and not -1e4 < bias < 1e4:
        raise SignalpropError(f"bias has to be a finite number, for example -2.0, not {bias!r}")
    found = _found(model, data, layers)
    value = min(gate_bias_for(len(found)), -1.0) if bias is None else float(bias)

    def made(place: Place) -> dict[str, Tensor]:
        n = place.width
        weight = torch.randn(n, n) * (2.0 / n) ** 0.5
        shaped = weight.reshape(n, n, *[1] * place.dims)
        return {"gate_weight": shaped, "gate_bias": torch.full((n,), value)}

    return _put(model, found, made, HighwaySequential, HighwayHook, inplace)


def _found(model: nn.Module, data: Any, layers: int) -> list[Place]:
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
        raise SignalpropError(f"layers has to be a whole number from 1 up, not {layers!r}")
    found = places(model, data, layers)
    if not found:
        raise DoesNotApply(
            "no hidden layer without a skip hands on the shape that it is given"
            + ("; where widths alternate try layers=2" if layers == 1 else "")
        )
    return found


def _put(
    model: nn.Module,
    found: list[Place],
    made: Made,
    sequential: type[SkipSequential],
    hook: type[Hook],
    inplace: bool,
) -> nn.Module:
    """Add the skips. Classes and parameters of modules change; no module is replaced."""
    root = model if inplace else copied(model)
    modules = dict(root.named_modules())
    for place in found:
        module = modules[place.path]
        inside = [module] if place.first is None else _run(module, place)
        like = next(
            (p for m in inside for p in m.parameters() if p.is_floating_point()),
            next(p for p in root.parameters() if p.is_floating_point()),
        )
        for name, value in made(place).items():
            key = f"skip_{name}" if place.first is None else f"{name}_{place.first}"
            value = value.to(device=like.device, dtype=like.dtype)
            module.register_parameter(key, nn.Parameter(value))
        if place.first is None:
            hook().put(module)
        else:
            assert place.last is not None
            if not isinstance(module, SkipSequential):
                module.__class__ = sequential
                object.__setattr__(module, "skips", {})
            assert isinstance(module, SkipSequential)
            module.skips = {**module.skips, place.last: place.first}
    return root


def _run(module: nn.Module, place: Place) -> list[nn.Module]:
    names = list(module._modules)
    assert place.first is not None
    assert place.last is not None
    inside = names[names.index(place.first) : names.index(place.last) + 1]
    return [c for c in (module._modules[k] for k in inside) if c is not None]
