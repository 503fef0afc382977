"""The numbers kept of a tensor, reduced where it lies, with no wait for the device.

Sums run in float64 (float32 where a device has none): a delta of 1e-25 squares to zero
in float32, and the nets this tool is for have such deltas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: samples used for the effective rank: a Gram matrix of 32 x 32 costs 1/8 of one of 256 x 32
RANK_SAMPLES = 32
#: elements converted to float64 at a time, which bounds the memory of a traced pass
CHUNK = 1 << 22
#: a saturated entry has less than this share of the activation's largest slope
SATURATED_SLOPE = 0.05
#: a unit is saturated when this share of its observations is
SATURATED_OBSERVATIONS = 0.75


@dataclass(frozen=True)
class ActivationStats:
    """What was measured of one activation tensor `a`, over one batch.

    Attributes:
        rms: root mean square over all elements.
        mean: mean over all elements.
        variance: variance over all elements (population).
        zeros: share of elements that are exactly zero.
        effective_rank: participation ratio (sum s^2)^2 / sum s^4 of the singular values of the
            first 32 samples, each scaled to unit length; between 1 (all parallel) and their number.
        cosine: mean cosine between two samples of the batch; nan with a single sample.
        token_cosine: mean cosine between two positions of one sample, for (batch, tokens,
            features) tensors on a residual stream or after a normalisation, else None.
        saturated: share of units that are saturated in 3/4 of their observations, for activations
            with a bounded range, else None.
        dead: share of units that are zero for every observation, for rectifiers, else None.
        units: number of units that `dead` and `saturated` count, else None.
        finite: whether every element is finite.
    """

    rms: float
    mean: float
    variance: float
    zeros: float
    effective_rank: float
    cosine: float
    token_cosine: float | None
    saturated: float | None
    dead: float | None
    units: int | None
    finite: bool


@dataclass(frozen=True)
class DeltaStats:
    """What was measured of one error signal `delta = dL/da`, over one batch.

    Attributes:
        rms: root mean square over all elements.
        geometric_mean: exp of the mean over samples of ln rms(delta of the sample); samples
            whose delta is zero are left out.
        zeros: share of elements that are exactly zero.
        alive: share of samples whose delta is not exactly zero.
        cosine: mean cosine between the deltas of two samples; nan with a single sample.
        finite: whether every element is finite.
    """

    rms: float
    geometric_mean: float
    zeros: float
    alive: float
    cosine: float
    finite: bool


def accumulator(device: torch.device) -> torch.dtype:
    """The widest floating dtype a device can add in."""
    return torch.float32 if device.type == "mps" else torch.float64


def by_sample(x: Tensor, batch: int, batch_dim: int = 0) -> Tensor:
    """`x` as (samples, features); one row where no dimension is the batch.

    A first dimension that is a multiple of the batch (tokens folded into rows) is unfolded.
    """
    if x.is_complex():
        x = torch.view_as_real(x)
    if x.ndim == 0:
        return x.reshape(1, 1)
    if x.ndim > batch_dim and x.shape[batch_dim] == batch:
        return x.movedim(batch_dim, 0).reshape(batch, -1) if batch_dim else x.reshape(batch, -1)
    if x.shape[0] == batch:
        return x.reshape(batch, -1)
    if x.ndim > 1 and x.shape[1] == batch:
        return x.transpose(0, 1).reshape(batch, -1)
    if batch > 1 and x.ndim > 1 and x.shape[0] > batch and x.shape[0] % batch == 0:
        return x.reshape(batch, -1)
    return x.reshape(1, -1)


def _wide_parts(flat: Tensor) -> list[Tensor] | tuple[Tensor, ...]:
    wide = accumulator(flat.device)
    if flat.numel() <= CHUNK:
        return (flat.to(wide),)
    # a list comprehension would hold every part at once
    return _Parts(flat, max(1, CHUNK // flat.shape[0]), wide)  # type: ignore[return-value]


class _Parts:
    """Column slices of a large tensor, each widened only while it is looked at."""

    def __init__(self, flat: Tensor, columns: int, dtype: torch.dtype) -> None:
        self.flat, self.columns, self.dtype = flat, columns, dtype

    def __iter__(self):
        for part in self.flat.split(self.columns, dim=1):
            yield part.to(self.dtype)


def _norms(parts) -> Tensor:
    """L2 norm of every row, (samples,)."""
    norms = [torch.linalg.vector_norm(part, dim=1) for part in parts]
    if len(norms) == 1:
        return norms[0]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)


def _resultant(parts, inverse_norms: Tensor) -> Tensor:
    """Squared length of the sum of all rows, each scaled to unit length."""
    total: Tensor | None = None
    for part in parts:
        squared = (inverse_norms @ part).square().sum()
        total = squared if total is None else total + squared
    assert total is not None
    return total


def _inverse(norms: Tensor) -> Tensor:
    return torch.where(norms > 0, norms.reciprocal(), 0.0)


def activation_scalars(flat: Tensor) -> list[Tensor]:
    """[mean, mean square, non-zeros, resultant, live rows, sum of G^2, rank rows] of (n, d)."""
    parts = _wide_parts(flat)
    norms = _norms(parts)
    mean = flat.mean(dtype=accumulator(flat.device))
    inverse = _inverse(norms)
    resultant = _resultant(parts, inverse)
    live = torch.count_nonzero(inverse)
    few = flat[:RANK_SAMPLES]
    narrow = few if few.dtype in (torch.float32, torch.float64) else few.float()
    # inverse norms first: rows of 1e-25 must not underflow in the product
    unit = narrow * inverse[:RANK_SAMPLES, None].to(narrow.dtype)
    gram = unit @ unit.T
    return [
        mean,
        norms.square().sum() / max(flat.numel(), 1),
        torch.count_nonzero(flat),
        resultant,
        live,
        gram.square().sum(),
        gram.diagonal().sum(),
    ]


def row_norms(flat: Tensor) -> Tensor:
    """L2 norm of every row of a delta, (samples,)."""
    return _norms(_wide_parts(flat))


def delta_scalars(flat: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Row norms (n,) and [mean square, non-zeros, resultant] of a delta (n, d)."""
    parts = _wide_parts(flat)
    norms = _norms(parts)
    resultant = _resultant(parts, _inverse(norms))
    return norms, [
        norms.square().sum() / max(flat.numel(), 1),
        torch.count_nonzero(flat),
        resultant,
    ]


def mean_cosine(resultant: float, rows: int) -> float:
    """Mean pairwise cosine from the squared length of the sum of `rows` unit vectors."""
    if rows < 2:
        return math.nan
    return (resultant - rows) / (rows * (rows - 1))


def token_cosine(x: Tensor) -> Tensor:
    """Mean over samples of the mean cosine between two of a sample's tokens; x (b, t, d)."""
    wide = x.to(accumulator(x.device)) if x.numel() <= CHUNK else x.float()
    norms = torch.linalg.vector_norm(wide, dim=2)
    total = torch.einsum("btd,bt->bd", wide, _inverse(norms))
    tokens = x.shape[1]
    return ((total.square().sum(1) - tokens) / (tokens * (tokens - 1))).mean()


def _by_unit(x: Tensor, unit_dim: int) -> Tensor:
    """`x` as (observations, units)."""
    return x.movedim(unit_dim, -1).reshape(-1, x.shape[unit_dim])


def dead_units(x: Tensor, unit_dim: int) -> Tensor:
    """How many units are not above zero for any observation."""
    return (_by_unit(x, unit_dim).amax(0) <= 0).sum()


def saturated_units(x: Tensor, op: str, unit_dim: int) -> Tensor:
    """How many units have lost their slope in 3/4 of their observations, told from the output."""
    y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    match op:
        case "sigmoid":
            slope = 4 * y * (1 - y)
        case "tanh":
            slope = 1 - y.square()
        case "erf":
            slope = torch.exp(-torch.erfinv(y).square())
        case "softsign":
            slope = (1 - y.abs()).square()
        case "hardsigmoid":
            slope = ((y > 0) & (y < 1)).to(y.dtype)
        case _:  # hardtanh, whatever its limits: the ends are where the values pile up
            slope = ((y > y.min()) & (y < y.max())).to(y.dtype)
    share = _by_unit((slope < SATURATED_SLOPE).to(torch.float32), unit_dim).mean(0)
    return (share > SATURATED_OBSERVATIONS).sum()
