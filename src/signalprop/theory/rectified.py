"""ReLU(x + W x): no closed form is known, so its density over units is followed numerically.

A unit that is large stays large along the skip and keeps its gate open, so delta and x are not
independent, and the factor (1 + sigma_w^2) P(gate open) = 1.5 is wrong. Kept here is the density of
a unit's value v = x / rms(x), and delta over units as two parts: a(v), the mean square of what is
random, and b(v), what is common to the units at v. The second starts with a share of 1 / width and
grows with the forward signal (delta . x is conserved, the block being of degree one), which is
faster: at width 50 it is the larger one from about 30 blocks on.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from signalprop.errors import SignalpropError
from signalprop.theory.blocks import Decay

_LARGEST = 9.0
_BINS = 300
#: the density counts as settled when it changes by less
_SETTLED = 1e-9


def residual_rectified(weight_variance: float, *, blocks: int, width: int | None = None) -> Decay:
    """ReLU(x + W x): nats per block, by a numerical map of the units' density.

    Forward, v' = ReLU(v + sigma_w g) / r with g standard normal and r the growth of the rms.
    Backward, with o = 1{v + sigma_w g > 0}:

    - a(v) = E_g[o a'(v')] + sigma_w^2 E[o a'(v')], the second mean over g and the units
    - b(v) = E_g[o b'(v')] + v E[o sigma_w g b'(v')]

    For He weights a grows by 1.43 per block and b by 1.55. The first block's input is taken as
    standard normal, delta at the output end as random.

    Args:
        weight_variance: sigma_w^2; 2 for He.
        blocks: how many.
        width: number of units; the common part is left out where it is not given.

    Returns:
        The expected decay.

    Raises:
        SignalpropError: an argument is out of range.
    """
    if weight_variance <= 0 or blocks < 0:
        raise SignalpropError("weight_variance has to be above zero, and blocks zero or more")
    layers = _densities(math.sqrt(weight_variance), blocks)
    # units at the output end; its first entry is the atom at zero, to which no open gate leads
    squares = common = np.empty(0)
    share, levels = (1.0 / width if width else 0.0), [0.0]
    scale = 0.0
    for k, (places, density, opened, kicked) in enumerate(reversed(layers)):
        if k == 0:
            squares, common = np.ones(opened.shape[1]), _middles()
        passed = opened @ squares
        squares = passed + weight_variance * float(density @ passed)
        common = opened @ common + places * float(density @ (kicked @ common))
        random = float(density @ squares)
        total = random + share * float(density @ common**2)
        levels.append(0.5 * (math.log(total) + scale))
        # rescaled, so that a deep stack does not overflow
        scale += math.log(random)
        squares, common = squares[-_BINS:] / random, common[-_BINS:] / math.sqrt(random)
    return Decay(
        "ReLU(x + W x)",
        np.diff(levels)[::-1],
        "density of the units followed numerically; no closed form is known",
        "this package; the block: He et al. 2015",
    )


def _edges() -> np.ndarray:
    return np.linspace(0.0, _LARGEST, _BINS + 1)


def _middles() -> np.ndarray:
    edges = _edges()
    return 0.5 * (edges[1:] + edges[:-1])


Layer = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _densities(sigma: float, blocks: int) -> list[Layer]:
    """Units' values, their density, and the two transition matrices of every block."""
    places = np.linspace(-5.0, 5.0, _BINS + 1)
    density = np.exp(-0.5 * places**2)
    density /= density.sum()
    layers: list[Layer] = []
    settled = False
    for _ in range(blocks):
        if settled:
            layers.append(layers[-1])
            continue
        opened, kicked = _transition(places, density, sigma)
        layers.append((places, density, opened, kicked))
        moved = density @ opened
        after = np.concatenate([[1.0 - moved.sum()], moved])
        settled = len(layers) > 1 and bool(np.abs(after - density).max() < _SETTLED)
        places, density = np.concatenate([[0.0], _middles()]), after
    return layers


def _transition(
    places: np.ndarray, density: np.ndarray, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """P(unit at v goes to bin j, gate open), and the mean of sigma g there."""
    z = places / sigma
    square = (places**2 + sigma**2) * _phi(z) + places * sigma * _normal(z)
    growth = math.sqrt(float(density @ square))
    bounds = (growth * _edges()[None, :] - places[:, None]) / sigma
    return np.diff(_phi(bounds), axis=1), -sigma * np.diff(_normal(bounds), axis=1)


def _normal(x: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _phi(x: np.ndarray) -> np.ndarray:
    """The normal distribution function."""
    return torch.special.ndtr(torch.tensor(x)).numpy()
