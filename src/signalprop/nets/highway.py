"""Highway networks: gates that carry a layer's input past the layer.

y = H(x) T(x) + x (1 - T(x)), T(x) = sigmoid(W_T x + b_T): Srivastava, Greff and Schmidhuber,
"Highway Networks", 2015 (arXiv:1505.00387), eq. 2 and 3, the carry gate coupled to the transform
gate, C = 1 - T. The Jacobian is diag(1 - T) + diag(T) J_H + diag(H - x) J_T, so a negative b_T
makes a layer nearly the identity at the start: L layers in a row carry (1 - sigmoid(b_T))^L of the
error signal past all transforms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.nets import _checks

#: phi; a module is copied for every layer, so that layers do not share its parameters
Phi = Callable[[Tensor], Tensor]


def gate_bias_for(depth: int, carry: float = 0.5) -> float:
    """Bias of the transform gates with which `depth` layers carry a given share of the signal.

    b_T = ln(carry^(-1/depth) - 1), the solution of (1 - sigmoid(b_T))^depth = carry. It is exact
    where W_T x = 0. Random gate weights spread the gates about b_T and carry somewhat less, and the
    transforms pass some on top: `HighwayNet` at 100 layers of 50 units and b_T = -4 passes 0.12 to
    0.13 as a whole, where the formula has 0.16.

    Args:
        depth: number of highway layers L in a row.
        carry: share of the error signal that the carry gates alone shall pass, between 0 and 1.

    Returns:
        The bias; -4.97 for 100 layers that pass half, and above -1 for few layers that may pass
        little (the paper tries -1 to -10).

    Raises:
        ValueError: an argument is out of range.
    """
    nats = -math.log(_checks.within("carry", carry, 0.0, 1.0)) / _checks.whole("depth", depth)
    # ln(e^nats - 1), which neither overflows nor cancels
    return nats + math.log(-math.expm1(-nats))


class _Highway(nn.Module):
    """The gated sum, whatever the two affine maps are."""

    transform: nn.Linear | nn.Conv1d | nn.Conv2d
    gate: nn.Linear | nn.Conv1d | nn.Conv2d

    def __init__(self, make: Callable[[], Any], activation: Phi, gate_bias: float) -> None:
        super().__init__()
        if not callable(activation):
            raise ValueError(
                f"activation has to be a function or module of one tensor, not {activation!r}"
            )
        self.gate_bias = _checks.number("gate_bias", gate_bias)
        self.activation = activation
        self.transform, self.gate = make(), make()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights from N(0, 2 / fan_in) (He et al. 2015); gate biases at `gate_bias`."""
        for layer in (self.transform, self.gate):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if self.transform.bias is not None:
            nn.init.zeros_(self.transform.bias)
        if self.gate.bias is not None:
            nn.init.constant_(self.gate.bias, self.gate_bias)

    def forward(self, x: Tensor) -> Tensor:
        """H(x) T(x) + x (1 - T(x)), of the shape of x."""
        t = torch.sigmoid(self.gate(x))
        return self.activation(self.transform(x)) * t + x * (1.0 - t)

    def extra_repr(self) -> str:
        """The gate's bias, and phi where it is not a module."""
        phi = self.activation
        named = (
            "" if isinstance(phi, nn.Module) else f", activation={getattr(phi, '__name__', phi)}"
        )
        return f"gate_bias={self.gate_bias:g}{named}"


class Highway(_Highway):
    """Fully connected highway layer: y = phi(W_H x + b_H) T + x (1 - T), T = sigmoid(W_T x + b_T).

    Source: Srivastava et al. 2015, eq. 3. Initialised as there: all weights after He et al. (2015),
    b_H = 0, b_T negative. Twice the parameters and products of a plain layer of this width.

    Args:
        width: features of x and of y, the last dimension.
        activation: phi; ReLU or tanh in the paper.
        gate_bias: b_T at the start; see `gate_bias_for` for what a depth needs.
        device: as for `torch.nn.Linear`.
        dtype: as for `torch.nn.Linear`.

    Shape:
        (..., width) to (..., width).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        width: int,
        *,
        activation: Phi = F.relu,
        gate_bias: float = -1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _checks.whole("width", width)
        super().__init__(
            lambda: nn.Linear(width, width, device=device, dtype=dtype), activation, gate_bias
        )


class HighwayConv1d(_Highway):
    """Convolutional highway layer on sequences: H and T are convolutions that keep the length.

    Source: Srivastava et al. 2015, the dense maps of eq. 3 replaced by convolutions.

    Args:
        channels: of x and of y.
        kernel_size: taps of both convolutions; odd.
        activation: phi.
        gate_bias: b_T at the start.
        dilation: as for `torch.nn.Conv1d`.
        groups: as for `torch.nn.Conv1d`.
        padding_mode: as for `torch.nn.Conv1d`.
        device: as for `torch.nn.Conv1d`.
        dtype: as for `torch.nn.Conv1d`.

    Shape:
        (batch, channels, length) to the same.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        activation: Phi = F.relu,
        gate_bias: float = -1.0,
        dilation: int = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = _same_size(channels, kernel_size, dilation, groups, padding_mode)
        super().__init__(
            lambda: nn.Conv1d(**options, device=device, dtype=dtype), activation, gate_bias
        )


class HighwayConv2d(_Highway):
    """Convolutional highway layer on images: H and T are convolutions that keep the size.

    Source: Srivastava et al. 2015, the dense maps of eq. 3 replaced by convolutions.

    Args:
        channels: of x and of y.
        kernel_size: taps a side of both convolutions; odd.
        activation: phi.
        gate_bias: b_T at the start.
        dilation: as for `torch.nn.Conv2d`.
        groups: as for `torch.nn.Conv2d`.
        padding_mode: as for `torch.nn.Conv2d`.
        device: as for `torch.nn.Conv2d`.
        dtype: as for `torch.nn.Conv2d`.

    Shape:
        (batch, channels, height, width) to the same.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        activation: Phi = F.relu,
        gate_bias: float = -1.0,
        dilation: int = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = _same_size(channels, kernel_size, dilation, groups, padding_mode)
        super().__init__(
            lambda: nn.Conv2d(**options, device=device, dtype=dtype), activation, gate_bias
        )


class HighwayNet(nn.Module):
    """A plain first layer, `depth` highway layers of equal width and a linear head.

    The network of the paper's depth study (10 to 100 layers of 50 units on MNIST): the
    first layer is plain because it changes the width.

    Args:
        in_features: last dimension of the input.
        width: units of every hidden layer.
        depth: highway layers L.
        out_features: last dimension of the output.
        activation: phi of all hidden layers.
        gate_bias: b_T of all gates at the start; None takes what carries half of the error signal
            past all layers, `gate_bias_for(depth)`, and at most -1.
        device: as for `torch.nn.Linear`.
        dtype: as for `torch.nn.Linear`.

    Shape:
        (..., in_features) to (..., out_features).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        depth: int,
        out_features: int,
        *,
        activation: Phi = F.relu,
        gate_bias: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_features", in_features),
            ("width", width),
            ("out_features", out_features),
        ):
            _checks.whole(name, value)
        _checks.whole("depth", depth)
        bias = min(gate_bias_for(depth), -1.0) if gate_bias is None else gate_bias
        self.first = nn.Linear(in_features, width, device=device, dtype=dtype)
        self.activation = copy.deepcopy(activation)
        self.layers = nn.Sequential(
            *(
                Highway(
                    width,
                    activation=copy.deepcopy(activation),
                    gate_bias=bias,
                    device=device,
                    dtype=dtype,
                )
                for _ in range(depth)
            )
        )
        self.head = nn.Linear(width, out_features, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights from N(0, 2 / fan_in) (He et al. 2015); biases 0 but the gates'."""
        for layer in (self.first, self.head):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        for layer in self.layers:
            assert isinstance(layer, Highway)
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Output of the head."""
        return self.head(self.layers(self.activation(self.first(x))))


def _same_size(
    channels: int, kernel_size: int, dilation: int, groups: int, padding_mode: str
) -> dict[str, Any]:
    """Arguments of a convolution that keeps channels and size."""
    _checks.odd("kernel_size", kernel_size)
    if _checks.whole("channels", channels) % _checks.whole("groups", groups):
        raise ValueError(f"channels ({channels}) has to be divisible by groups ({groups})")
    return {
        "in_channels": channels,
        "out_channels": channels,
        "kernel_size": kernel_size,
        "padding": _checks.whole("dilation", dilation) * (kernel_size // 2),
        "dilation": dilation,
        "groups": groups,
        "padding_mode": padding_mode,
    }
