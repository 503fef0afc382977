"""The numbers kept of a tensor, reduced where it lies, with no wait for the device.

Sums are right over the range of float64 (float32 where a device has no other): a delta of 1e-25
squares to zero in float32, and the nets this tool is for have such deltas.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from signalprop.capture import quick

#: samples that are compared with each other, which is the dearest of the statistics
COMPARED = 12
#: elements converted to float64 at a time, which bounds the memory of a traced pass
CHUNK = 1 << 22
#: a saturated entry has less than this share of the activation's largest slope
SATURATED_SLOPE = 0.05
#: a unit is saturated when this share of its observations is
SATURATED_OBSERVATIONS = 0.75


@dataclass(frozen=True)
class ActivationStats:
    """What was measured of one activation tensor `a`, over one batch.

    Samples are compared with each other among 12 that are spread evenly over the batch.

    Attributes:
        rms: root mean square over all elements.
        mean: mean over all elements.
        variance: variance over all elements (population).
        zeros: share of elements that are exactly zero.
        effective_rank: participation ratio (sum s^2)^2 / sum s^4 of the singular values of 12
            samples, each scaled to unit length; between 1 (all parallel) and their number.
        cosine: mean cosine between two of these samples; nan with a single sample.
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
        cosine: mean cosine between the deltas of two of 12 samples; nan with a single sample.
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
        x = torch.view_as_real(x.resolve_conj())
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
# float32 on a CPU is added in numpy, where looking at an answer costs nothing, and the rare tensor
# out of its range widened. On other devices a look would make the device wait: all is widened
# there, and what comes out stays there.

Scalar = Tensor | float
Norms = Tensor | np.ndarray
T = TypeVar("T")

#: where 1 - cosine is below this, it is taken in float64
_NEARLY_ONE = 1e-3
#: below this share of the mean square the variance is too small for float32 sums
_SAFE_VARIANCE = 1e-3


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


def row_norms(flat: Tensor) -> Norms:
    """L2 norm of every row of (samples, features), in the widest dtype."""
    found = quick.row_norms(flat)
    return found if found is not None else _wide_norms(flat)


def fetched(norms: Sequence[Norms]) -> list[np.ndarray]:
    """Norms on a device, brought over in one go, and the others as they are."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for found in norms:
        if isinstance(found, Tensor):
            by_device.setdefault(found.device, []).append(found)
    here = {
        device: iter(torch.cat(found).cpu().to(torch.float64).split([len(x) for x in found]))
        for device, found in by_device.items()
    }
    return [next(here[x.device]).numpy() if isinstance(x, Tensor) else x for x in norms]


def norm(x: Tensor) -> Scalar:
    """L2 norm of all elements."""
    if x.is_sparse:
        x = x.coalesce().values()
    if x.is_complex():
        x = torch.view_as_real(x)
    x = x.detach()
    found = quick.norm(x)
    return found if found is not None else torch.linalg.vector_norm(_wide_norms(x.reshape(1, -1)))


def mean(x: Tensor) -> Tensor:
    """Mean of all elements."""
    parts = [part.mean() * part.numel() for part in _parts(x.reshape(1, -1))]
    return torch.stack(parts).sum() / x.numel()


def count(mask: Tensor) -> int:
    """How many elements are true; torch's own sum widens each of them first."""
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else mask.sum())


def moments(x: Tensor) -> tuple[Scalar, Scalar]:
    """Mean and standard deviation (population) of all elements, in two passes."""
    if x.device.type == "cpu" and x.numel() <= CHUNK and x.dtype is not torch.bfloat16:
        wide = x.numpy().astype(np.float64)
        with np.errstate(all="ignore"):
            return float(wide.mean()), float(wide.std())
    average = mean(x)
    squares = [(part - average).square().sum() for part in _parts(x.reshape(1, -1))]
    return average, (torch.stack(squares).sum() / x.numel()).sqrt()


def _full_precision(function: Callable[[Tensor], T]) -> Callable[[Tensor], T]:
    """The products of a statistic must not be taken in the low precision of a user's autocast."""

    @functools.wraps(function)
    def outside_autocast(x: Tensor) -> T:
        if not torch.is_autocast_enabled(x.device.type):
            return function(x)
        with torch.autocast(x.device.type, enabled=False):
            return function(x)

    return outside_autocast


def compared(rows: int) -> slice:
    """The samples that are compared: spread over the batch, which may be sorted by class."""
    step = max(1, rows // COMPARED)
    return slice(0, COMPARED * step, step)


@_full_precision
def activation_scalars(flat: Tensor) -> list[Scalar]:
    """[mean, mean square, zeros, resultant, live rows, sum of G^2] of (n, d).

    G is the Gram matrix of the compared rows, scaled to unit length; the resultant is the sum of
    its elements, the live rows are those of them that are not zero.

    Returns:
        Numbers, or scalars on the tensor's device.
    """
    some = compared(len(flat))
    sums = quick.sums(flat, total=True)
    if sums is None:
        return _wide_activation_scalars(flat, some)
    norms, nothing, total = sums
    n = flat.numel()
    square = float(norms @ norms) / n
    average = total / n
    if square - average * average < _SAFE_VARIANCE * square:
        average = float(mean(flat))
    few, norms = flat[some], norms[some]
    gram = quick.gram(few, norms)
    live = int(np.count_nonzero(norms))
    resultant = _exact_if_near(float(gram.sum()), few, live)
    return [average, square, nothing, resultant, live, float(np.vdot(gram, gram))]


def _exact_if_near(resultant: float, few: Tensor, live: int) -> float:
    """Where the samples are all but alike, how much so is below float32's last digit."""
    if live > 1 and live * live - resultant < _NEARLY_ONE * live * live:
        return float(_wide_resultant(few, _inverse(_wide_norms(few))))
    return resultant


def _wide_activation_scalars(flat: Tensor, some: slice) -> list[Scalar]:
    norms = _wide_norms(flat)
    few, inverse = flat[some], _inverse(norms[some])
    gram = _unit_gram(few).to(norms.dtype)
    return [
        mean(flat),
        norms.square().sum() / flat.numel(),
        flat.numel() - torch.count_nonzero(flat),
        _wide_resultant(few, inverse),
        torch.count_nonzero(inverse),
        gram.square().sum(),
    ]


def _unit_gram(few: Tensor) -> Tensor:
    """Gram matrix of the rows at unit length, however small or large they are."""
    few = few if few.dtype in (torch.float32, torch.float64) else few.float()
    for scale in (few.abs().amax(1), None):  # to a safe range first, then to unit length
        scale = torch.linalg.vector_norm(few, dim=1) if scale is None else scale
        few = few / torch.where(scale > 0, scale, 1.0)[:, None]
    return few @ few.T


def _inverse(norms: Tensor) -> Tensor:
    return torch.where(norms > 0, norms.reciprocal(), 0.0)


def _wide_resultant(flat: Tensor, inverse: Tensor) -> Tensor:
    return torch.stack([(inverse @ part).square().sum() for part in _parts(flat)]).sum()


@_full_precision
def delta_scalars(flat: Tensor) -> tuple[Norms, list[Scalar]]:
    """Row norms (n,) and [mean square, zeros, resultant, live rows] of a delta (n, d)."""
    some = compared(len(flat))
    sums = quick.sums(flat, total=False)
    if sums is not None:
        norms, nothing, _ = sums
        few, known = flat[some], norms[some]
        live = int(np.count_nonzero(known))
        resultant = _exact_if_near(quick.resultant(few, known), few, live)
        return norms, [float(norms @ norms) / flat.numel(), nothing, resultant, live]
    wide = _wide_norms(flat)
    inverse = _inverse(wide[some])
    return wide, [
        wide.square().sum() / flat.numel(),
        flat.numel() - torch.count_nonzero(flat),
        _wide_resultant(flat[some], inverse),
        torch.count_nonzero(inverse),
    ]


def mean_cosine(resultant: float, rows: float) -> float:
    """Mean pairwise cosine from the squared length of the sum of `rows` unit vectors."""
    if rows < 2:
        return math.nan
    return (resultant - rows) / (rows * (rows - 1))


@_full_precision
def token_cosine(x: Tensor) -> Scalar:
    """Mean over samples of the mean cosine between two of a sample's tokens; x (b, t, d)."""
    found = quick.token_resultants(x)
    if found is not None:
        resultants, live = found
        pairs = np.maximum(live * (live - 1), 1)
        cosines = ((resultants - live) / pairs)[live > 1]
        if cosines.size == 0:
            return math.nan
        if 1 - cosines.max() > _NEARLY_ONE:
            return float(cosines.mean())
    wide = x.to(accumulator(x.device)) if x.numel() <= CHUNK else x.float()
    inverse = _inverse(torch.linalg.vector_norm(wide, dim=2))
    total = torch.einsum("btd,bt->bd", wide, inverse).square().sum(1)
    count = torch.count_nonzero(inverse, dim=1)  # a padded token may be zero
    several = count * (count - 1)
    return ((total - count) / torch.where(several > 0, several, torch.nan)).nanmean()


def dead_units(x: Tensor, unit_dim: int) -> Scalar:
    """How many units are not above zero for any observation."""
    found = quick.largest(x, unit_dim)
    if found is not None:
        return float(np.count_nonzero(found <= 0))
    others = [d for d in range(x.ndim) if d != unit_dim]
    return (x.amax(others) <= 0).sum()


#: |output| beyond which the slope is below SATURATED_SLOPE of its largest
_ENDS = {
    "sigmoid": math.sqrt(1 - SATURATED_SLOPE),  # of 2 y - 1: slope 4 y (1 - y) = 1 - (2 y - 1)^2
    "tanh": math.sqrt(1 - SATURATED_SLOPE),
    "softsign": 1 - math.sqrt(SATURATED_SLOPE),
    "erf": math.erf(math.sqrt(-math.log(SATURATED_SLOPE))),
}


def ends(op: str) -> tuple[float, float] | None:
    """Outputs of a bounded activation below and above which its slope is lost.

    Args:
        op: which.

    Returns:
        None where they depend on more than the activation's name.
    """
    if op == "hardsigmoid":
        return 2.0**-126, 1 - 2.0**-24  # neighbours of 0 and 1 in float32
    end = _ENDS.get(op)
    if end is None:
        return None
    return ((1 - end) / 2, (1 + end) / 2) if op == "sigmoid" else (-end, end)


def saturated_units(x: Tensor, op: str, unit_dim: int) -> Tensor:
    """How many units have lost their slope in 3/4 of their observations, told from the output."""
    return (saturated_share(x, op, unit_dim) > SATURATED_OBSERVATIONS).sum()


def saturated_share(x: Tensor, op: str, unit_dim: int) -> Tensor:
    """Per unit the share of its observations where its slope is lost, told from the output."""
    if op in _ENDS:
        flat = (2 * x - 1 if op == "sigmoid" else x).abs() > _ENDS[op]
    elif op == "hardsigmoid":
        flat = (x <= 0) | (x >= 1)
    else:  # hardtanh, whatever its limits: the ends are where the values pile up
        flat = (x <= x.min()) | (x >= x.max())
    others = [d for d in range(x.ndim) if d != unit_dim]
    return flat.to(torch.float32).mean(others)
