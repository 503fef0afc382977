"""The moments that every map of mean-field theory is made of, for a pre-activation N(0, q)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from signalprop.theory.activations import Activation
from signalprop.theory.quadrature import PAIR_NODES, expectation, pair_expectation

#: below this distance 1 - c the map is integrated from its slope, which loses no digits
_NEAR = 1e-4
_T, _TW = np.polynomial.legendre.leggauss(6)
_T, _TW = 0.5 * (_T + 1.0), 0.5 * _TW


@dataclass(frozen=True)
class Moments:
    """Gaussian moments of an activation; u = sqrt(q) z with z standard normal.

    Attributes:
        activation: the activation.
    """

    activation: Activation

    def square(self, q: np.ndarray | float) -> np.ndarray:
        """E[phi(u)^2], of q's shape."""
        return expectation(self.activation, lambda u, z: self.activation.value(u) ** 2, q)

    def mean(self, q: np.ndarray | float) -> np.ndarray:
        """E[phi(u)], of q's shape."""
        return expectation(self.activation, lambda u, z: self.activation.value(u), q)

    def slope_square(self, q: np.ndarray | float) -> np.ndarray:
        """E[phi'(u)^2], of q's shape."""
        return expectation(self.activation, lambda u, z: self.activation.slope(u) ** 2, q)

    def square_slope(self, q: np.ndarray | float) -> np.ndarray:
        """Derivative of E[phi(u)^2] in q, which is E[phi'^2] + E[phi'' phi].

        By Stein's identity E[phi phi' z] / sqrt(q): the delta functions that phi'' has at kinks are
        in it. Where phi itself jumps, E[phi^2 (z^2 - 1)] / 2q.

        Args:
            q: variances, any shape.

        Returns:
            The derivatives, of q's shape.
        """
        q = np.maximum(np.asarray(q, dtype=np.float64), 1e-9)
        if self.activation.discontinuous:
            weighted = expectation(
                self.activation, lambda u, z: self.activation.value(u) ** 2 * (z * z - 1.0), q
            )
            return weighted / (2.0 * q)

        def integrand(u: np.ndarray, z: np.ndarray) -> np.ndarray:
            value, slope = self.activation.both(u)
            return value * slope * z

        return expectation(self.activation, integrand, q) / np.sqrt(q)

    def pair(self, q: float, distance: float) -> float:
        """E[phi(u1) phi(u2)] at correlation c = 1 - distance."""
        return pair_expectation(self.activation, self.activation.value, np.multiply, q, distance)

    def pair_slope(self, q: float, distance: float, *, nodes: int = PAIR_NODES) -> float:
        """Derivative of E[phi(u1) phi(u2)] in q c, which is E[phi'(u1) phi'(u2)] (Price).

        Where phi jumps, the delta functions of phi' are in it, so that it is infinite at c = 1.

        Args:
            q: variance of both.
            distance: 1 - c.
            nodes: nodes of the quadrature on a panel.

        Returns:
            The derivative.
        """
        slope = self.activation.slope
        smooth = pair_expectation(self.activation, slope, np.multiply, q, distance, nodes=nodes)
        return smooth + self._from_jumps(q, distance)

    def _from_jumps(self, q: float, distance: float) -> float:
        jumps = [(k.at, k.value) for k in self.activation.kinks if abs(k.value) > 1e-6]
        if not jumps:
            return 0.0
        c, spread = 1.0 - distance, distance * (2.0 - distance)
        if spread <= 0.0:
            return math.inf
        total = 0.0
        for a, size in jumps:
            density = math.exp(-0.5 * a * a / q) / math.sqrt(2 * math.pi * q)
            moved = Activation(
                "moved",
                self.activation.function,
                tuple(edge - c * a for edge in self.activation.edges),
                (),
            )
            inner = expectation(
                moved,
                lambda u, z, a=a: self.activation.slope(u + c * a),
                q * spread,
            )
            total += 2.0 * size * density * float(inner)
            for b, other in jumps:
                exponent = (a * a - 2 * c * a * b + b * b) / (2 * q * spread)
                total += size * other * math.exp(-exponent) / (2 * math.pi * q * math.sqrt(spread))
        return total

    def gap(self, q: float, distance: float) -> float:
        """E[(phi(u1) - phi(u2))^2] / 2, which is E[phi^2] - E[phi(u1) phi(u2)].

        Args:
            q: variance of both.
            distance: 1 - c.

        Returns:
            The gap, to its last digits however small the distance is.
        """
        if distance <= 0.0:
            return 0.0
        if distance < _NEAR and not self.activation.discontinuous:
            # integral of the slope from c to 1, with 1 - c' = distance t^2, smooth in t
            slopes = [self.pair_slope(q, distance * t * t) for t in _T]
            return float(q * distance * np.sum(_TW * 2.0 * _T * slopes))
        value = self.activation.value
        return 0.5 * pair_expectation(self.activation, value, _squared_difference, q, distance)


def _squared_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a - b) ** 2
