"""What is known of a product's singular values from those of its blocks.

Everything works on singular values alone, numpy or torch, largest first along the last axis; what
comes out is numpy, float64. A bound is as true as the values that go in: an estimate of s_1 from
below gives no certificate (`errors` adds what may be missing).

Sources: Fan 1951, Maximum properties and inequalities for the eigenvalues of completely continuous
operators (s_(i+j-1)(A + B) <= s_i(A) + s_j(B)); Horn 1950, On the singular values of a product of
completely continuous operators; Horn & Johnson, Topics in Matrix Analysis, 3.3 and 3.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from signalprop.errors import SignalpropError

#: singular values: a numpy array or a tensor
Values = Any


@dataclass(frozen=True)
class Band:
    """Between what the singular values of I + X ought to lie.

    Attributes:
        name: which inequality says so.
        low: (..., n), for s_i(I + X); below 0 it says nothing.
        high: (..., n).
    """

    name: str
    low: np.ndarray
    high: np.ndarray

    def violations(self, values: Values, *, slack: float = 1e-9) -> Violations:
        """Where measured values lie outside.

        Args:
            values: s_i(I + X), (..., n).
            slack: relative to 1 + |bound|, how far outside does not count; take the rounding of
                the measurement.

        Returns:
            Which values are below, which above, and by how much at most.
        """
        s = _array(values)
        under = self.low - s - slack * (1 + np.abs(self.low))
        over = s - self.high - slack * (1 + np.abs(self.high))
        worst = float(np.max(np.maximum(self.low - s, s - self.high), initial=0.0))
        return Violations(below=under > 0, above=over > 0, worst=worst)


@dataclass(frozen=True)
class Violations:
    """Where singular values lie outside a band.

    Attributes:
        below: (..., n) bool.
        above: (..., n) bool.
        worst: the largest distance outside, 0 where all are inside.
    """

    below: np.ndarray
    above: np.ndarray
    worst: float

    @property
    def count(self) -> int:
        """How many values are outside."""
        return int(self.below.sum() + self.above.sum())


@dataclass(frozen=True)
class Certificate:
    """prod(1 - s_1(X_l)) <= s_min(J) <= s_max(J) <= prod(1 + s_1(X_l)), J = prod(I + X_l).

    In logs, so that a thousand blocks neither underflow nor overflow.

    Attributes:
        blocks: how many residual blocks it covers.
        log_low: ln of the lower bound, (samples,); -inf where some branch has s_1(X) >= 1: then
            nothing keeps a direction from being lost.
        log_high: ln of the upper bound, (samples,).
    """

    blocks: int
    log_low: np.ndarray
    log_high: np.ndarray

    def violations(self, log_values: Values, *, slack: float = 1e-9) -> Violations:
        """Where ln s_i(J), (samples, r), lie outside; `slack` in nats, relative to 1 + |bound|."""
        low, high = self.log_low[..., None], self.log_high[..., None]
        s = _array(log_values)
        band = Band("certificate", np.broadcast_to(low, s.shape), np.broadcast_to(high, s.shape))
        with np.errstate(invalid="ignore"):  # -inf - -inf: a zero where zero is allowed
            return band.violations(s, slack=slack)


def printed_band(branch: Values) -> Band:
    """1 - s_i(X) <= s_i(I + X) <= 1 + s_i(X), as it is often printed.

    The upper half is true. The lower half is not: X = diag(-1, 0) has s(X) = (1, 0) and s(I + X) =
    (1, 0), and 1 - s_2(X) = 1 > s_2(I + X) = 0.

    Args:
        branch: s_i(X) of a square X, all of them, (..., n).

    Returns:
        The band.
    """
    x = _array(branch)
    return Band("printed Ky Fan", 1 - x, 1 + x)


def ky_fan_band(branch: Values) -> Band:
    """1 - s_(n-i+1)(X) <= s_i(I + X) <= 1 + s_i(X), with the right index.

    From Fan's s_(i+j-1)(A + B) <= s_i(A) + s_j(B): once with A = I, once with A = I + X, B = -X.
    Both ends are attained, the lower one by X = -diag.

    Args:
        branch: s_i(X) of a square X, all of them, (..., n).

    Returns:
        The band.
    """
    x = _array(branch)
    return Band("Ky Fan", 1 - x[..., ::-1], 1 + x)


def weyl_band(branch: Values) -> Band:
    """|s_i(I + X) - 1| <= s_1(X): wider, but needs only the largest.

    Args:
        branch: s_i(X), (..., n), of which the first counts.

    Returns:
        The band.
    """
    x = np.broadcast_to(_array(branch)[..., :1], _array(branch).shape)
    return Band("Weyl", 1 - x, 1 + x)


def away_from_one(branch: Values, t: float) -> np.ndarray:
    """#{i: |s_i(I + X) - 1| > t} <= 2 #{i: s_i(X) >= t}, the right-hand side.

    With r values of X at or above t, Fan leaves at most r of I + X above 1 + t and at most r below
    1 - t. The 2 is needed: X = a e_1 e_2^T has rank one and moves two values.

    Args:
        branch: s_i(X) of a square X, all of them, (..., n).
        t: distance from one.

    Returns:
        (...,) int, at most n.
    """
    x = _array(branch)
    return np.minimum(2 * (x >= t).sum(-1), x.shape[-1])


def ky_fan_norms(branch: Values) -> np.ndarray:
    """sum_(i<=k) s_i(I + X) <= k + sum_(i<=k) s_i(X), the right-hand side for every k.

    The triangle inequality of Ky Fan's k-norm.

    Args:
        branch: s_i(X), (..., n).

    Returns:
        (..., n)
    """
    x = _array(branch)
    return np.cumsum(1 + x, axis=-1)


def log_product_bound(blocks: Iterable[Values]) -> np.ndarray:
    """The product bound, ln prod ||J_l||: nothing grows by more than its blocks together.

    Args:
        blocks: s_i(J_l) of every block, (samples, any number), of which the first counts.

    Returns:
        (samples,) nats; -inf where a block is zero.

    Raises:
        SignalpropError: where there are no blocks.
    """
    with np.errstate(divide="ignore"):
        logs = [np.log(_array(block)[..., 0]) for block in blocks]
    if not logs:
        raise SignalpropError("a product of Jacobians needs at least one block")
    return np.sum(logs, axis=0)


def horn_bound(log_blocks: Sequence[Values]) -> np.ndarray:
    """sum_(i<=k) ln s_i(J) <= sum_l sum_(i<=k) ln s_i(J_l), the right-hand side for every k.

    Horn's inequality: volumes of every dimension. k = 1 is the product bound; for square blocks
    and k = n it is an equality, ln|det|. Rectangular blocks are filled up with zeros, so k goes to
    the narrowest only.

    Args:
        log_blocks: ln s_i(J_l) of every block, (samples, n_l), in nats.

    Returns:
        (samples, min n_l) nats.

    Raises:
        SignalpropError: where there are no blocks.
    """
    if not len(log_blocks):
        raise SignalpropError("a product of Jacobians needs at least one block")
    logs = [_array(block) for block in log_blocks]
    narrow = min(block.shape[-1] for block in logs)
    return np.sum([np.cumsum(block[..., :narrow], axis=-1) for block in logs], axis=0)


def certificate(
    branches: Sequence[Values], *, errors: Sequence[Values] | None = None
) -> Certificate:
    """What the norms of the branches alone promise of a stack of residual blocks.

    ||(I + X) v|| >= (1 - s_1(X)) ||v||, block by block.

    Args:
        branches: s_1(X_l) of every block, (samples,), or all s_i(X_l), (samples, n).
        errors: how far each s_1 may be too small, in the same form.

    Returns:
        The bounds, in nats.

    Raises:
        SignalpropError: where there are no blocks.
    """
    if not len(branches):
        raise SignalpropError("a certificate needs at least one residual block")
    first = np.stack([_first(branch) for branch in branches])
    if errors is not None:
        first = first + np.stack([_first(error) for error in errors])
    safe = first < 1
    low = np.log1p(-np.where(safe, first, 0.0)).sum(0)
    return Certificate(
        blocks=len(branches),
        log_low=np.where(safe.all(0), low, -np.inf),
        log_high=np.log1p(first).sum(0),
    )


def ones_at_least(n: int, ranks: Iterable[int]) -> int:
    """How many singular values of prod(I + X_l) equal 1 exactly: n - 2 sum r_l, or 0.

    J - I has rank R <= sum r_l, and Fan gives s_(R+1)(J) <= 1 <= s_(n-R)(J).

    Args:
        n: width.
        ranks: of the branches.

    Returns:
        At least that many.
    """
    return max(0, n - 2 * sum(ranks))


def _array(values: Values) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _first(values: Values) -> np.ndarray:
    """(samples,) or the first of (samples, n)."""
    found = _array(values)
    return found if found.ndim < 2 else found[..., 0]
