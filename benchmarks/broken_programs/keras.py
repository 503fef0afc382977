"""Keras layers as an `nn.Sequential`, with Keras's defaults: what a port by hand would be.

Traps of Keras 1 and 2 that are reproduced: kernels start glorot_uniform and biases at zero;
`uniform` is U(-0.05, 0.05) and `normal` N(0, 0.05); the named `*_normal` initialisers are cut at
two standard deviations; images are flattened with the channels last; BatchNormalization has
momentum 0.99 (torch counts it the other way round) and epsilon 1e-3; Dense acts on the last
dimension.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: scale, which fan, distribution
SCALED = {
    "glorot": (1.0, "average"),
    "he": (2.0, "in"),
    "lecun": (1.0, "in"),
}
#: standard deviation of a standard normal cut at two
CUT = 0.87962566103423978


class Exponential(nn.Module):
    """Keras's `exponential`: exp(x), without a bound."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x)


class HardSigmoid(nn.Module):
    """Keras 2's `hard_sigmoid`: 0.2 x + 0.5 between 0 and 1; torch's has slope 1/6."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)


class ChannelsLastFlatten(nn.Module):
    """Flattens (n, channels, height, width) in Keras's order: height, width, channels."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.permute(0, 2, 3, 1)
        return x.flatten(1)


ACTIVATIONS: dict[str, Any] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "hard_sigmoid": HardSigmoid,
    "exponential": Exponential,
    "softmax": lambda: nn.Softmax(dim=-1),
}


def build(layers: Sequence[Mapping[str, Any]], shape: Sequence[int]) -> nn.Sequential:
    """A model from Keras's list of layers; torch's global generator draws the weights.

    Args:
        layers: `type` and arguments of each, as in Keras.
        shape: of one sample, channels first for images.

    Returns:
        The model; its modules are named as Keras names layers: `dense_1`, `relu_1`.

    Raises:
        ValueError: a layer, an activation or an initialiser is not known.
    """
    stack = _Stack(tuple(shape))
    for layer in layers:
        stack.add(layer)
    return nn.Sequential(stack.modules)


class _Stack:
    """Grows a model and keeps the shape of one sample."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.names: Counter[str] = Counter()

    def add(self, layer: Mapping[str, Any]) -> None:
        kind = layer["type"]
        add = getattr(self, f"_{kind.lower()}", None)
        if add is None:
            raise ValueError(f"there is no layer {kind}")
        add(layer)
        if kind != "Activation" and "activation" in layer:
            self._activation(layer)

    def _put(self, name: str, module: nn.Module) -> None:
        self.names[name] += 1
        self.modules[f"{name}_{self.names[name]}"] = module

    def _activation(self, layer: Mapping[str, Any]) -> None:
        name = layer["activation"]
        if name == "linear":
            return
        if name not in ACTIVATIONS:
            raise ValueError(f"there is no activation {name}")
        self._put(name, ACTIVATIONS[name]())

    def _dense(self, layer: Mapping[str, Any]) -> None:
        module = nn.Linear(self.shape[-1], layer["units"])
        _initialise(module, layer)
        self._put("dense", module)
        self.shape = (*self.shape[:-1], layer["units"])

    def _conv2d(self, layer: Mapping[str, Any]) -> None:
        if len(self.shape) != 3:
            raise ValueError(f"Conv2D needs images, not samples of shape {self.shape}")
        padding = layer.get("padding", "valid")
        module = nn.Conv2d(
            self.shape[0],
            layer["filters"],
            tuple(layer["kernel_size"]),
            stride=tuple(layer.get("strides", (1, 1))),
            padding=padding,
        )
        _initialise(module, layer)
        self._put("conv2d", module)
        self._measure(module)

    def _maxpooling2d(self, layer: Mapping[str, Any]) -> None:
        if layer.get("padding", "valid") != "valid":
            raise ValueError("MaxPooling2D with padding is not needed by any case")
        size = tuple(layer["pool_size"])
        module = nn.MaxPool2d(size, stride=tuple(layer.get("strides", size)))
        self._put("max_pooling2d", module)
        self._measure(module)

    def _flatten(self, layer: Mapping[str, Any]) -> None:
        self._put("flatten", ChannelsLastFlatten())
        self.shape = (math.prod(self.shape),)

    def _dropout(self, layer: Mapping[str, Any]) -> None:
        self._put("dropout", nn.Dropout(layer["rate"]))

    def _batchnormalization(self, layer: Mapping[str, Any]) -> None:
        norm = nn.BatchNorm2d if len(self.shape) == 3 else nn.BatchNorm1d
        momentum = 1 - layer.get("momentum", 0.99)
        module = norm(self.shape[0], eps=layer.get("epsilon", 1e-3), momentum=momentum)
        self._put("batch_normalization", module)

    def _measure(self, module: nn.Module) -> None:
        with torch.no_grad():
            self.shape = tuple(module(torch.zeros(1, *self.shape)).shape[1:])
        if min(self.shape) == 0:
            raise ValueError("the images are too small for so many layers")


# ---- initial values --------------------------------------------------------------------------


def _initialise(module: nn.Linear | nn.Conv2d, layer: Mapping[str, Any]) -> None:
    with torch.no_grad():
        fill(module.weight, layer.get("kernel_initializer", "glorot_uniform"))
        assert module.bias is not None
        fill(module.bias, layer.get("bias_initializer", "zeros"))


def fill(weight: Tensor, name: str) -> None:
    """Fill a kernel or a bias as Keras's initialiser of that name does.

    Args:
        weight: kernel, (out, in, ...), or bias, (n,); changed in place.
        name: e.g. `he_uniform`, `normal`, `normal(std=1)`, `RandomUniform`, `Ones`.

    Raises:
        ValueError: there is no such initialiser.
    """
    plain = name.lower()
    if plain in ("zeros", "ones"):
        weight.fill_(plain == "ones")
    elif plain in ("uniform", "randomuniform"):
        weight.uniform_(-0.05, 0.05)
    elif plain in ("normal", "randomnormal"):
        weight.normal_(0, 0.05)
    elif plain.startswith("normal(std="):
        weight.normal_(0, float(plain[len("normal(std=") : -1]))
    elif plain == "truncatednormal":
        nn.init.trunc_normal_(weight, 0, 0.05, -0.1, 0.1)
    elif plain == "orthogonal":
        nn.init.orthogonal_(weight)
    elif (rule := plain.partition("_"))[0] in SCALED and rule[2] in ("uniform", "normal"):
        _scaled(weight, *SCALED[rule[0]], rule[2])
    else:
        raise ValueError(f"there is no initialiser {name}")


def _scaled(weight: Tensor, scale: float, mode: str, shape: str) -> None:
    fan_in, fan_out = fans(weight)
    variance = scale / (fan_in if mode == "in" else (fan_in + fan_out) / 2)
    if shape == "uniform":
        bound = math.sqrt(3 * variance)
        weight.uniform_(-bound, bound)
    else:
        std = math.sqrt(variance) / CUT
        nn.init.trunc_normal_(weight, 0, std, -2 * std, 2 * std)


def fans(weight: Tensor) -> tuple[float, float]:
    """Fan in and fan out as Keras counts them; a bias of n counts the square root of n twice."""
    if weight.ndim == 1:
        return math.sqrt(len(weight)), math.sqrt(len(weight))
    field = math.prod(weight.shape[2:])
    return weight.shape[1] * field, weight.shape[0] * field
