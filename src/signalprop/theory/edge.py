"""The edge of chaos: the weight variance at which gradients neither vanish nor explode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from signalprop.errors import SignalpropError
from signalprop.theory.activations import Activation
from signalprop.theory.fixed import bisected
from signalprop.theory.maps import Moments


@dataclass(frozen=True)
class CriticalPoint:
    """A point of the edge of chaos, chi_1 = 1.

    Attributes:
        weight_variance: sigma_w^2.
        bias_variance: sigma_b^2.
        q_star: the variance there; 0 for the end of the edge at sigma_b^2 = 0, nan where every q
            is fixed (a rectifier).
        stable: whether q settles there.
    """

    weight_variance: float
    bias_variance: float
    q_star: float
    stable: bool


def _line(moments: Moments, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sigma_w^2, sigma_b^2) on the edge whose fixed point is q."""
    weight = 1.0 / moments.slope_square(q)
    return weight, q - weight * moments.square(q)


def critical_points(
    activation: Activation | str | nn.Module | Callable[[Tensor], Tensor], bias_variance: float
) -> tuple[CriticalPoint, ...]:
    """Every weight variance with chi_1 = 1 for a bias variance.

    The edge is a curve in q: sigma_w^2(q) = 1 / E[phi'^2] and sigma_b^2(q) = q - sigma_w^2(q)
    E[phi^2]; where it meets the bias variance is solved for.

    Args:
        activation: a name, a module or a callable.
        bias_variance: sigma_b^2, zero or above.

    Returns:
        The points, by weight variance; none where there is no edge (ReLU with a bias).

    Raises:
        SignalpropError: the bias variance is negative or not finite.
    """
    if not (math.isfinite(bias_variance) and bias_variance >= 0):
        raise SignalpropError(f"bias_variance has to be zero or above, not {bias_variance!r}")
    moments = Moments(Activation.of(activation))
    grid = np.geomspace(1e-12, 1e6, 361)
    weight, bias = _line(moments, grid)
    flat = np.abs(bias) <= 1e-12 * grid
    if flat.all():
        return (CriticalPoint(float(weight[0]), 0.0, math.nan, True),) if bias_variance == 0 else ()
    found: list[CriticalPoint] = []
    if bias_variance == 0.0 and float(moments.square(0.0)) == 0.0:
        found.append(_point(moments, 0.0, 0.0))
    excess = np.where(flat, 0.0, bias) - bias_variance
    for i in np.flatnonzero(excess[1:] * excess[:-1] < 0):
        q = bisected(
            lambda q: float(_line(moments, np.asarray(q))[1]) - bias_variance, grid[i], grid[i + 1]
        )
        found.append(_point(moments, q, bias_variance))
    return tuple(sorted(found, key=lambda point: point.weight_variance))


def edge_curve(activation: Activation, bias_variances: np.ndarray) -> np.ndarray:
    """`critical_weight_variance` for many bias variances at once; nan where there is none.

    Args:
        activation: the activation.
        bias_variances: sigma_b^2, shape (b,).

    Returns:
        sigma_w^2 on the edge, shape (b,), to about 1e-8.
    """
    moments = Moments(activation)
    grid = np.geomspace(1e-12, 1e6, 361)
    weight, bias = _line(moments, grid)
    bias = np.where(np.abs(bias) <= 1e-12 * grid, 0.0, bias)
    found = np.full(len(bias_variances), np.nan)
    if (bias == 0.0).all() or (bias_variances == 0.0).any():
        ends = critical_points(activation, 0.0)
        stable = [p.weight_variance for p in ends if p.stable]
        found[bias_variances == 0.0] = stable[0] if stable else np.nan
    for k in np.flatnonzero(np.isnan(found) & (bias_variances > 0)):
        excess = bias - bias_variances[k]
        # where q is stable the bias variance rises along the edge
        steps = np.flatnonzero((excess[:-1] < 0) & (excess[1:] >= 0))
        if len(steps):
            i = steps[np.argmin(weight[steps])]
            found[k] = i
    rows = np.flatnonzero(~np.isnan(found) & (bias_variances > 0))
    if len(rows):
        found[rows] = _refined(moments, grid, found[rows].astype(int), bias_variances[rows])
    return found


def _refined(moments: Moments, grid: np.ndarray, i: np.ndarray, target: np.ndarray) -> np.ndarray:
    low, high = np.log(grid[i]), np.log(grid[i + 1])
    for _ in range(40):
        middle = 0.5 * (low + high)
        above = _line(moments, np.exp(middle))[1] > target
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return _line(moments, np.exp(0.5 * (low + high)))[0]


def _point(moments: Moments, q: float, bias_variance: float) -> CriticalPoint:
    weight = 1.0 / float(moments.slope_square(q if q > 0.0 else 1e-24))
    if q == 0.0:  # the slope of the variance map is 1 there: does q above it come down?
        return CriticalPoint(weight, bias_variance, q, weight * float(moments.square(1e-4)) < 1e-4)
    return CriticalPoint(
        weight, bias_variance, q, weight * float(moments.square_slope(q)) < 1.0 - 1e-9
    )


def critical_weight_variance(
    activation: Activation | str | nn.Module | Callable[[Tensor], Tensor], bias_variance: float
) -> float:
    """The weight variance sigma_w^2 at the edge of chaos for a bias variance sigma_b^2.

    chi_1 = sigma_w^2 E[phi'(sqrt(q*) z)^2] = 1 (Poole et al. 2016). For tanh: 1.0499 at 2e-5, the
    setting in which Xiao et al. 2018 trained 10,000 layers.

    Args:
        activation: a name, a module or a callable.
        bias_variance: sigma_b^2, zero or above.

    Returns:
        sigma_w^2; the smallest at which q is stable, where there are several.

    Raises:
        SignalpropError: there is no edge at this bias variance.
    """
    points = [p for p in critical_points(activation, bias_variance) if p.stable]
    if not points:
        raise SignalpropError(
            f"{Activation.of(activation).name} has no edge of chaos at bias variance "
            f"{bias_variance:g} where q is stable: no weight variance keeps both q and the "
            f"gradient; try bias_variance=0, or look at critical_points"
        )
    return points[0].weight_variance
