"""What is known of singular values without measuring them.

Sources: Fan 1951, Maximum properties and inequalities for the eigenvalues of completely continuous
operators: s_(i+j-1)(A + B) <= s_i(A) + s_j(B); Horn & Johnson, Topics in Matrix Analysis, 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from signalprop.jacobian.spectra import BlockSpectrum, Certificate, Spectrum


@dataclass(frozen=True)
class Band:
    """Between what the singular values of I + X ought to lie.

    Attributes:
        low: (..., n), for s_i(I + X), largest first; below 0 it says nothing.
        high: (..., n).
    """

    low: np.ndarray
    high: np.ndarray


def printed_band(branch: np.ndarray) -> Band:
    """1 - s_i(X) <= s_i(I + X) <= 1 + s_i(X), as it is often printed.

    The upper half is true. The lower half is not: X = diag(-1, 0) has s(X) = (1, 0) and s(I + X) =
    (1, 0), and 1 - s_2(X) = 1 > s_2(I + X) = 0.

    Args:
        branch: s_i(X) of a square X, largest first, (..., n).

    Returns:
        The band.
    """
    return Band(1 - branch, 1 + branch)


def ky_fan_band(branch: np.ndarray) -> Band:
    """1 - s_(n-i+1)(X) <= s_i(I + X) <= 1 + s_i(X), with the right index.

    From Fan's inequality, once with A = I and B = X, once with A = I + X and B = -X. Both ends are
    attained, the lower one by X = -diag.

    Args:
        branch: s_i(X) of a square X, all of them, largest first, (..., n).

    Returns:
        The band.
    """
    return Band(1 - branch[..., ::-1], 1 + branch)


def weyl_band(branch: np.ndarray) -> Band:
    """1 - s_1(X) <= s_i(I + X) <= 1 + s_i(X): needs only the largest values of X.

    Args:
        branch: the k largest s_i(X), (..., k).

    Returns:
        The band, for the k largest of I + X.
    """
    return Band(np.broadcast_to(1 - branch[..., :1], branch.shape), 1 + branch)


def certificate(blocks: Sequence[BlockSpectrum]) -> Certificate | None:
    """Bounds on a product from each block by itself: ||(I + X) v|| >= (1 - s_1(X)) ||v||.

    A block without a skip counts with its own smallest and largest singular value. Errors of
    estimates widen it. s_min(AB) >= s_min(A) s_min(B) needs widths that only grow or only shrink:
    else one of the two can lose what the other keeps.

    Args:
        blocks: from the input end up.

    Returns:
        The bounds, in nats; None without a residual block.
    """
    residual = sum(block.branch is not None for block in blocks)
    if not residual:
        return None
    low, high = np.zeros((2, blocks[0].spectrum.samples))
    with np.errstate(divide="ignore", invalid="ignore"):
        for block in blocks:
            own = block.spectrum
            if block.branch is None:
                low = low + np.log(_least(own))
                high = high + np.log(own.largest + own.errors[:, 0])
            else:
                norm = block.branch.largest + block.branch.errors[:, 0]
                low = low + np.log1p(-np.minimum(norm, 1))
                high = high + np.log1p(norm)
    widths = [blocks[0].spectrum.columns, *(block.spectrum.rows for block in blocks)]
    if widths not in (sorted(widths), sorted(widths, reverse=True)):
        low = np.full_like(low, -np.inf)
    return Certificate(residual, low, high)


def _least(found: Spectrum) -> np.ndarray:
    """The smallest singular value; 0 where it is not known, or lost in rounding."""
    least = found.values[:, -1] if found.whole else np.zeros(found.samples)
    if found.smallest.shape[1]:
        least = found.smallest[:, 0]
    return np.where(least > found.resolution, least, 0.0)
