"""From what was seen of a step to its statistics, one array over all sites each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from signalprop.capture.statistics import SATURATED_OBSERVATIONS
from signalprop.watching.file.schema import RunSite
from signalprop.watching.passes.tally import Tally, Vector
from signalprop.watching.ranks.alone import Joint, Layout, Ranks
from signalprop.watching.table import SUMS, TALLY, Numbers, Table, Values
from signalprop.watching.transfer import Number, Transfer
from signalprop.watching.updates.parameter import Sums

_COPIED = ("change", "decrease")
_tally, _sums = attrgetter(*TALLY), attrgetter(*SUMS)


@dataclass(frozen=True, eq=False)
class Step:
    """What was seen of one sampled step.

    Attributes:
        tallies: by index of the site.
        sums: of every parameter that was updated.
        model_of: index of a site's model.
        loss_scale: what the loss was multiplied by before the backward pass.
        skipped: updates left out so far for overflow; None where the loss is not scaled.
        clipped: what clipping multiplied the gradient by; None where it is not known.
        step: its number.
        sites: of the run.
        copied: whether there was memory to see what the updates changed.
    """

    tallies: Mapping[int, Tally]
    sums: Sequence[Sums]
    model_of: Sequence[int]
    loss_scale: Number = 1.0
    skipped: Number | None = None
    clipped: Number | None = None
    step: int = 0
    sites: Sequence[RunSite] = ()
    copied: bool = True


def collect(
    step: Step, ranks: Ranks, transfer: Transfer, then: Callable[[Values, Numbers], None]
) -> None:
    """Join the ranks, bring the numbers over, and make statistics of them.

    Args:
        step: what was seen.
        ranks: that train together.
        transfer: brings numbers over.
        then: called with the statistics by name, (sites,) each, and numbers of the whole.
    """
    seen = [_Seen(place, tally) for place, tally in step.tallies.items()]
    joint = ranks.meet(_layout(step, seen)) if ranks.world > 1 else Joint()
    if joint.sites:
        found = iter(ranks.totals([v for one in seen for v in one.vectors()]))
        for one in seen:
            one.take(found)
    else:
        for one in seen:
            one.take(iter(one.vectors()))
    of_sites = [n for one in seen for n in one.numbers]
    found = [n for one in step.sums for n in _sums(one)]
    if ranks.world > 1:
        found = _shared(found, step.sums, ranks, joint)
    of_parameters = [math.nan if n is None else n for n in found]
    largest = [n for one in seen for n in one.largest]
    numbers, order = _joined(ranks, joint, of_sites, of_parameters, largest)
    if not ranks.writes:
        return
    tallies = [one.tally for one in seen]
    table = Table(
        len(step.model_of),
        np.asarray([one.place for one in seen], np.int64),
        np.asarray([tally.attention is not None for tally in tallies], bool),
        np.asarray([tally.alive is not None for tally in tallies], bool),
        np.asarray([tally.saturated is not None for tally in tallies], bool),
        np.asarray([one.site for one in step.sums], np.int64),
        np.asarray([n is not None for n in found], bool).reshape(-1, len(SUMS)),
        np.asarray(step.model_of, np.int64),
        ranks.averaged,
        order,
    )
    transfer.start(
        [step.loss_scale, _or_nan(step.skipped), _or_nan(step.clipped), *numbers],
        lambda row: then(*table.statistics(row)),
    )


def _shared(
    numbers: Sequence[Number | None], sums: Sequence[Sums], ranks: Ranks, joint: Joint
) -> list[Number | None]:
    """This rank's part of the sums over parameters; None for what is not part of the whole."""
    shares = [ranks.share(one.parameter, joint=joint.parameters) for one in sums]
    wanted = [joint.copied or name not in _COPIED for name in SUMS]
    parts = [(share if want else 0.0) for share in shares for want in wanted]
    return [n * p if n is not None and p > 0 else None for n, p in zip(numbers, parts, strict=True)]


def _joined(
    ranks: Ranks,
    joint: Joint,
    of_sites: list[Number],
    of_parameters: list[Number],
    largest: list[Number],
) -> tuple[list[Number], NDArray[np.int64] | None]:
    """All numbers, those that can be added over the ranks added; and their order."""
    if joint.sites and joint.parameters:
        return ranks.join([*of_sites, *of_parameters], largest)
    if not joint.sites and not joint.parameters:
        return [*of_sites, *of_parameters, *largest], None
    ours, order = ranks.join(of_sites, largest) if joint.sites else ranks.join(of_parameters, ())
    size = sum(n.numel() if isinstance(n, Tensor) else 1 for n in ours)
    order = np.arange(size) if order is None else order
    if not joint.sites:
        before, behind = len(of_sites), len(largest)
        order = np.concatenate(
            [np.arange(before), order + before, np.arange(behind) + before + size]
        )
        return [*of_sites, *ours, *largest], order
    last = len(largest)
    order = np.concatenate(
        [order[: size - last], np.arange(len(of_parameters)) + size, order[size - last :]]
    )
    return [*ours, *of_parameters], order


def _layout(step: Step, seen: Sequence[_Seen]) -> Layout:
    """What the ranks must agree on."""
    name = [site.name for site in step.sites]
    return Layout(
        step.step,
        "\n".join(f"{name[one.place]} {one.kinds}" for one in seen),
        "\n".join(
            f"{name[one.site]} {tuple(one.parameter.shape)} {one.before is None}"
            for one in step.sums
        ),
        tuple(len(v) for one in seen for v in one.vectors()),
        step.copied,
    )


@dataclass(eq=False)
class _Seen:
    """What was seen of one site, ready to be added over the ranks.

    What there is of every unit or head is first added over the ranks that see other samples of the
    same ones; the others' units and heads are others, of which only the counts are added.

    Attributes:
        place: index of the site.
        tally: what was seen.
        numbers: to be added over all ranks.
        largest: whose maximum is wanted.
    """

    place: int
    tally: Tally
    numbers: list[Number] = field(default_factory=list)
    largest: list[Number] = field(default_factory=list)

    @property
    def kinds(self) -> str:
        tally = self.tally
        return "".join("01"[x is not None] for x in (tally.alive, tally.saturated, tally.attention))

    def vectors(self) -> list[Vector]:
        """What there is of every unit and head, and last the weight of it."""
        tally, out = self.tally, list[Vector]()
        if tally.alive is not None:
            out.append(tally.alive)
        if tally.saturated is not None:
            weight = tally.count / max(1.0, tally.passes)
            out.append(_with(tally.saturated * weight, tally.count))
        if tally.attention is not None:
            out.append(_with(tally.attention.entropy, tally.attention.passes))
        return out

    def take(self, joined: Iterator[Vector]) -> None:
        """Make numbers of the vectors, which have been added over the ranks."""
        tally = self.tally
        self.numbers += _tally(tally)
        units: list[Number] = []
        if tally.alive is not None:
            alive = next(joined)
            units += [_count(alive == 0), alive.shape[0]]
        if tally.saturated is not None:
            saturated = next(joined)
            limit = SATURATED_OBSERVATIONS * saturated[-1]
            units += [_count(saturated[:-1] > limit), saturated.shape[0] - 1]
        if tally.attention is not None:
            entropy = next(joined)
            mean = entropy[:-1] / entropy[-1]
            self.numbers += [tally.attention.passes, tally.attention.most]
            self.numbers += [_number(mean.sum()), float(mean.shape[0])]
            self.largest += [tally.attention.logit, _number(-mean.min())]
        self.numbers += units


def _with(vector: Vector, last: float) -> Vector:
    """A vector with one more number."""
    if isinstance(vector, Tensor):
        return torch.nn.functional.pad(vector.double(), (0, 1), value=last)
    return np.append(vector.astype(np.float64), last)


def _count(mask: Any) -> Number:
    """How many are true."""
    return mask.sum() if isinstance(mask, Tensor) else int(np.count_nonzero(mask))


def _number(x: Any) -> Number:
    return x if isinstance(x, Tensor) else float(x)


def _or_nan(number: Number | None) -> Number:
    return math.nan if number is None else number
