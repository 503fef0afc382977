"""Cures that scale weights by what a batch shows: to unit variance, or out of saturation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from signalprop.capture import kinds, observe
from signalprop.capture.batch import Batch
from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.followed.following import Layer, arguments, attempted
from signalprop.cures.followed.watching import follow
from signalprop.cures.surgery import copied
from signalprop.cures.weights.gains import activation_of, gain
from signalprop.cures.weights.redraw import eligible
from signalprop.errors import SignalpropError
from signalprop.nets._weights import (
    TRANSPOSED,
    blocks,
    fans,
    named_layers,
    set_weight,
    undone_on_error,
)
from signalprop.nets.lsuv import lsuv_

#: below this share of its largest slope a unit counts as saturated, as in SP111
_FLAT = 0.05
#: entries of a pre-activation that are looked at
_LOOKED_AT = 50_000
_HALVINGS = 60


@cure("lsuv", treats=("SP104", "SP105", "SP113"), changes="model with data")
def lsuv(
    model: nn.Module,
    data: Any,
    *,
    tol: float = 0.1,
    max_iterations: int = 10,
    inplace: bool = False,
) -> nn.Module:
    """Orthonormal weights, each scaled until its layer's output has variance 1 on the batch.

    Mishkin & Matas 2016, algorithm 1: layer-sequential unit variance, in order of execution. Left
    alone are layers as for `he_init`.

    Args:
        model: the network.
        data: a batch, as for `diagnose`; some hundred samples, scaled as in training.
        tol: how near to 1 is near enough.
        max_iterations: of a layer.
        inplace: change the model itself instead of a copy.

    Returns:
        The network with new weights, and biases 0.

    Raises:
        DoesNotApply: it holds no layer that this can change.
        SignalpropError: an output is not finite, or the model cannot be run on the batch.
    """
    observe.check(observe.unwrapped(model))
    root = model if inplace else copied(model)
    inner = observe.unwrapped(root)
    layers, why = eligible(inner, follow(inner, data))
    if not layers:
        raise DoesNotApply(
            next(iter(why.values()), "the model holds no linear or convolution layer")
        )
    others = set(named_layers(inner)) - set(layers)
    args, kwargs = arguments(inner, data)
    try:
        done = lsuv_(inner, kwargs or args, tol=tol, max_iterations=max_iterations, exclude=others)
    except ValueError as error:
        raise SignalpropError(str(error)) from error
    if not done.layers:
        raise DoesNotApply(next(iter(done.skipped.values()), "no layer could be scaled"))
    return root


@cure("smaller-init", treats=("SP111", "SP115"), changes="model with data")
def smaller_init(
    model: nn.Module, data: Any, *, share: float = 0.25, inplace: bool = False
) -> nn.Module:
    """Weights and biases smaller where they saturate what follows, or are beyond the edge of chaos.

    In order of execution, weights and bias of a layer are halved until no more than `share` of the
    values of the bounded activation behind it (sigmoid, tanh, ...) lie where its slope is below 5%
    of its largest. Then, whatever the activation, weights of variance above g^2 / fan_in are scaled
    down to it, g the gain of `weights.gains.gain`. What has been learned is kept as
    directions. A layer that is normalised before its activation is left alone: its scale is not
    seen there.

    Args:
        model: the network.
        data: a batch, as for `diagnose`.
        share: how many values may be saturated, between 0 and 1.
        inplace: change the model itself instead of a copy.

    Returns:
        The network with smaller weights.

    Raises:
        DoesNotApply: nothing is saturated and no weights are too large.
        SignalpropError: `share` is out of range, or the model cannot be run on the batch.
    """
    if not 0 < share < 1:
        raise SignalpropError(f"share is between 0 and 1, not {share!r}")
    observe.check(observe.unwrapped(model))
    root = model if inplace else copied(model)
    inner = observe.unwrapped(root)
    layers, _ = eligible(inner, follow(inner, data))
    layers = {p: la for p, la in layers.items() if la.uses and not la.normalised}
    factors = attempted(inner, data, _Halving(layers, share).run_on(inner))
    factors = {path: factor for path, factor in factors.items() if factor < 1}
    if not factors:
        raise DoesNotApply(
            "no activation is saturated, and no weights are beyond the edge of chaos"
        )
    refused = ""
    with undone_on_error(inner), torch.no_grad():
        done = 0
        for path, factor in factors.items():
            layer = layers[path].module
            try:
                set_weight(layer, path, _weight(layer) * factor)
            except ValueError as error:
                refused = str(error)
                continue
            bias = layer._parameters.get("bias")
            if bias is not None and bias.requires_grad:
                bias.mul_(factor)
            done += 1
    if not done:
        raise DoesNotApply(refused)
    return root


class _Halving:
    """Finds, in one pass, by what each layer's weights have to be multiplied.

    A layer is linear, so its output is scaled instead, and what comes behind sees that.
    """

    def __init__(self, layers: dict[str, Layer], share: float) -> None:
        self.layers, self.share = layers, share
        self.factors: dict[str, float] = {}

    def run_on(self, model: nn.Module) -> Any:
        def run(batch: Batch) -> dict[str, float]:
            self.factors = {}
            handles = []
            try:
                for path, layer in self.layers.items():
                    handles.append(layer.module.register_forward_hook(self.hook(path)))
                with torch.no_grad():
                    model(*batch.args, **batch.kwargs)
            finally:
                for handle in handles:
                    handle.remove()
            return self.factors

        return run

    def hook(self, path: str) -> Any:
        def scale(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if path not in self.factors:
                self.factors[path] = self.factor(self.layers[path], output)
            return output * self.factors[path]

        return scale

    def factor(self, layer: Layer, output: Tensor) -> float:
        use, factor = layer.uses[0], 1.0
        try:
            phi, aim = activation_of(use), gain(use)
        except SignalpropError:
            return 1.0
        if use.op in kinds.SATURATING:
            values = output.detach().flatten()
            values = values[:: max(1, len(values) // _LOOKED_AT)].double().cpu().numpy()
            steepest = float(abs(phi.slope(_GRID)).max())
            for _ in range(_HALVINGS):
                if (abs(phi.slope(values * factor)) < _FLAT * steepest).mean() <= self.share:
                    break
                factor /= 2
        return min(factor, aim / max(_gain_now(layer.module), 1e-30))


_GRID = torch.linspace(-4, 4, 801, dtype=torch.float64).numpy()


def _weight(layer: nn.Module) -> Tensor:
    return getattr(layer, "weight").detach()  # noqa: B009 - a property where it is parametrised


def _gain_now(layer: nn.Module) -> float:
    """sqrt(fan_in E[W^2])."""
    weight = _weight(layer)
    strides = math.prod(layer.stride) if isinstance(layer, TRANSPOSED) else 1
    size = tuple(next(blocks(layer, weight)).shape)
    return math.sqrt(fans(size, strides)[0] * float(weight.double().square().mean()))
