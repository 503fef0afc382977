"""The moment map of SELU: where self-normalisation holds, and where its claim stops.

For a unit whose inputs have mean mu and variance nu and whose weights have sum omega and sum of
squares tau, the pre-activation is normal with mean mu omega and variance nu tau; the map gives mean
and variance of the unit's output (Klambauer et al. 2017, arXiv 1706.02515, eqs. 4 and 5).

The claim is about activations. It says that mean and variance come back to (0, 1) and that the
variance stays within bounds, "so vanishing and exploding gradients are impossible" holds for the
variance, not for the gradient: at the same fixed point chi_1 = 1.0716, so that the error signal
grows by 1.035 per layer, by 32 over 100 layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from signalprop.theory.meanfield import MeanField

#: torch's constants
SCALE = 1.0507009873554804934193349852946
ALPHA = 1.6732632423543772848170429916717


@dataclass(frozen=True)
class Region:
    """A box of means, variances and weight sums, each (lowest, highest).

    The default is the one of theorem 1 (Klambauer et al. 2017).

    Attributes:
        mu: mean of the inputs.
        nu: variance of the inputs.
        omega: sum of a unit's weights.
        tau: sum of their squares.
    """

    mu: tuple[float, float] = (-0.1, 0.1)
    nu: tuple[float, float] = (0.8, 1.5)
    omega: tuple[float, float] = (-0.1, 0.1)
    tau: tuple[float, float] = (0.95, 1.1)


@dataclass(frozen=True)
class Contraction:
    """What was found on a grid over a region.

    Attributes:
        points: number of grid points.
        largest_norm: largest spectral norm of the map's Jacobian; a contraction where below 1.
        mu: lowest and highest mean that the region is mapped to.
        nu: lowest and highest variance that the region is mapped to.
        inside: whether the region is mapped into itself.
    """

    points: int
    largest_norm: float
    mu: tuple[float, float]
    nu: tuple[float, float]
    inside: bool

    @property
    def contracts(self) -> bool:
        """Whether the map is a contraction of the region into itself, on the grid."""
        return self.inside and self.largest_norm < 1.0


Value = np.ndarray | float


def selu_map(
    mu: Value, nu: Value, omega: Value = 0.0, tau: Value = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of a unit's output from those of its inputs.

    With m = mu omega and s^2 = nu tau, and the normal distribution function P and density p:
    E = scale (m P(m/s) + s p(m/s) + alpha (e^(m + s^2/2) P(-m/s - s) - P(-m/s))), the second moment
    likewise.

    Args:
        mu: mean of the inputs.
        nu: variance of the inputs, above zero.
        omega: sum of the unit's weights; 0 in expectation.
        tau: sum of their squares; 1 for LeCun's initialisation.

    Returns:
        (mean, variance), broadcast from the arguments.
    """
    m = np.asarray(mu, dtype=np.float64) * omega
    variance = np.asarray(nu, dtype=np.float64) * tau
    m, variance = np.broadcast_arrays(m, variance)
    s = np.sqrt(variance)
    a = m / s
    above, below = _distribution(a), _distribution(-a)
    density = np.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
    # e^(m + s^2 / 2) P(-a - s) in one exponential, which neither overflows nor loses digits
    once = _tilted(-a, s, 1.0)
    twice = _tilted(-a, s, 2.0)
    mean = SCALE * (m * above + s * density + ALPHA * (once - below))
    square = SCALE**2 * (
        (m * m + variance) * above + m * s * density + ALPHA**2 * (twice - 2 * once + below)
    )
    return mean, square - mean * mean


def _distribution(x: np.ndarray) -> np.ndarray:
    return torch.special.ndtr(torch.tensor(x)).numpy()


def _tilted(a: np.ndarray, s: np.ndarray, k: float) -> np.ndarray:
    """E[e^(k u); u < 0] of u = s (z - a), which is e^(-k s a + k^2 s^2 / 2) P(a - k s)."""
    log = torch.special.log_ndtr(torch.tensor(a - k * s)).numpy()
    return np.exp(-k * s * a + 0.5 * (k * s) ** 2 + log)


def selu_jacobian(mu: float, nu: float, omega: float = 0.0, tau: float = 1.0) -> np.ndarray:
    """d(mean, variance) / d(mu, nu), shape (2, 2), by central differences (to about 1e-9)."""
    return _jacobians(*(np.array([float(x)]) for x in (mu, nu, omega, tau)))[0]


def _jacobians(mu: np.ndarray, nu: np.ndarray, omega: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """(n, 2, 2), fourth-order central differences."""
    h, none = 1e-3 * np.minimum(nu, 1.0), np.zeros_like(nu)
    columns = list[np.ndarray]()
    for dmu, dnu in ((h, none), (none, h)):
        total = np.zeros((2, len(mu)))
        for k, weight in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
            total += weight / h * np.stack(selu_map(mu + k * dmu, nu + k * dnu, omega, tau))
        columns.append(total)
    return np.stack(columns, axis=-1).transpose(1, 0, 2)


def selu_fixed_point(omega: float = 0.0, tau: float = 1.0) -> tuple[float, float]:
    """The attracting fixed point (mean, variance); (0, 1) for centred weights of unit norm.

    Args:
        omega: sum of a unit's weights.
        tau: sum of their squares.

    Returns:
        Where the map goes from (0, 1), by iteration.
    """
    mean, variance = 0.0, 1.0
    for _ in range(5000):
        found = selu_map(mean, variance, omega, tau)
        new = float(found[0]), float(found[1])
        if abs(new[0] - mean) + abs(new[1] - variance) < 1e-15:
            break
        mean, variance = new
    return mean, variance


def selu_iterates(
    mu: float, nu: float, layers: int, omega: float = 0.0, tau: float = 1.0
) -> np.ndarray:
    """(mean, variance) after 0, 1, ..., `layers` layers, shape (layers + 1, 2)."""
    states = [(float(mu), float(nu))]
    for _ in range(layers):
        mean, variance = selu_map(*states[-1], omega, tau)
        states.append((float(mean), float(variance)))
    return np.array(states)


def selu_contraction(region: Region | None = None, *, points: int = 9) -> Contraction:
    """Whether the map contracts a region into itself, looked at on a grid.

    A grid is evidence, not the proof of the paper (which bounds the derivatives between the points
    as well).

    Args:
        region: the box; that of theorem 1 where it is not given.
        points: grid points along each of the four axes.

    Returns:
        The largest spectral norm of the Jacobian, and what the region is mapped to.
    """
    region = region or Region()
    axes = [np.linspace(*bounds, points) for bounds in (region.mu, region.nu, region.omega)]
    axes.append(np.linspace(*region.tau, points))
    mu, nu, omega, tau = (x.ravel() for x in np.meshgrid(*axes, indexing="ij"))
    mean, variance = selu_map(mu, nu, omega, tau)
    norms = np.linalg.svd(_jacobians(mu, nu, omega, tau), compute_uv=False)[:, 0]
    inside = (
        region.mu[0] <= mean.min()
        and mean.max() <= region.mu[1]
        and region.nu[0] <= variance.min()
        and variance.max() <= region.nu[1]
    )
    return Contraction(
        len(mu),
        float(norms.max()),
        (float(mean.min()), float(mean.max())),
        (float(variance.min()), float(variance.max())),
        bool(inside),
    )


def selu_gradient_rate() -> float:
    """0.5 ln chi_1 = 0.0346 nats per layer at (0, 1): what self-normalisation does not hold."""
    return MeanField("selu", 1.0).gradient_rate
