"""The numbers kept of a tensor, reduced where it lies, with no wait for the device.

Sums are right over the range of float64 (float32 where a device has no other): a delta of 1e-25
squares to zero in float32, and the nets this tool is for have such deltas.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

#: samples used for the effective rank, whose Gram matrix is the dearest of the statistics
RANK_SAMPLES = 12
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
            first 12 samples, each scaled to unit length; between 1 (all parallel) and their number.
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

    Returns:
        A view where possible; complex numbers count as two features.
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


def is_folded(x: Tensor, batch: int, batch_dim: int = 0) -> bool:
    """Whether `by_sample` has to guess which rows belong to a sample."""
    if batch in x.shape[:2] or (x.ndim > batch_dim and x.shape[batch_dim] == batch):
        return False
    return batch > 1 and x.ndim > 1 and x.shape[0] > batch and x.shape[0] % batch == 0


# ---- two ways to add ---------------------------------------------------------------------------
# On a CPU a float32 reduction is seven times quicker than one that widens first, and looking at
# its result costs nothing, so float32 is tried, the small rest is done in numpy, and the rare
# tensor out of float32's range is widened. On other devices a look would make the device wait: all
# is widened, and what comes out stays there.

Scalar = Tensor | float
T = TypeVar("T")

#: row norms within these bounds are exact to float32: no square has under- or overflowed
_SAFE_LOW, _SAFE_HIGH = 1e-14, 1e15
#: where 1 - cosine is below this, it is taken in float64
_NEARLY_ONE = 1e-3
#: float32 sums of squares go wrong in the fifth digit beyond some ten thousand terms
_RUN = 4096
#: below this share of the mean square the variance is too small for float32 sums
_SAFE_VARIANCE = 1e-3


def _quick_norms(flat: Tensor) -> np.ndarray | None:
    """Row norms in float32, exact to six digits unless squares under- or overflow."""
    if flat.dtype is not torch.float32 or flat.device.type != "cpu" or flat.numel() > CHUNK:
        return None
    width = flat.shape[1]
    if width <= _RUN:
        return torch.linalg.vector_norm(flat, dim=1).numpy().astype(np.float64)
    whole = width - width % _RUN
    runs = torch.linalg.vector_norm(flat[:, :whole].unflatten(1, (-1, _RUN)), dim=2)
    squares = (runs.numpy().astype(np.float64) ** 2).sum(1)
    if whole < width:
        rest = torch.linalg.vector_norm(flat[:, whole:], dim=1).numpy().astype(np.float64)
        squares += rest**2
    return np.sqrt(squares)


def _safe_norms(flat: Tensor) -> np.ndarray | None:
    """Row norms by the quick way; None where it must not be taken."""
    norms = _quick_norms(flat)
    safe = norms is not None and norms.min() > _SAFE_LOW and norms.max() < _SAFE_HIGH
    return norms if safe else None


def _parts(flat: Tensor) -> Iterator[Tensor]:
    """The columns in slices of bounded size, each widened only while it is looked at."""
    wide = accumulator(flat.device)
    if flat.numel() <= CHUNK:
        yield flat.to(wide)
        return
    for part in flat.split(max(1, CHUNK // flat.shape[0]), dim=1):
        yield part.to(wide)


def _wide_norms(flat: Tensor) -> Tensor:
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in _parts(flat)])
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(norms, dim=0)


def row_norms(flat: Tensor) -> Tensor:
    """L2 norm of every row of (samples, features), in the widest dtype."""
    safe = _safe_norms(flat)
    return torch.from_numpy(safe) if safe is not None else _wide_norms(flat)


def norm(x: Tensor) -> Scalar:
    """L2 norm of all elements."""
    if x.is_sparse:
        x = x.coalesce().values()
    if x.is_complex():
        x = torch.view_as_real(x)
    if x.dtype is torch.float32 and x.device.type == "cpu" and x.numel() <= 1 << 16:
        line = x.reshape(-1)
        square = float(line.dot(line))
        if _SAFE_LOW**2 < square < _SAFE_HIGH**2:
            return math.sqrt(square)
    flat = x.reshape(len(x), -1) if x.ndim > 1 else x.reshape(1, -1)
    rows = _quick_norms(flat)
    if rows is not None:
        whole = math.sqrt(float(rows @ rows))
        if _SAFE_LOW < whole < _SAFE_HIGH:  # a row too small to be exact adds nothing
            return whole
    return torch.linalg.vector_norm(_wide_norms(flat))


def mean(x: Tensor) -> Tensor:
    """Mean of all elements."""
    parts = [part.mean() * part.numel() for part in _parts(x.reshape(1, -1))]
    return torch.stack(parts).sum() / x.numel()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (population) of all elements, in two passes."""
    average = mean(x)
    squares = [(part - average).square().sum() for part in _parts(x.reshape(1, -1))]
    return average, (torch.stack(squares).sum() / x.numel()).sqrt()


def _zeros_quickly(flat: Tensor) -> int:
    # numpy compares and counts in a fifth of the time that torch needs
    return int(np.count_nonzero(flat.numpy() == 0))


def _full_precision(function: Callable[[Tensor], T]) -> Callable[[Tensor], T]:
    """The products of a statistic must not be taken in the low precision of a user's autocast."""

    @functools.wraps(function)
    def outside_autocast(x: Tensor) -> T:
        if not torch.is_autocast_enabled(x.device.type):
            return function(x)
        with torch.autocast(x.device.type, enabled=False):
            return function(x)

    return outside_autocast


@_full_precision
def activation_scalars(flat: Tensor) -> list[Scalar]:
    """[mean, mean square, zeros, resultant, live rows, sum of G^2, trace of G] of (n, d).

    The resultant is the squared length of the sum of all rows, each scaled to unit length; G is
    the Gram matrix of the first rows, scaled so too.

    Returns:
        Numbers, or scalars on the tensor's device.
    """
    norms = _safe_norms(flat)
    if norms is None:
        return _wide_activation_scalars(flat)
    n = flat.numel()
    square = float(norms @ norms) / n
    inverse = 1 / norms
    few = flat[:RANK_SAMPLES]
    runs = few.split(_RUN, dim=1) if few.shape[1] > 4 * _RUN else (few,)
    grams = np.stack([(run @ run.T).numpy() for run in runs])
    gram: np.ndarray = grams.sum(axis=0, dtype=np.float64)
    scale = 1 / gram.diagonal()
    resultant, average = _sums_quickly(flat, inverse)
    if square - average * average < _SAFE_VARIANCE * square:
        average = float(mean(flat))
    return [
        average,
        square,
        _zeros_quickly(flat),
        resultant,
        len(norms),
        float(scale @ (gram * gram) @ scale),
        len(few),
    ]


def _sums_quickly(flat: Tensor, inverse: np.ndarray) -> tuple[float, float]:
    """Resultant and mean; both are sums over the rows, so that one reading does for both."""
    rows = np.ones((2, len(inverse)), dtype=np.float32)
    rows[0] = inverse
    unit, plain = torch.from_numpy(rows) @ flat
    return _exact_if_near(float(unit.dot(unit)), flat, inverse), float(plain.sum()) / flat.numel()


def _resultant_quickly(flat: Tensor, inverse: np.ndarray) -> float:
    total = torch.from_numpy(inverse.astype(np.float32)) @ flat
    return _exact_if_near(float(total.dot(total)), flat, inverse)


def _exact_if_near(resultant: float, flat: Tensor, inverse: np.ndarray) -> float:
    """Where the samples are all but alike, how much so is below float32's last digit."""
    n = len(inverse)
    if n > 1 and n * n - resultant < _NEARLY_ONE * n * n:
        return float(_wide_resultant(flat, 1 / _wide_norms(flat)))
    return resultant


def _wide_activation_scalars(flat: Tensor) -> list[Scalar]:
    norms = _wide_norms(flat)
    inverse = torch.where(norms > 0, norms.reciprocal(), 0.0)
    gram = _unit_gram(flat[:RANK_SAMPLES]).to(norms.dtype)
    return [
        mean(flat),
        norms.square().sum() / flat.numel(),
        flat.numel() - torch.count_nonzero(flat),
        _wide_resultant(flat, inverse),
        torch.count_nonzero(inverse),
        gram.square().sum(),
        gram.trace(),
    ]


def _unit_gram(few: Tensor) -> Tensor:
    """Gram matrix of the rows at unit length, however small or large they are."""
    few = few if few.dtype in (torch.float32, torch.float64) else few.float()
    for scale in (few.abs().amax(1), None):  # to a safe range first, then to unit length
        scale = torch.linalg.vector_norm(few, dim=1) if scale is None else scale
        few = few / torch.where(scale > 0, scale, 1.0)[:, None]
    return few @ few.T


def _wide_resultant(flat: Tensor, inverse: Tensor) -> Tensor:
    return torch.stack([(inverse @ part).square().sum() for part in _parts(flat)]).sum()


@_full_precision
def delta_scalars(flat: Tensor) -> tuple[Tensor, list[Scalar]]:
    """Row norms (n,) and [mean square, zeros, resultant] of a delta (n, d)."""
    norms = _safe_norms(flat)
    if norms is not None:
        square = float(norms @ norms) / flat.numel()
        resultant = _resultant_quickly(flat, 1 / norms)
        return torch.from_numpy(norms), [square, _zeros_quickly(flat), resultant]
    wide = _wide_norms(flat)
    inverse = torch.where(wide > 0, wide.reciprocal(), 0.0)
    zeros = flat.numel() - torch.count_nonzero(flat)
    return wide, [wide.square().sum() / flat.numel(), zeros, _wide_resultant(flat, inverse)]


def mean_cosine(resultant: float, rows: int) -> float:
    """Mean pairwise cosine from the squared length of the sum of `rows` unit vectors."""
    if rows < 2:
        return math.nan
    return (resultant - rows) / (rows * (rows - 1))


@_full_precision
def token_cosine(x: Tensor) -> Tensor:
    """Mean over samples of the mean cosine between two of a sample's tokens; x (b, t, d)."""
    wide = x.to(accumulator(x.device)) if x.numel() <= CHUNK else x.float()
    norms = torch.linalg.vector_norm(wide, dim=2)
    inverse = torch.where(norms > 0, norms.reciprocal(), 0.0)
    total = torch.einsum("btd,bt->bd", wide, inverse).square().sum(1)
    live = torch.count_nonzero(norms, dim=1)  # a padded token may be zero
    pairs = live * (live - 1)
    return ((total - live) / torch.where(pairs > 0, pairs, torch.nan)).nanmean()


def dead_units(x: Tensor, unit_dim: int) -> Tensor:
    """How many units are not above zero for any observation."""
    others = [d for d in range(x.ndim) if d != unit_dim]
    if x.device.type == "cpu" and len(x) > 8 and bool((x[:8].amax(others) > 0).all()):
        return torch.tensor(0)  # a few samples have seen every unit alive
    return (x.amax(others) <= 0).sum()


#: |output| beyond which the slope is below SATURATED_SLOPE of its largest
_ENDS = {
    "sigmoid": math.sqrt(1 - SATURATED_SLOPE),  # of 2 y - 1: slope 4 y (1 - y) = 1 - (2 y - 1)^2
    "tanh": math.sqrt(1 - SATURATED_SLOPE),
    "softsign": 1 - math.sqrt(SATURATED_SLOPE),
    "erf": math.erf(math.sqrt(-math.log(SATURATED_SLOPE))),
}


def saturated_units(x: Tensor, op: str, unit_dim: int) -> Tensor:
    """How many units have lost their slope in 3/4 of their observations, told from the output."""
    if op in _ENDS:
        flat = (2 * x - 1 if op == "sigmoid" else x).abs() > _ENDS[op]
    elif op == "hardsigmoid":
        flat = (x <= 0) | (x >= 1)
    else:  # hardtanh, whatever its limits: the ends are where the values pile up
        flat = (x <= x.min()) | (x >= x.max())
    others = [d for d in range(x.ndim) if d != unit_dim]
    return (flat.to(torch.float32).mean(others) > SATURATED_OBSERVATIONS).sum()
