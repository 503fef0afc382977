"""What was measured of Jacobians, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from signalprop._views import Viewable
from signalprop.capture.trace import plain


@dataclass(frozen=True)
class Estimate:
    """A number per sample, and how far it may be off.

    Attributes:
        value: (samples,).
        error: one standard error, or a bound where the way there is exact; (samples,).
    """

    value: np.ndarray
    error: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the samples."""
        return float(np.mean(self.value))


@dataclass(frozen=True)
class Distribution:
    """How all n singular values on the input side are distributed, by Lanczos quadrature.

    Attributes:
        shares: of the values, increasing, (q,).
        quantiles: the s below which that share lies, (samples, q).
        errors: standard error over the probes, (samples, q).
        zero: share of the values that is zero, (samples,).
    """

    shares: np.ndarray
    quantiles: np.ndarray
    errors: np.ndarray
    zero: np.ndarray


@dataclass(frozen=True)
class Spectrum:
    """Singular values of d of / d wrt, per sample.

    Attributes:
        of: the site nearer to the output, `rows` elements per sample.
        wrt: the site nearer to the input, `columns` elements per sample.
        rows: m.
        columns: n.
        values: the largest, largest first, (samples, k).
        errors: how far each may be off, in its own units, (samples, k).
        smallest: the smallest, smallest first, (samples, j); no columns where not asked for.
        whole: whether `values` holds all min(m, n) of them.
        resolution: singular values below this are lost in the rounding of the larger ones,
            (samples,).
        frobenius: ||J||_F.
        fourth: sum of s^4, for the spread of s^2.
        method: how it was measured, in words.
        distribution: of all values, where it was asked for and `whole` does not give it.
    """

    of: str
    wrt: str
    rows: int
    columns: int
    values: np.ndarray
    errors: np.ndarray
    smallest: np.ndarray
    whole: bool
    resolution: np.ndarray
    frobenius: Estimate
    fourth: Estimate
    method: str
    distribution: Distribution | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.values)

    @property
    def largest(self) -> np.ndarray:
        """s_1 of every sample, the spectral norm."""
        return self.values[:, 0]

    @property
    def mean_square(self) -> np.ndarray:
        """||J||_F^2 / n: by what an error signal's mean square is multiplied on its way."""
        return self.frobenius.value**2 / self.columns

    @property
    def log_volume(self) -> np.ndarray | None:
        """Sum of ln s_i over all min(m, n), ln |det J| of a square J; None unless `whole`.

        A value that is lost in rounding counts with the resolution, so it is an upper bound there.
        """
        if not self.whole:
            return None
        with np.errstate(divide="ignore"):
            return np.log(np.maximum(self.values, self.resolution[:, None])).sum(axis=1)

    @property
    def condition(self) -> np.ndarray | None:
        """s_1 / s_min; inf where s_min is lost in rounding; None unless it is known."""
        least = self.values[:, -1] if self.whole else None
        if self.smallest.shape[1]:
            least = self.smallest[:, 0]
        if least is None:
            return None
        lost = least <= self.resolution
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(lost, np.inf, self.largest / least)

    @property
    def distortion(self) -> np.ndarray:
        """How far J is from a multiple of an isometry, 0 where it is one.

        ||J^T J / (||J||_F^2 / n) - I||_F / sqrt(n) = sqrt(n sum s^4 / (sum s^2)^2 - 1), with n the
        smaller of the two sides: the coefficient of variation of s^2.
        """
        n = min(self.rows, self.columns)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = n * self.fourth.value / self.frobenius.value**4
        return np.sqrt(np.maximum(ratio - 1, 0.0))

    @property
    def angle(self) -> np.ndarray | None:
        """By how many degrees two orthogonal directions are turned towards each other at worst.

        arcsin((k^2 - 1) / (k^2 + 1)) with k the condition number (Wielandt's inequality); 90 where
        a direction is lost; None unless the condition is known, or where J loses directions because
        it has fewer rows than columns.
        """
        condition = self.condition
        if condition is None:
            return None
        inverse = 1 / condition**2
        return np.degrees(np.arcsin((1 - inverse) / (1 + inverse)))

    def quantiles(self, at: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> list[float]:
        """Quantiles of the values that are known, over all samples."""
        return [float(q) for q in np.quantile(self.values, at)]


@dataclass(frozen=True)
class BlockSpectrum:
    """The Jacobian of one block of the spine.

    Attributes:
        start: the site at the input end.
        end: the site at the output end.
        residual: whether the block adds its input to a branch, J = I + X.
        spectrum: of J.
        branch: of X, for a residual block; else None.
    """

    start: str
    end: str
    residual: bool
    spectrum: Spectrum
    branch: Spectrum | None


@dataclass(frozen=True)
class DeepSpectrum:
    """The log-spectrum of the whole product of blocks, by QR sweeps.

    Attributes:
        sites: the spine sites that the sweeps stop at, from the input end up.
        log_values: ln s_i, largest first, -inf where exactly zero, (samples, r).
        errors: how far each may be off, in nats, (samples, r).
        profile: running sum of ln |R_ii| over depth, (samples, len(sites), r): how every direction
            fares from the input up; None where it was not asked for.
        whole: whether all singular values are there.
        sweeps: how many sweeps were made.
    """

    sites: tuple[str, ...]
    log_values: np.ndarray
    errors: np.ndarray
    profile: np.ndarray | None
    whole: bool
    sweeps: int


@dataclass(frozen=True)
class Certificate:
    """What every block by itself promises for the singular values of their product.

    prod(1 - s_1(X_l)) <= s_min(J) <= s_max(J) <= prod(1 + s_1(X_l)) over residual blocks; a block
    without a skip counts with its own smallest and largest singular value.

    Attributes:
        blocks: how many residual blocks there are.
        log_low: ln of the lower bound, -inf where there is none: a branch has s_1(X) >= 1, a block
            loses a direction, or its smallest singular value is not known, (samples,).
        log_high: ln of the upper bound, (samples,).
    """

    blocks: int
    log_low: np.ndarray
    log_high: np.ndarray


@dataclass(frozen=True, repr=False)
class Spectra(Viewable):
    """The Jacobians of one network.

    Attributes:
        model: class name of the model.
        samples: number of samples that they were taken of.
        between: the Jacobian that was asked for.
        blocks: those of the blocks of the spine between its two ends, from the input up.
        deep: the log-spectrum of their product; None where there are fewer than two blocks.
        certificate: what the blocks by themselves promise; None without residual ones.
        skipped: blocks that could not be measured -> why.
        notes: what the reader has to know, as sentences.
    """

    model: str
    samples: int
    between: Spectrum
    blocks: tuple[BlockSpectrum, ...]
    deep: DeepSpectrum | None
    certificate: Certificate | None
    skipped: Mapping[str, str]
    notes: tuple[str, ...]

    def frame(self) -> Any:
        """One row per block, as a pandas DataFrame: medians over the samples."""
        import pandas as pd

        return pd.DataFrame([_row(block) for block in self.blocks]).set_index("end")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for json; arrays as lists, what is not finite as a word."""
        return plain(self)


def _row(block: BlockSpectrum) -> dict[str, Any]:
    s = block.spectrum
    middle = lambda x: math.nan if x is None else float(np.median(x))  # noqa: E731
    return {
        "start": block.start,
        "end": block.end,
        "residual": block.residual,
        "rows": s.rows,
        "columns": s.columns,
        "largest": middle(s.largest),
        "mean_square": middle(s.mean_square),
        "condition": middle(s.condition),
        "distortion": middle(s.distortion),
        "log_volume": middle(s.log_volume),
        "branch_norm": middle(block.branch.largest if block.branch else None),
        "method": s.method,
    }
