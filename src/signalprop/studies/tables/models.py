"""The six networks that are compared, all with the same width and number of hidden layers.

| name              | layers                                             | weights drawn after |
|-------------------|----------------------------------------------------|---------------------|
| SELU              | linear, SELU, alpha dropout                        | LeCun               |
| ReLU, He          | linear, ReLU, dropout                              | He                  |
| ReLU + BatchNorm  | linear, BatchNorm, ReLU, dropout                   | He                  |
| ReLU + LayerNorm  | linear, LayerNorm, ReLU, dropout                   | He                  |
| highway           | one plain layer, highway layers, dropout           | He, gates shut      |
| residual          | one plain layer, blocks B of two layers, dropout   | He                  |

A gate is a weight matrix of its own, so a highway network has nearly twice the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from signalprop.nets import HighwayNet, ResidualNet, SelfNormalizing

SELU = "SELU"


def plain(n: int, width: int, depth: int, out: int, rate: float, norm: str = "") -> nn.Sequential:
    """ReLU layers with He's weights; `norm` is `batch`, `layer` or nothing."""
    norms: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    layers: list[nn.Module] = []
    for i in range(depth):
        linear = nn.Linear(width if i else n, width)
        layers += [linear, *([norms[norm](width)] if norm else []), nn.ReLU(), nn.Dropout(rate)]
    net = nn.Sequential(*layers, nn.Linear(width, out))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return net


def selu(n: int, width: int, depth: int, out: int, rate: float) -> nn.Module:
    """Self-normalizing."""
    return SelfNormalizing(n, [width] * depth, out, dropout=rate)


def highway(n: int, width: int, depth: int, out: int, rate: float) -> nn.Module:
    """A plain layer and depth - 1 highway layers; dropout inside would cut the carried state."""
    net = HighwayNet(n, width, depth - 1, out)
    net.head = nn.Sequential(nn.Dropout(rate), net.head)  # pyrefly: ignore[bad-assignment]
    return net


def residual(n: int, width: int, depth: int, out: int, rate: float) -> nn.Module:
    """A plain layer and (depth - 1) / 2 blocks B with BatchNorm, of two weight layers each."""
    net = ResidualNet(n, width, (depth - 1) // 2, out)
    net.head = nn.Sequential(nn.Dropout(rate), net.head)  # pyrefly: ignore[bad-assignment]
    return net


#: name -> how it is made, of inputs, width, hidden layers (odd, for `residual`), outputs, dropout
NETWORKS: dict[str, Callable[[int, int, int, int, float], nn.Module]] = {
    SELU: selu,
    "ReLU, He": plain,
    "ReLU + BatchNorm": partial(plain, norm="batch"),
    "ReLU + LayerNorm": partial(plain, norm="layer"),
    "highway": highway,
    "residual": residual,
}
