"""Self-normalizing networks: SELU, LeCun's weights, alpha dropout.

Klambauer, Unterthiner, Mayr and Hochreiter, "Self-Normalizing Neural Networks", 2017. With
selu(x) = lambda x for x > 0 and lambda alpha (e^x - 1) else (eq. 2), lambda = 1.0507 and alpha =
1.6733, and weights of mean 0 and variance 1 / fan_in, the map from a layer's mean and variance to
the next one's has the attracting fixed point (0, 1). So activations keep mean 0 and variance 1
through any depth without normalisation layers, if the input has them: **standardise the input**.
The error signal is nearly kept: its norm grows by sqrt(1.0716) = 1.0352 a layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from signalprop.nets import _checks
from signalprop.nets.initialise import lecun_

#: what stands around an image, as for `torch.nn.Conv2d`
Padding = Literal["replicate", "circular", "reflect", "zeros"]
T = TypeVar("T", bound=Tensor | nn.Module)


class SelfNormalizing(nn.Module):
    """Fully connected self-normalizing network: linear, SELU, alpha dropout per width; linear head.

    Source: Klambauer et al. 2017. Initialised as there: W ~ N(0, 1 / fan_in), b = 0. The input is
    expected to be standardised, mean 0 and variance 1 per feature.

    Args:
        in_features: last dimension of the input.
        widths: units of each hidden layer, from the input up.
        out_features: last dimension of the output.
        dropout: rate of the alpha dropout behind every hidden layer; the paper uses 0, 0.05 or 0.1.
            Ordinary dropout would move mean and variance away from the fixed point.
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
        widths: Sequence[int],
        out_features: int,
        *,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        before = _checks.whole("in_features", in_features)
        _checks.whole("out_features", out_features)
        self.dropout = _checks.rate("dropout", dropout)
        hidden: list[nn.Module] = []
        for width in _each("widths", widths):
            layer = nn.Linear(before, width, device=device, dtype=dtype)
            hidden.append(_layer(layer, self.dropout))
            before = width
        self.hidden = nn.Sequential(*hidden)
        self.head = nn.Linear(before, out_features, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights from N(0, 1 / fan_in); biases 0."""
        lecun_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Output of the head."""
        return self.head(self.hidden(x))


class SelfNormalizingConv2d(nn.Module):
    """Convolutional self-normalizing network, the mean over the image, and a linear head.

    Source: Klambauer et al. 2017, with convolutions. Per entry of
    `channels`: convolution, SELU, alpha dropout. Initialised as `SelfNormalizing`; the images are
    expected to be standardised per channel. Zeros around an image would take variance away at its
    border in every layer, so its outermost pixels are repeated instead. There is no pooling between
    layers, which would not keep the variance: use `stride`.

    Args:
        in_channels: of the images.
        channels: of each convolution, from the input up.
        out_features: last dimension of the output.
        kernel_size: taps a side; odd.
        stride: of every convolution, or one number for each.
        dropout: rate of the alpha dropout behind every convolution.
        padding_mode: "replicate", "circular", "reflect" or "zeros", as for `torch.nn.Conv2d`. On
            CUDA the backward passes of "replicate" and "reflect" are not deterministic.
        device: as for `torch.nn.Conv2d`.
        dtype: as for `torch.nn.Conv2d`.

    Shape:
        (batch, in_channels, height, width) to (batch, out_features).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        out_features: int,
        *,
        kernel_size: int = 3,
        stride: int | Sequence[int] = 1,
        dropout: float = 0.0,
        padding_mode: Padding = "replicate",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        before = _checks.whole("in_channels", in_channels)
        _checks.whole("out_features", out_features)
        _checks.odd("kernel_size", kernel_size)
        self.dropout = _checks.rate("dropout", dropout)
        each = _each("channels", channels)
        steps = [stride] * len(each) if isinstance(stride, int) else _each("stride", stride)
        if len(steps) != len(each):
            raise ValueError(f"stride has {len(steps)} entries, channels has {len(each)}")
        hidden: list[nn.Module] = []
        for count, step in zip(each, steps, strict=True):
            layer = nn.Conv2d(
                before,
                count,
                kernel_size,
                stride=_checks.whole("stride", step),
                padding=kernel_size // 2,
                padding_mode=padding_mode,
                device=device,
                dtype=dtype,
            )
            hidden.append(_layer(layer, self.dropout))
            before = count
        self.hidden = nn.Sequential(*hidden)
        self.head = nn.Linear(before, out_features, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights from N(0, 1 / fan_in); biases 0."""
        lecun_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Output of the head."""
        return self.head(self.hidden(x).mean((-2, -1)))


def _layer(weight: nn.Module, dropout: float) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](weight=weight, selu=nn.SELU())
    if dropout > 0:
        layers["dropout"] = nn.AlphaDropout(dropout)
    return nn.Sequential(layers)


def _each(name: str, values: Sequence[int]) -> list[int]:
    """At least one whole number above zero."""
    if isinstance(values, int) or not values:
        raise ValueError(
            f"{name} has to be a sequence of at least one whole number, not {values!r}"
        )
    return [_checks.whole(f"every entry of {name}", value) for value in values]
