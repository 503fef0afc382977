"""Starts for plain and gated recurrent layers of torch, in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from signalprop.nets import _checks
from signalprop.nets._weights import orthonormal

M = TypeVar("M", bound=nn.Module)
Layer = nn.RNNBase | nn.RNNCellBase


def identity_rnn_(
    module: M,
    scale: float = 1.0,
    input_std: float | None = 0.001,
    *,
    generator: torch.Generator | None = None,
) -> M:
    r"""W_hh = scale 1, biases 0 and W_ih ~ N(0, input_std^2) for ReLU layers: the IRNN.

    Le, Jaitly & Hinton 2015, "A simple way to initialize recurrent networks of rectified linear
    units" (arXiv:1504.00941), with scale 1 and 0.001; a scale below 1 forgets, as they want it for
    tasks without long lags. A state that is not negative stays as it is while no input comes, and
    so does the error signal: dh_t/dh_{t-1} = scale diag(h_t > 0). Over T steps that is scale^T.

    Args:
        module: `nn.RNN` or `nn.RNNCell` with `nonlinearity="relu"`, or a module that has some; its
            other layers are left alone.
        scale: of the identity.
        input_std: standard deviation of the input weights of all layers; None leaves them.
        generator: where random numbers come from; torch's global generator without one.

    Returns:
        The module.

    Raises:
        ValueError: there is no such layer, or an argument is out of range; nothing is changed then.
    """
    _checks.number("scale", scale)
    if input_std is not None and _checks.number("input_std", input_std) < 0:
        raise ValueError(f"input_std has to be at least 0, not {input_std!r}")
    layers = [m for m in _layers(module, (nn.RNN, nn.RNNCell)) if m.nonlinearity == "relu"]
    if not layers:
        raise ValueError("there is no nn.RNN or nn.RNNCell with nonlinearity='relu' to initialise")
    with torch.no_grad():
        for name, p, _ in _parameters(layers):
            if name.startswith("bias"):
                p.zero_()
            elif name.startswith("weight_hh"):
                nn.init.eye_(p).mul_(scale)
            elif input_std is not None:
                p.normal_(0.0, input_std, generator=generator)
    return module


def orthogonal_recurrent_(
    module: M,
    gain: float = 1.0,
    *,
    zero_bias: bool = False,
    generator: torch.Generator | None = None,
) -> M:
    r"""W_hh of every gate a random orthogonal matrix times `gain`; input weights stay.

    Saxe, McClelland & Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks"; for recurrent nets Henaff, Szlam & LeCun 2016, "Recurrent orthogonal
    networks and long-memory tasks". All singular values of W_hh are `gain`, so a plain net without
    a nonlinearity multiplies the norm of the error signal by exactly gain a step, and tanh can only
    take from that. With a projection (out, in) = (H, projection) its columns are orthonormal.

    Args:
        module: `nn.RNN`, `nn.GRU`, `nn.LSTM`, the `LSTM` of this package, one of torch's cells, or
            a module that has some; its other layers are left alone.
        gain: g, all singular values.
        zero_bias: whether the biases of these layers are set to 0, those of their gates too.
        generator: where random numbers come from; torch's global generator without one.

    Returns:
        The module.

    Raises:
        ValueError: there is no such layer, or an argument is out of range; nothing is changed then.
    """
    _checks.number("gain", gain)
    layers = list(_layers(module, (nn.RNNBase, nn.RNNCellBase)))
    if not layers:
        raise ValueError("there is no nn.RNN, nn.GRU, nn.LSTM or cell of one to initialise")
    with torch.no_grad():
        for name, p, size in _parameters(layers):
            if name.startswith("bias") and zero_bias:
                p.zero_()
            elif name.startswith("weight_hh"):
                for block in p.split(size):
                    rows, columns = block.shape
                    block.copy_(gain * orthonormal(rows, columns, block, generator))
    return module


def _layers(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[Layer]:
    for m in module.modules():
        if isinstance(m, kinds):
            assert isinstance(m, Layer)
            yield m


def _parameters(layers: list[Layer]) -> Iterator[tuple[str, Tensor, int]]:
    """(name, parameter, units) of the layers, of each parameter once, in the modules' order."""
    done: set[int] = set()
    for layer in layers:
        size = layer.hidden_size
        assert isinstance(size, int)
        for name, p in layer.named_parameters(recurse=False):
            if id(p) not in done:
                done.add(id(p))
                yield name, p, size
