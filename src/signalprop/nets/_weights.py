"""Linear and convolution layers of a model, and how their weights are read and set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from signalprop.nets._seeded import buffers_kept

#: (shape (out, in, ...) of one group, fan_in, fan_out, like) -> values
Fill = Callable[[tuple[int, ...], float, float, Tensor], Tensor]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
#: how far, relatively, a parametrised weight may be from what it was set to
_CLOSE = 1e-3


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear and convolution layers by path, a shared one once; "" is the module itself."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}


def weight_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """What the weight of a layer is made of: itself, or the originals of its parametrisation."""
    if parametrize.is_parametrized(layer, "weight"):
        return list(layer.get_submodule("parametrizations.weight").parameters(recurse=False))
    weight = layer._parameters.get("weight")
    return [] if weight is None else [weight]


def check_weight(layer: nn.Module, name: str) -> None:
    """See that the weight of a layer can be set.

    Args:
        layer: the layer.
        name: its path, for the message.

    Raises:
        ValueError: it has no shape yet, is complex, or is computed by an old-style hook.
    """
    parameters = weight_parameters(layer)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise ValueError(f"layer {name!r} has no shape yet; send a batch through the model first")
    if not parameters:
        raise ValueError(
            f"the weight of layer {name!r} is computed by a hook (as the old weight_norm and "
            "spectral_norm do); use torch.nn.utils.parametrizations, or initialise before"
        )
    if not all(p.is_floating_point() for p in parameters):
        raise ValueError(f"the weight of layer {name!r} is {parameters[0].dtype}, not real")


def set_weight(layer: nn.Module, name: str, value: Tensor) -> None:
    """Give a layer a weight, through its parametrisation where it has one.

    Args:
        layer: the layer.
        name: its path, for the message.
        value: the weight.

    Raises:
        ValueError: the parametrisation cannot take on this weight; the layer is as it was then.
    """
    with torch.no_grad():
        if not parametrize.is_parametrized(layer, "weight"):
            weight_parameters(layer)[0].copy_(value)
            return
        with undone_on_error(layer):
            why = ""
            try:
                layer.weight = value.clone()
            except (NotImplementedError, RuntimeError, ValueError) as error:
                why = f" ({str(error).splitlines()[0]})"
            with buffers_kept(layer):
                now = getattr(layer, "weight").detach()  # noqa: B009 - a property to torch only
            if why or not torch.allclose(now, value, rtol=_CLOSE, atol=_CLOSE * _rms(value)):
                kinds = ", ".join(
                    type(m).__name__
                    for m in layer.get_submodule("parametrizations.weight").children()
                )
                raise ValueError(
                    f"the parametrisation ({kinds}) of layer {name!r} cannot take on this weight"
                    f"{why}; initialise before parametrising"
                )


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


@contextmanager
def undone_on_error(module: nn.Module) -> Iterator[None]:
    """Parameters and buffers of a module are as they were, if something raises."""
    kept = [(p, p.detach().clone()) for p in (*module.parameters(), *module.buffers())]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
        raise


def blocks(layer: nn.Module, weight: Tensor) -> Iterator[Tensor]:
    """Views (out, in, ...) of a layer's weight, one for each group."""
    for part in weight.chunk(getattr(layer, "groups", 1)):
        yield part.transpose(0, 1) if isinstance(layer, TRANSPOSED) else part


def filled(layer: nn.Module, name: str, fill: Fill) -> Tensor:
    """New values for a layer's weight.

    Args:
        layer: the layer.
        name: its path, for the message.
        fill: values for one group.

    Returns:
        The values, in the shape of the weight.

    Raises:
        ValueError: the shape does not fit.
    """
    with buffers_kept(layer), torch.no_grad():
        values = torch.empty_like(getattr(layer, "weight"))  # noqa: B009
    strides = math.prod(layer.stride) if isinstance(layer, TRANSPOSED) else 1
    for block in blocks(layer, values):
        size = tuple(block.shape)
        try:
            block.copy_(fill(size, *fans(size, strides), values))
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}" if name else str(error)) from None
    return values


def zero_bias_(layer: nn.Module) -> None:
    """Set the bias of a layer to 0, where it has one that is trained."""
    bias = layer._parameters.get("bias")
    if bias is not None and bias.requires_grad:
        with torch.no_grad():
            bias.zero_()


def fans(size: tuple[int, ...], strides: int) -> tuple[float, float]:
    """Inputs of an output, and outputs of an input; `strides` of a transposed convolution."""
    field = math.prod(size[2:])
    return size[1] * field / strides, float(size[0] * field)


def orthonormal(rows: int, columns: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniformly random, with orthonormal columns, or rows where there are fewer of them."""
    device = like.device if generator is None else generator.device
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    tall, thin = max(rows, columns), min(rows, columns)
    Q, R = torch.linalg.qr(torch.randn(tall, thin, generator=generator, device=device, dtype=dtype))
    Q = Q * torch.where(R.diagonal() < 0, -1.0, 1.0)  # else not uniform (Mezzadri 2007)
    return (Q if rows >= columns else Q.T).to(device=like.device, dtype=like.dtype)
