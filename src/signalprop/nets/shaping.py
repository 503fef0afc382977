"""Activations shaped for the depth of the network, in place of skips and normalisation.

In a wide plain network of L layers f(W x), weights of variance 1 / fan_in, two inputs of length
sqrt(n) and cosine c have the cosine C(c) = E[f(u) f(v)] one layer on, (u, v) normal with variances
1 and covariance c, if E[f(u)^2] = 1. After L layers all cosines of an ordinary activation are the
same, whatever goes in. Shaping chooses f so that L-fold C is no further from the identity than can
be learnt from:

* `TailoredReLU`: a leaky ReLU whose slope makes the L-fold C of 0 equal to eta; C'(1) = 1, so the
  error signal keeps its length. Zhang, Botev and Martens, "Deep Learning without Shortcuts: Shaping
  the Kernel with Tailored Rectifiers", 2022.
* `ShapedActivation`: any smooth phi as gamma (phi(alpha u + beta) + delta), with Q(1) = Q'(1) = 1,
  C(0) = 0 and C'(1)^L = zeta. Martens et al., "Rapid training of deep neural networks without
  skip connections or normalization layers using Deep Kernel Shaping", 2021 (DKS).

Both hold for plain networks; use weights of variance 1 / fan_in (`lecun_`, or orthogonal
ones), biases 0, and inputs with a mean square of 1.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.nets import _checks
from signalprop.nets._shape import Phi, Shape, shape_of


def leaky_cosine(c: float, negative_slope: float, depth: int = 1) -> float:
    """Cosine behind `depth` layers with a leaky ReLU, from the cosine c before them.

    C(c) = c + (1 - a)^2 / (pi (1 + a^2)) (sqrt(1 - c^2) - c arccos c), composed `depth` times, of
    a leaky ReLU of slope a and infinite width (Zhang et al. 2022; Cho & Saul 2009 for a = 0).

    Args:
        c: from -1 to 1.
        negative_slope: a.
        depth: number of layers.

    Returns:
        The cosine.

    Raises:
        ValueError: an argument is out of range.
    """
    if not -1.0 <= _checks.number("c", c) <= 1.0:
        raise ValueError(f"c has to lie between -1 and 1, not at {c!r}")
    a = _checks.number("negative_slope", negative_slope)
    _checks.whole("depth", depth)
    return _composed(c, (1.0 - a) ** 2 / (1.0 + a * a), depth)


def tailored_slope(depth: int, eta: float = 0.9) -> float:
    """Negative slope of the leaky ReLU with which `depth` plain layers take cosine 0 to eta.

    Source: Zhang et al. 2022, TAT for leaky ReLU. Solved by bisection to the last bit; about 60
    `depth` evaluations of C, kept for the next call.

    Args:
        depth: number of layers with this activation in a row.
        eta: between 0 (a = 1, a linear network) and 1; the paper takes 0.9.

    Returns:
        The slope a, between 0 and 1.

    Raises:
        ValueError: an argument is out of range, or not even ReLU takes 0 as far as eta over so few
            layers.
    """
    return _slope(_checks.whole("depth", depth), _checks.within("eta", eta, 0.0, 1.0))


class TailoredReLU(nn.Module):
    """Leaky ReLU for plain networks of a given depth: sqrt(2 / (1 + a^2)) (x if x > 0 else a x).

    Source: Zhang, Botev and Martens 2022. The scale keeps a mean square of 1.

    Args:
        depth: number of layers with this activation in a row.
        eta: what cosine those layers make of 0; see `tailored_slope`.

    Attributes:
        negative_slope: a.
        scale: sqrt(2 / (1 + a^2)).

    Shape:
        Any, to the same.

    Raises:
        ValueError: see `tailored_slope`.
    """

    def __init__(self, depth: int, eta: float = 0.9) -> None:
        super().__init__()
        self.depth, self.eta = depth, eta
        self.negative_slope = tailored_slope(depth, eta)
        self.scale = math.sqrt(2.0 / (1.0 + self.negative_slope**2))

    def forward(self, x: Tensor) -> Tensor:
        """Activation, elementwise."""
        return self.scale * F.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        """Arguments and slope."""
        return f"depth={self.depth}, eta={self.eta:g}, negative_slope={self.negative_slope:.6g}"


class ShapedActivation(nn.Module):
    """Smooth activation for plain networks of a given depth: gamma (phi(alpha u + beta) + delta).

    Source: Martens et al. 2021, the four conditions of DKS: with z standard normal and f the shaped
    activation, E[f(z)^2] = 1 (Q(1) = 1), E[f(z) f'(z) z] = 1 (Q'(1) = 1), E[f(z)] = 0 (C(0) = 0)
    and E[f'(z)^2] = zeta^(1/depth) (C'(1)). The error signal's norm grows by sqrt(zeta) over all
    layers. Solved numerically in float64, 0.1 to 1 s per activation; of several solutions it is
    the one that amplifies least (smallest gamma).

    Args:
        depth: number of layers with this activation in a row.
        activation: phi, elementwise and twice differentiable: softplus, tanh, SiLU, GELU, erf, ...
        zeta: slope of the composed C at 1, above 1; the paper takes 1.5.

    Attributes:
        shape: alpha, beta, gamma and delta.

    Shape:
        Any, to the same.

    Raises:
        ValueError: an argument is out of range, or no alpha and beta fulfil the conditions, as for
            ReLU, which has no curvature to place.
    """

    def __init__(self, depth: int, activation: Phi = F.softplus, zeta: float = 1.5) -> None:
        super().__init__()
        _checks.whole("depth", depth)
        if _checks.number("zeta", zeta) <= 1.0:
            raise ValueError(f"zeta has to be above 1, which is a linear network, not {zeta!r}")
        self.depth, self.zeta = depth, float(zeta)
        self.activation = activation
        self.shape: Shape = shape_of(activation, self.zeta, depth)

    def forward(self, x: Tensor) -> Tensor:
        """Activation, elementwise."""
        alpha, beta, gamma, delta = self.shape
        return gamma * (self.activation(alpha * x + beta) + delta)

    def extra_repr(self) -> str:
        """Arguments and what came of them."""
        phi = self.activation
        named = (
            "" if isinstance(phi, nn.Module) else f", activation={getattr(phi, '__name__', phi)}"
        )
        found = ", ".join(f"{name}={value:.6g}" for name, value in self.shape._asdict().items())
        return f"depth={self.depth}{named}, zeta={self.zeta:g}, {found}"


def _composed(c: float, kappa: float, depth: int) -> float:
    """C of the leaky ReLU with kappa = (1 - a)^2 / (1 + a^2), `depth` times."""
    for _ in range(depth):
        c = min(1.0, c + kappa / math.pi * (math.sqrt(1.0 - c * c) - c * math.acos(c)))
    return c


@lru_cache(maxsize=128)
def _slope(depth: int, eta: float) -> float:
    most = _composed(0.0, 1.0, depth)
    if eta > most:
        raise ValueError(
            f"eta={eta:g} is out of reach of {depth} layers: ReLU itself makes {most:.4g} of 0, so "
            "use ReLU, or a smaller eta"
        )
    low, high = -700.0, 0.0
    # kappa spans many decades: bisection in its logarithm, to neighbouring numbers
    while (middle := 0.5 * (low + high)) not in (low, high):
        if _composed(0.0, math.exp(middle), depth) < eta:
            low = middle
        else:
            high = middle
    kappa = math.exp(high)
    # (1 - a)^2 = kappa (1 + a^2), the root from 0 to 1
    return (1.0 - kappa) / (1.0 + math.sqrt(kappa * (2.0 - kappa)))
