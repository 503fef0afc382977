"""The law of the singular values of an end-to-end Jacobian (free probability).

J = D_L W_L ... D_1 W_1 with D diagonal in phi'(sqrt(q) z). For wide layers the eigenvalues of
J J^T follow the S-transform S_JJT = (S_DD S_WW)^L: Pennington, Schoenholz & Ganguli 2017
(arXiv 1711.04735) and 2018 (arXiv 1802.09979).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor, nn

from signalprop.errors import SignalpropError
from signalprop.theory.activations import Activation

Weights = Literal["gaussian", "orthogonal"]

#: slopes whose squares are alike to this are one atom
_ALIKE = 1e-9
#: angle above the real axis at which the density is read; it smooths ln(sigma^2) by about this
_ANGLE = 2e-3


@dataclass(frozen=True)
class SpectralLaw:
    """The law of the squared singular values of a product of `depth` layers.

    Attributes:
        weights: `gaussian` (iid, variance sigma_w^2 / n) or `orthogonal` (times sigma_w).
        weight_variance: sigma_w^2.
        depth: number of layers L.
        slopes: values of phi'^2, the atoms of D^2.
        shares: their probabilities.
    """

    weights: Weights
    weight_variance: float
    depth: int
    slopes: np.ndarray
    shares: np.ndarray

    @property
    def mu_1(self) -> float:
        """E[phi'^2]."""
        return float(self.shares @ self.slopes)

    @property
    def mu_2(self) -> float:
        """E[phi'^4]."""
        return float(self.shares @ self.slopes**2)

    @property
    def chi(self) -> float:
        """sigma_w^2 E[phi'^2], the mean squared singular value of one layer."""
        return self.weight_variance * self.mu_1

    @property
    def mean(self) -> float:
        """Mean squared singular value, chi^L."""
        return self.chi**self.depth

    @property
    def variance(self) -> float:
        """Variance of the squared singular values, chi^(2 L) L (mu_2 / mu_1^2 - 1 - s_1).

        s_1 is -1 for Gaussian weights, so that the spread grows with depth whatever the
        activation, and 0 for orthogonal ones (Pennington et al. 2017, eqs. 16-18).
        """
        s_1 = -1.0 if self.weights == "gaussian" else 0.0
        return self.mean**2 * self.depth * (self.mu_2 / self.mu_1**2 - 1.0 - s_1)

    @property
    def zero_share(self) -> float:
        """Share of singular values that are exactly zero: P(phi' = 0), one half for ReLU."""
        return float(self.shares[self.slopes == 0.0].sum())

    @property
    def largest(self) -> float:
        """Upper end of the singular values, from the edge of their law.

        Linear Gaussian networks: sigma_w^L sqrt((L + 1)^(L + 1) / L^L), about sqrt(e L) times the
        rms. The largest of n values lies near it, to about n^(-2/3).
        """
        top = float(self.slopes.max())
        if self.weights == "orthogonal" and np.ptp(self.slopes) <= _ALIKE * top:
            return (self.weight_variance * top) ** (self.depth / 2)
        # the edge is where the inverse of the moment function turns: d z / d w = 0
        low, high = math.log(1e-12), math.log(1e12)
        ratio = (math.sqrt(5) - 1) / 2
        for _ in range(200):
            a, b = high - ratio * (high - low), low + ratio * (high - low)
            if self._log_edge(a) < self._log_edge(b):
                high = b
            else:
                low = a
        return math.exp(0.5 * self._log_edge(0.5 * (low + high)))

    def _log_edge(self, x: float) -> float:
        w = np.array([self.slopes.max() * (1.0 + math.exp(x))], dtype=complex)
        return float(self._log_z(w)[0][0].real)

    def _log_z(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ln z, d ln z / dw), where M_J(z) = M_D(w) = x."""
        # from S = (1 + x) / (x M^-1(x)) of each factor: z = (1 + x) / x (x w / ((1 + x) S_W))^L
        apart = w[:, None] - self.slopes
        x = (self.shares * self.slopes / apart).sum(1)
        dx = -(self.shares * self.slopes / apart**2).sum(1)
        both, dboth = np.log1p(1.0 / x), -dx / (x * (1.0 + x))  # ln((1 + x) / x)
        log_s = -math.log(self.weight_variance) * np.ones_like(x)
        dlog_s = np.zeros_like(x)
        if self.weights == "gaussian":
            log_s, dlog_s = log_s - np.log1p(x), -dx / (1.0 + x)
        turns = self.depth
        log_z = both + turns * (np.log(w) - both - log_s)
        return log_z, dboth + turns * (1.0 / w - dboth - dlog_s)

    def density(self, squares: np.ndarray) -> np.ndarray:
        """Density per unit of ln(sigma^2), without the atom at zero, of the grid's shape.

        The equation of the S-transform is solved by Newton's method along a path from far away on
        the imaginary axis down to it and then down to the real axis, at 2e-3 above it: features
        narrower than that in ln(sigma^2) are smoothed, an atom (orthogonal linear) among them.

        Args:
            squares: squared singular values, above zero, rising, shape (n,).

        Returns:
            The density; its integral over ln(sigma^2) is 1 - zero_share.

        Raises:
            SignalpropError: the grid is not positive and rising.
        """
        grid = np.log(np.asarray(squares, dtype=np.float64))
        if grid.ndim != 1 or not np.isfinite(grid).all() or (np.diff(grid) <= 0).any():
            raise SignalpropError("squared singular values have to be positive and rising")
        w = self._imaginary(grid)
        angles = np.concatenate(
            [np.linspace(math.pi / 2, 0.05, 60)[1:], np.geomspace(0.05, _ANGLE, 40)[1:]]
        )
        for angle in angles:
            w = self._newton(w, grid + 1j * angle)
        out = -(self.shares * self.slopes / (w[:, None] - self.slopes)).sum(1).imag / math.pi
        return np.maximum(out, 0.0)

    def _imaginary(self, grid: np.ndarray) -> np.ndarray:
        """Solutions at z = i e^grid, followed down from where M = mean / z."""
        top = max(float(grid[-1]), math.log(self.mean)) + math.log(1e6) + self.depth
        path = np.arange(top, float(grid[-1]), -0.25)
        found = np.empty(len(grid), dtype=complex)
        x = self.mean / (1j * math.exp(min(path[0], 700.0)))
        w = np.array([self.mu_1 / x])
        level = path[0]
        for at in path:
            w, level = self._newton(w, np.array([at + 0.5j * math.pi])), at
        for i in range(len(grid) - 1, -1, -1):
            steps = max(1, math.ceil((level - grid[i]) / 0.25))
            for at in np.linspace(level, grid[i], steps + 1)[1:]:
                w = self._newton(w, np.array([at + 0.5j * math.pi]))
            found[i], level = w[0], grid[i]
        return found

    def _newton(self, w: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Solve ln z(w) = target, the branch of the logarithm being that nearest to the target."""
        for _ in range(30):
            log_z, slope = self._log_z(w)
            miss = log_z - target
            miss -= 2j * math.pi * np.round(miss.imag / (2 * math.pi))
            step = -miss / (slope * w)
            size = np.abs(step)
            w = w * np.exp(np.where(size > 0.3, step * 0.3 / np.maximum(size, 1e-300), step))
            if size.max() < 1e-11:
                break
        return w

    def distribution(self, squares: np.ndarray) -> np.ndarray:
        """P(sigma^2 <= s), counted down from the upper end.

        Args:
            squares: as for `density`; the grid has to reach above `largest` squared.

        Returns:
            The distribution function, from the trapezoidal rule on the grid; what lies below the
            grid (deep Gaussian products reach far down) and the atom at 0 are in its first value.
        """
        density, grid = self.density(squares), np.log(squares)
        steps = 0.5 * (density[1:] + density[:-1]) * np.diff(grid)
        above = np.concatenate([np.cumsum(steps[::-1])[::-1], [0.0]])
        return np.maximum(1.0 - above, self.zero_share)


def spectral_law(
    activation: Activation | str | nn.Module | Callable[[Tensor], Tensor],
    weight_variance: float,
    *,
    depth: int,
    q: float = 1.0,
    weights: Weights = "gaussian",
) -> SpectralLaw:
    """The law of the squared singular values of a deep network's Jacobian at initialisation.

    It takes q to be the same in every layer, that is at its fixed point, and D independent of W
    (wide layers).

    Args:
        activation: phi; `linear` for the plain product.
        weight_variance: sigma_w^2.
        depth: number of layers.
        q: variance of the pre-activations, `MeanField(...).q_star`.
        weights: `gaussian` or `orthogonal`.

    Returns:
        The law: moments, edge, density and distribution.

    Raises:
        SignalpropError: an argument is out of range.
    """
    if depth < 1 or weight_variance <= 0 or not (0 < q < math.inf):
        raise SignalpropError("depth has to be 1 or more, weight_variance and q above zero")
    if weights not in ("gaussian", "orthogonal"):
        raise SignalpropError(f"weights are 'gaussian' or 'orthogonal', not {weights!r}")
    slopes, shares = _atoms(Activation.of(activation), q)
    return SpectralLaw(weights, weight_variance, depth, slopes, shares)


def _atoms(activation: Activation, q: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of phi'^2 and their probabilities, by Gauss-Legendre nodes between kinks."""
    cuts = np.array([kink.at for kink in activation.kinks]) / math.sqrt(q)
    edges = np.unique(np.concatenate([np.linspace(-6.0, 6.0, 13), cuts[np.abs(cuts) < 6.0]]))
    x, w = np.polynomial.legendre.leggauss(12)
    half = 0.5 * np.diff(edges)[:, None]
    z = (0.5 * (edges[1:] + edges[:-1])[:, None] + half * x).ravel()
    shares = (half * w).ravel() * np.exp(-0.5 * z * z)
    values = activation.slope(math.sqrt(q) * z) ** 2
    keys = np.round(values / max(values.max(), 1e-300) / _ALIKE)
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    total = np.bincount(place.ravel(), weights=shares)
    return values[first], total / total.sum()
