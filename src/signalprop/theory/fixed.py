"""Fixed points of the variance map and of the correlation map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from signalprop.theory.maps import Moments

#: the variance map is looked at between these
LOWEST, HIGHEST = 1e-14, 1e10
_POINTS = 480
#: V(q) / q within this of 1 everywhere means that every q is fixed
_FLAT = 1e-10


@dataclass(frozen=True)
class FixedPoint:
    """A fixed point of a map.

    Attributes:
        at: where.
        slope: slope of the map there.
    """

    at: float
    slope: float

    @property
    def stable(self) -> bool:
        """Whether nearby points move towards it."""
        return abs(self.slope) < 1.0


@dataclass(frozen=True)
class VarianceMap:
    """V(q) = sigma_w^2 E[phi(sqrt(q) z)^2] + sigma_b^2, and where it comes to rest.

    Attributes:
        moments: of the activation.
        weight_variance: sigma_w^2.
        bias_variance: sigma_b^2.
    """

    moments: Moments
    weight_variance: float
    bias_variance: float

    def __call__(self, q: np.ndarray | float) -> np.ndarray:
        """V(q), of q's shape."""
        return self.weight_variance * self.moments.square(q) + self.bias_variance

    def slope(self, q: float) -> float:
        """V'(q)."""
        return self.weight_variance * float(self.moments.square_slope(q))

    def fixed_points(self) -> tuple[tuple[FixedPoint, ...], bool]:
        """Every fixed point from 0 up, and whether every q is one (a rectifier at criticality)."""
        grid = np.geomspace(LOWEST, HIGHEST, _POINTS)
        excess = self(grid) / grid - 1.0
        if np.abs(excess).max() < _FLAT:
            return (), True
        found: list[FixedPoint] = []
        if float(self(0.0)) == 0.0:
            found.append(FixedPoint(0.0, float(excess[0]) + 1.0))
        clear = np.flatnonzero(np.abs(excess) > 1e-13)
        for i, j in itertools.pairwise(clear.tolist()):
            if excess[i] * excess[j] < 0:
                q = bisected(lambda q: float(self(q)) / q - 1.0, grid[i], grid[j])
                found.append(FixedPoint(q, self.slope(q)))
        return tuple(found), False

    def limit(self, start: float) -> float:
        """Where q goes from a start: a fixed point, 0, inf, or nan where it never settles."""
        points, flat = self.fixed_points()
        if flat or start in [p.at for p in points]:
            return start
        grid = np.geomspace(LOWEST, HIGHEST, _POINTS)
        if (np.diff(self(grid)) >= -1e-12 * grid[1:]).all():  # a rising map moves one way
            if float(self(start)) > start:
                return min((p.at for p in points if p.at > start), default=math.inf)
            return max((p.at for p in points if p.at < start), default=0.0)
        q = start
        for _ in range(2000):
            previous, q = q, float(self(q))
            if q > HIGHEST:
                return math.inf
            if abs(q - previous) <= 1e-9 * q:
                return min((p.at for p in points), key=lambda at: abs(at - q), default=math.nan)
        return math.nan


def bisected(
    f: Callable[[float], float], low: float, high: float, *, tolerance: float = 4e-15
) -> float:
    """A zero of f between two places where its signs differ (regula falsi, Illinois variant)."""
    low, high = float(low), float(high)
    left, right = f(low), f(high)
    kept = 0
    for _ in range(100):
        if left == 0.0 or right == 0.0:
            break
        middle = (low * right - high * left) / (right - left)
        if not low < middle < high or kept > 3 or kept < -3:
            middle, kept = 0.5 * (low + high), 0
        value = f(middle)
        if (value < 0) == (right < 0):
            high, right = middle, value
            kept = kept + 1 if kept > 0 else 1
            left = 0.5 * left if kept > 1 else left
        else:
            low, left = middle, value
            kept = kept - 1 if kept < 0 else -1
            right = 0.5 * right if kept < -1 else right
        if high - low <= tolerance * abs(high) or abs(value) <= 1e-15:
            return middle
    return low if left == 0.0 else high if right == 0.0 else 0.5 * (low + high)


def correlation_fixed_point(moments: Moments, q: float, weight_variance: float) -> float:
    """1 - c* of the stable fixed point of the correlation map at a fixed variance.

    With D(c) = E[(phi(u1) - phi(u2))^2] / 2 (1 - c), the map is c' = 1 - (sigma_w^2 D / q) (1 - c),
    so that a fixed point other than 1 solves sigma_w^2 D(c) = q. All coefficients of the map in
    powers of c are positive (Mehler), D rises with c, and there is one below 1 exactly where
    chi_1 = sigma_w^2 D(1) / q > 1.

    Args:
        moments: of the activation.
        q: the variance the map is taken at.
        weight_variance: sigma_w^2.

    Returns:
        The distance of c* from 1; 0 where c* = 1.
    """
    chi = weight_variance * moments.pair_slope(q, 0.0)
    if chi <= 1.0 + 1e-12:
        return 0.0

    def excess(distance: float) -> float:
        return weight_variance * moments.gap(q, distance) / (q * distance) - 1.0

    far = excess(1.0)
    if far >= 0.0:  # an odd activation without bias: c* = 0
        return 1.0
    if abs(far) < 1e-13:
        return 1.0
    low, high = 1.0, 1.0
    while excess(low) <= 0.0:
        low, high = low / 8.0, low
        if low < 1e-30:
            return 0.0
    return bisected(excess, low, high, tolerance=1e-13)
