"""How far back the inputs lie that a target depends on, estimated from the data alone.

For every step t: does the target depend on x_t, given what nearer inputs tell already?
From near to far, an input is taken that explains more of what is left of the target than chance
does, and what it explains is taken off the target and off all other inputs (as in orthogonal
matching pursuit, Pati, Rezaiifar & Krishnaprasad 1993): a far input that only tells again what a
near one has told is no reason for a long memory. Chance is what the largest statistic of all inputs
is when the targets of the samples are exchanged (max-statistic permutation test, Westfall & Young
1993). That bounds the probability of a single false step among all of them, which is stricter than
to bound the share of false ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from signalprop.errors import SignalpropError

#: fewest samples that tell anything
FEWEST = 64
#: steps back that are looked at; features over all steps
WINDOW, COLUMNS = 4096, 1 << 13
#: lengths of the parts whose means are looked at
SPANS = (4, 16, 64, 256)
#: features of a step up to which their squares and products are looked at as well
PRODUCTS = 4
#: classes of a target at most, and its numbers
CLASSES, NUMBERS = 32, 8
#: exchanges of the targets, and the probability of a false step
EXCHANGES, CHANCE = 64, 1e-3
#: of targets at every step so many are looked at; and inputs that are taken for each at most
TARGETS, TAKEN = 6, 48


@dataclass(frozen=True)
class Lag:
    """Over how many steps an error has to be carried back.

    Attributes:
        steps: to the farthest input that the target depends on.
        usual: to the input up to which half of what is known of the target is explained; where
            there are several targets, of the one that needs most.
        nearest: to the nearest input that it depends on.
        samples: how many sequences show it; 0 where the user has said it.
    """

    steps: int
    usual: int
    nearest: int
    samples: int

    @classmethod
    def given(cls, steps: int) -> Lag:
        """What a user says.

        Args:
            steps: over how many steps.

        Returns:
            The lag.

        Raises:
            SignalpropError: it is no whole number above 0.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise SignalpropError(
                f"lag is over how many steps the task needs memory, a whole number from 1 up, "
                f"not {steps!r}"
            )
        return cls(steps, steps, steps, 0)


def estimate(inputs: Tensor, target: Tensor, lengths: Tensor | None = None) -> Lag | None:
    """The lag of sequences.

    Args:
        inputs: (samples, steps, features), or (samples, steps) whole numbers that stand for
            symbols.
        target: classes (samples,) or numbers (samples, k) at the end of the sequence; or one for
            every step, (samples, steps) or (samples, steps, k).
        lengths: (samples,) steps before the padding; None where all sequences have all steps.

    Returns:
        The lag, or None where the samples do not show that the target depends on an input.
    """
    if len(inputs) < FEWEST or len(target) != len(inputs) or inputs.ndim not in (2, 3):
        return None
    steps = inputs.shape[1]
    every = target.ndim > 1 and target.shape[1] == steps and steps > NUMBERS
    ends = _some(steps) if every else [steps - 1]
    varied = lengths is not None and int(lengths.min()) < int(lengths.max())
    found = []
    if varied and not every:  # what counts may stand at so many steps from the beginning
        early = int(lengths.max() - lengths.min()) if lengths is not None else 0
        found.append(_at(inputs, target, 2, early))
    if lengths is not None:
        inputs = _to_end(inputs, lengths)
        target = _to_end(target, lengths) if every else target
    tests = len(ends) + varied
    for end in ends:
        found.append(_at(inputs[:, : end + 1], target[:, end] if every else target, tests, 0))
    known = [(lag, told) for lag, told in found if lag is not None]
    if not known:
        return None
    if varied and not every:  # the way to count that explains more
        return max(known, key=lambda one: one[1])[0]
    lags = [lag for lag, _ in known]
    return Lag(
        max(lag.steps for lag in lags),
        max(lag.usual for lag in lags),
        min(lag.nearest for lag in lags),
        max(lag.samples for lag in lags),
    )


def _to_end(x: Tensor, lengths: Tensor) -> Tensor:
    """Every sequence moved so that it ends at the last step, its padding before it."""
    steps = torch.arange(x.shape[1])
    back = (steps - (x.shape[1] - lengths[:, None])).clamp_min(0)
    index = back.reshape(*back.shape, *[1] * (x.ndim - 2)).expand(x.shape)
    moved = x.gather(1, index)
    before = steps < x.shape[1] - lengths[:, None]
    return moved.masked_fill(before.reshape(*before.shape, *[1] * (x.ndim - 2)), 0)


def _some(steps: int) -> list[int]:
    """Some steps of the second half, the last and the one before it among them."""
    spread = torch.linspace(steps // 2, steps - 1, TARGETS - 1).long().tolist()
    return sorted({*spread, steps - 2})


# ---- one target ------------------------------------------------------------------------------


@torch.no_grad()
def _at(inputs: Tensor, target: Tensor, tests: int, early: int) -> tuple[Lag | None, float]:
    """The lag of the target at the last of these steps, and the share of it that is explained.

    Args:
        inputs: (samples, steps, ...).
        target: (samples, ...).
        tests: how many such tests are made.
        early: how many steps before the last one the shortest sequence ends.

    Returns:
        The lag, None where no input counts, and the share.
    """
    known = _known(target)
    wanted = None if known is None else _targets(target[known])
    if known is None or wanted is None:
        return None, 0.0
    columns, steps, spans = _features(inputs[known][:, -WINDOW:])
    if columns.shape[1] == 0:
        return None, 0.0
    last = int(min(inputs.shape[1], WINDOW)) - 1 - early
    chance = CHANCE / tests
    found = _pursuit(columns, steps, spans, wanted, chance)
    taken = [(max(last - t, 0), gain) for t, gain in found]
    if not taken:
        return None, 0.0
    explained = sum(gain for _, gain in taken)
    half, usual = explained / 2, 0
    for lag, gain in sorted(taken):
        half -= gain
        if half <= 0:
            usual = lag
            break
    lags = [lag for lag, _ in taken]
    return Lag(max(lags), usual, min(lags), len(columns)), explained


def _known(target: Tensor) -> Tensor | None:
    """Samples that have a target; None where there are too few."""
    whole = not target.is_floating_point() and target.ndim == 1
    known = target >= 0 if whole and bool((target == -100).any()) else torch.ones(len(target)) > 0
    if target.is_floating_point():
        known = target.reshape(len(target), -1).isfinite().all(1)
    return known if int(known.sum()) >= FEWEST else None


def _targets(target: Tensor) -> Tensor | None:
    """Orthonormal columns that span what a target can be, its mean left out."""
    if target.is_complex():
        return None
    if not target.is_floating_point() and target.ndim == 1:
        kinds, place = target.unique(return_inverse=True)
        if len(kinds) > CLASSES:
            return None
        rows = torch.nn.functional.one_hot(place, len(kinds)).float()
    else:
        rows = target.reshape(len(target), -1).float()
        if rows.shape[1] > NUMBERS:
            return None
        rows = rows.argsort(0).argsort(0).float() if target.is_floating_point() else rows
    return _orthonormal(rows - rows.mean(0))


def _orthonormal(rows: Tensor) -> Tensor | None:
    """An orthonormal basis of the columns; None where they are all zero."""
    u, s, _ = torch.linalg.svd(rows.double(), full_matrices=False)
    if not len(s) or s[0] <= 1e-6:
        return None
    return u[:, s > 1e-3 * s[0]].float()


def _features(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the target may depend on, as columns of unit length.

    The features of every step as they are; of a few their squares and products, too: whether a
    value counts may stand in another feature. And the means of all of them over parts.

    Args:
        inputs: (samples, steps, features), or (samples, steps) symbols.

    Returns:
        (samples, columns); of each column its step, the nearest of several; and how many.
    """
    x = _indicators(inputs) if inputs.ndim == 2 else inputs.float()
    x = torch.nan_to_num(x)
    n, steps, width = x.shape
    if width <= PRODUCTS:
        more = [x[..., i] * x[..., j] for i, j in combinations(range(width), 2)]
        more += [(x[..., i] - x[..., i].mean(0)).square() for i in range(width)]
        x = torch.cat([x, torch.stack(more, -1)], -1)
        width = x.shape[-1]
    parts = [(x.reshape(n, -1), torch.arange(steps).repeat_interleave(width), 1), *_means(x)]
    flat = torch.cat([columns for columns, _, _ in parts], 1)
    step = torch.cat([place for _, place, _ in parts])
    span = torch.cat([torch.full_like(place, many) for _, place, many in parts])
    spread = flat.var(0)
    keep = spread > 1e-10 * flat.square().mean(0).clamp_min(1e-30)
    if int(keep.sum()) > COLUMNS:  # those that vary most; of symbols, the frequent ones
        keep &= spread >= spread.topk(COLUMNS).values[-1]
    flat = flat[:, keep]
    flat = flat - flat.mean(0)
    return flat / flat.norm(dim=0), step[keep], span[keep]


def _means(x: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Means over parts of the sequence: what is weak at every step alone.

    Scaled like the features, so that as many of each length are among the columns that vary most.

    Yields:
        (samples, columns), the nearest step of each, and how many steps a part has.
    """
    n, steps, width = x.shape
    for many in SPANS:
        count = steps // many
        if count < 2:
            return
        part = x[:, steps - count * many :].reshape(n, count, many, width).mean(2)
        scale = x.std() / part.std().clamp_min(1e-30)
        ends = steps - 1 - many * torch.arange(count - 1, -1, -1)
        yield scale * part.reshape(n, -1), ends.repeat_interleave(width), many


def _indicators(symbols: Tensor) -> Tensor:
    """(B, T) whole numbers -> (B, T, symbols), the most frequent ones."""
    kinds, count = symbols.unique(return_counts=True)
    most = max(2, min(64, COLUMNS // symbols.shape[1]))
    kinds = kinds[count.argsort(descending=True)[:most]]
    return (symbols[..., None] == kinds).float()


def _pursuit(
    columns: Tensor, steps: Tensor, spans: Tensor, wanted: Tensor, chance: float
) -> Iterator[tuple[int, float]]:
    """(step, share of the target that its input explains beyond nearer ones), the nearest first."""
    least = _least(columns, wanted, chance)
    total = wanted.shape[1]
    left, sizes = wanted, torch.ones(columns.shape[1])
    columns = columns.clone()
    for _ in range(min(TAKEN, len(columns) // 8)):
        found = (columns.t() @ left).square().sum(1) / sizes.clamp_min(0.05)
        if found.max() < least:
            return
        nearest = steps == steps[found >= least].max()
        best = int(found.where(nearest, -1).argmax())
        # of a part that counts, what counts in it
        inside = (steps <= steps[best]) & (steps > steps[best] - spans[best])
        best = int(found.where(inside & (spans <= spans[best]), -1).argmax())
        taken = columns[:, best] / columns[:, best].norm()
        explained = wanted.t() @ taken
        yield int(steps[best]), float(explained.square().sum()) / total
        # what is told by it is taken from all others, and from the target
        columns.addr_(taken, taken @ columns, alpha=-1)
        sizes = columns.square().sum(0)
        rest = wanted - taken[:, None] * explained
        wanted = rest
        basis = _orthonormal(rest) if float(rest.square().sum()) > 1e-3 * total else None
        if basis is None:
            return
        left = basis


def _least(columns: Tensor, wanted: Tensor, chance: float) -> float:
    """What the largest statistic has to exceed: a Gumbel law through that of exchanged targets."""
    generator = torch.Generator().manual_seed(0)
    n, k = wanted.shape
    found = []
    each = max(1, min(EXCHANGES, (1 << 24) // (columns.shape[1] * k)))
    for begin in range(0, EXCHANGES, each):
        count = min(each, EXCHANGES - begin)
        order = torch.stack([torch.randperm(n, generator=generator) for _ in range(count)], 1)
        mixed = wanted[order].permute(0, 2, 1).reshape(n, -1)  # (n, k count)
        sums = (columns.t() @ mixed).square().reshape(-1, k, count).sum(1)
        found.append(sums.amax(0))
    largest = torch.cat(found).double()
    scale = float(largest.std()) * math.sqrt(6) / math.pi
    middle = float(largest.mean()) - 0.5772156649 * scale
    return max(middle - scale * math.log(-math.log1p(-chance)), float(largest.max()))
