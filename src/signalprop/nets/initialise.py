"""Initial weights that let the signal through, for tensors and for whole modules, in place.

With W of shape (out, in), entries of mean 0 and biases 0, a layer y = W x multiplies the mean
square of its input by fan_in Var(W), and that of the error signal by fan_out Var(W):

| function            | rule                                              | source                 |
|---------------------|---------------------------------------------------|------------------------|
| `lecun_`            | Var(W) = g^2 / fan_in                             | LeCun 1998, eq. 16     |
| `glorot_`           | Var(W) = 2 g^2 / (fan_in + fan_out)               | Glorot 2010, eq. 12    |
| `he_`               | Var(W) = 2 g^2 / ((1 + a^2) fan_in)               | He 2015, eq. 10 and 15 |
| `orthogonal_`       | W^T W = g^2 1 or W W^T = g^2 1                    | Saxe 2014              |
| `delta_orthogonal_` | orthogonal at the kernel's centre, zero elsewhere | Xiao 2018, algorithm 1 |
| `lsuv_`             | orthonormal, then scaled until Var(y) = 1 on data | Mishkin 2016, alg. 1   |

LeCun, Bottou, Orr & Müller 1998, "Efficient BackProp"; Glorot & Bengio 2010, "Understanding the
difficulty of training deep feedforward neural networks"; He, Zhang, Ren & Sun 2015, "Delving deep
into rectifiers"; Saxe, McClelland & Ganguli 2014, "Exact solutions to the nonlinear dynamics of
learning in deep linear neural networks"; Xiao, Bahri, Sohl-Dickstein, Schoenholz & Pennington 2018,
"Dynamical isometry and a mean field theory of CNNs"; Mishkin & Matas 2016, "All you need is a good
init".

A module given instead of a tensor stands for every linear and convolution layer in it.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from signalprop.nets._weights import (
    CONVOLUTIONS,
    LAYERS,
    TRANSPOSED,
    Fill,
    check_weight,
    fans,
    filled,
    named_layers,
    orthonormal,
    set_weight,
    undone_on_error,
    weight_parameters,
    zero_bias_,
)
from signalprop.nets.lsuv import LayerVariance, UnitVariance, lsuv_

__all__ = [
    "LayerVariance",
    "UnitVariance",
    "delta_orthogonal_",
    "glorot_",
    "he_",
    "lecun_",
    "lsuv_",
    "orthogonal_",
]

Target = TypeVar("Target", bound=Tensor | nn.Module)
Shape = Literal["normal", "uniform"]


def lecun_(
    target: Target,
    *,
    gain: float = 1.0,
    shape: Shape = "normal",
    zero_bias: bool = True,
    generator: torch.Generator | None = None,
) -> Target:
    """Variance g^2 / fan_in, which conserves variance through linear units, tanh near 0 and SELU.

    fan_in is the number of inputs that one output has: of a convolution in x kernel / groups, of a
    transposed convolution, that divided by its stride.

    Args:
        target: a weight of shape (out, in, ...), or a module, all of whose linear and
            convolution layers are initialised; a weight shared by several is drawn once, and
            layers whose weight has `requires_grad=False` are left alone.
        gain: g, what the weights are multiplied with.
        shape: normal, or uniform with the same variance.
        zero_bias: of a module, whether biases are set to 0.
        generator: where random numbers come from; torch's global generator without one.

    Returns:
        The target.

    Raises:
        TypeError: the target is neither a floating tensor nor a module.
        ValueError: no layer to initialise, all of them frozen, a shape that does not fit, or a
            parametrised layer whose weight cannot be set; nothing is changed then.
    """

    def fill(size: tuple[int, ...], fan_in: float, fan_out: float, like: Tensor) -> Tensor:
        return _drawn(size, gain / math.sqrt(fan_in), shape, like, generator)

    return _initialise(target, fill, LAYERS, gain, zero_bias=zero_bias)


def glorot_(
    target: Target,
    *,
    gain: float = 1.0,
    shape: Shape = "normal",
    zero_bias: bool = True,
    generator: torch.Generator | None = None,
) -> Target:
    """Variance 2 g^2 / (fan_in + fan_out), between what forward and backward passes want.

    fan_out is out x kernel / groups. With `shape="uniform"` this is the "normalized
    initialization" of the paper, U(-s, s) with s = sqrt(6 / (fan_in + fan_out)).

    Args:
        target: a weight or a module, as in `lecun_`.
        gain: g, what the weights are multiplied with.
        shape: normal, or uniform with the same variance.
        zero_bias: of a module, whether biases are set to 0.
        generator: where random numbers come from; torch's global generator without one.

    Returns:
        The target.

    Raises:
        TypeError: the target is neither a floating tensor nor a module.
        ValueError: as in `lecun_`.
    """

    def fill(size: tuple[int, ...], fan_in: float, fan_out: float, like: Tensor) -> Tensor:
        return _drawn(size, gain * math.sqrt(2 / (fan_in + fan_out)), shape, like, generator)

    return _initialise(target, fill, LAYERS, gain, zero_bias=zero_bias)


def he_(
    target: Target,
    *,
    slope: float = 0.0,
    gain: float = 1.0,
    shape: Shape = "normal",
    zero_bias: bool = True,
    generator: torch.Generator | None = None,
) -> Target:
    """Variance 2 g^2 / ((1 + a^2) fan_in), which conserves the mean square through rectifiers.

    Args:
        target: a weight or a module, as in `lecun_`.
        slope: a, the rectifier's slope on the negative side; 0 is ReLU.
        gain: g, what the weights are multiplied with.
        shape: normal, or uniform with the same variance.
        zero_bias: of a module, whether biases are set to 0.
        generator: where random numbers come from; torch's global generator without one.

    Returns:
        The target.

    Raises:
        TypeError: the target is neither a floating tensor nor a module.
        ValueError: as in `lecun_`.
    """
    scale = gain * math.sqrt(2 / (1 + slope**2))

    def fill(size: tuple[int, ...], fan_in: float, fan_out: float, like: Tensor) -> Tensor:
        return _drawn(size, scale / math.sqrt(fan_in), shape, like, generator)

    return _initialise(target, fill, LAYERS, gain, zero_bias=zero_bias)


def orthogonal_(
    target: Target,
    *,
    gain: float = 1.0,
    zero_bias: bool = True,
    generator: torch.Generator | None = None,
) -> Target:
    """A uniformly random matrix of orthonormal columns (or rows, where there are fewer), times g.

    A deep linear network of such layers has all singular values g^depth. Of a convolution it is
    the kernel as a matrix (out, in x kernel), of every group by itself, that is orthogonal, which
    is not the whole map; for that see `delta_orthogonal_`.

    Args:
        target: a weight or a module, as in `lecun_`.
        gain: g, all singular values.
        zero_bias: of a module, whether biases are set to 0.
        generator: where random numbers come from; torch's global generator without one.

    Returns:
        The target.

    Raises:
        TypeError: the target is neither a floating tensor nor a module.
        ValueError: as in `lecun_`.
    """

    def fill(size: tuple[int, ...], fan_in: float, fan_out: float, like: Tensor) -> Tensor:
        return gain * orthonormal(size[0], math.prod(size[1:]), like, generator).reshape(size)

    return _initialise(target, fill, LAYERS, gain, zero_bias=zero_bias)


def delta_orthogonal_(
    target: Target,
    *,
    gain: float = 1.0,
    zero_bias: bool = True,
    generator: torch.Generator | None = None,
) -> Target:
    """A convolution that turns the channels at every position by itself: |W * x| = g |x|.

    The kernel is zero but for its centre, which holds a matrix (out, in) of orthonormal columns,
    so all singular values of the convolution (stride 1, padded to keep the size) are g. With it
    and a critical g, Xiao et al. trained plain tanh networks of 10,000 layers. A kernel of even
    size has its centre at size // 2.

    Args:
        target: a kernel of shape (out, in, ...) in 1 to 3 dimensions, or a module, all of
            whose convolutions are initialised (of groups, each by itself); linear layers are left
            alone.
        gain: g, all singular values.
        zero_bias: of a module, whether biases are set to 0.
        generator: where random numbers come from; torch's global generator without one.

    Returns:
        The target.

    Raises:
        TypeError: the target is neither a floating tensor nor a module.
        ValueError: fewer outputs than inputs (no isometry is possible), not a kernel, or as in
            `lecun_`.
    """

    def fill(size: tuple[int, ...], fan_in: float, fan_out: float, like: Tensor) -> Tensor:
        if not 3 <= len(size) <= 5:
            raise ValueError(
                f"delta-orthogonal needs a kernel (out, in, ...) of 1 to 3 dimensions, got "
                f"{size}; use orthogonal_ for matrices"
            )
        if size[0] < size[1]:
            raise ValueError(
                f"delta-orthogonal needs at least as many outputs as inputs, got {size[1]} inputs "
                f"and {size[0]} outputs; widen the layer, or use orthogonal_"
            )
        values = torch.zeros(size, dtype=like.dtype, device=like.device)
        centre = (slice(None), slice(None), *(k // 2 for k in size[2:]))
        values[centre] = gain * orthonormal(size[0], size[1], like, generator)
        return values

    return _initialise(target, fill, (*CONVOLUTIONS, *TRANSPOSED), gain, zero_bias=zero_bias)


# ---- how all of them do it ---------------------------------------------------------------------


def _initialise(
    target: Target, fill: Fill, kinds: tuple[type[nn.Module], ...], gain: float, *, zero_bias: bool
) -> Target:
    if not math.isfinite(gain):
        raise ValueError(f"the gain has to be finite, got {gain}")
    if isinstance(target, Tensor):
        if not target.is_floating_point():
            raise TypeError(f"expected a floating tensor, got {target.dtype}")
        if isinstance(target, nn.parameter.UninitializedParameter) or target.dim() < 2:
            raise ValueError("expected a weight of shape (out, in, ...), at least 2 dimensions")
        if target.numel() and not target.is_meta:
            size = tuple(target.shape)
            with torch.no_grad():
                target.copy_(fill(size, *fans(size, 1), target))
        return target
    if not isinstance(target, nn.Module):
        raise TypeError(f"expected a tensor or a module, got {type(target).__name__}")
    layers = {n: m for n, m in named_layers(target).items() if isinstance(m, kinds)}
    if not layers:
        raise ValueError("the module holds no layer that this initialises; give it the weight")
    for name, layer in layers.items():
        check_weight(layer, name)
    layers = {n: m for n, m in layers.items() if weight_parameters(m)[0].requires_grad}
    if not layers:
        raise ValueError(
            "every layer of the module is frozen (requires_grad=False); unfreeze it, or give the "
            "weight itself"
        )
    with undone_on_error(target):
        drawn: set[int] = set()
        for name, layer in layers.items():
            weight = weight_parameters(layer)[0]
            if id(weight) not in drawn and weight.numel() and not weight.is_meta:
                set_weight(layer, name, filled(layer, name, fill))
            drawn.add(id(weight))
            if zero_bias:
                zero_bias_(layer)
    return target


def _drawn(
    size: tuple[int, ...], std: float, shape: Shape, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    device = like.device if generator is None else generator.device
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if shape == "normal":
        values = torch.randn(size, generator=generator, device=device, dtype=dtype) * std
    elif shape == "uniform":
        unit = torch.rand(size, generator=generator, device=device, dtype=dtype)
        values = (2 * unit - 1) * (math.sqrt(3) * std)
    else:
        raise ValueError(f'shape is "normal" or "uniform", got {shape!r}')
    return values.to(device=like.device, dtype=like.dtype)
