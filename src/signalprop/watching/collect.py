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
from signalprop.watching.transfer import Number, Transfer
from signalprop.watching.updates.update import Sums

Floats = NDArray[np.float64]
Values = dict[str, Floats]
Numbers = dict[str, float]

#: numbers per tally, in this order
_TALLY = ("count", "square", "delta_count", "delta_square", "passes")
#: numbers per site with attention, in this order
_ATTENTION = ("passes", "most", "entropy", "heads")
#: numbers per parameter, in this order
_SUMS = ("weight", "gradient", "change", "decrease", "before", "product")
_COPIED = ("change", "decrease")
_tally, _sums = attrgetter(*_TALLY), attrgetter(*_SUMS)


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
    shares = [ranks.share(one.parameter, joint=joint.parameters) for one in step.sums]
    wanted = [joint.copied or n not in _COPIED for n in _SUMS]
    measured: list[bool] = []
    of_sites = [n for one in seen for n in one.numbers]
    of_parameters: list[Number] = []
    for one, share in zip(step.sums, shares, strict=True):
        for number, want in zip(_sums(one), wanted, strict=True):
            there = number is not None and want and share > 0
            measured.append(there)
            of_parameters.append(number * share if there else math.nan)
    largest = [n for one in seen for n in one.largest]
    numbers, order = _joined(ranks, joint, of_sites, of_parameters, largest)
    if not ranks.writes:
        return
    shape = _Shape(
        len(step.model_of),
        np.asarray([one.place for one in seen], np.int64),
        [one.tally.attention is not None for one in seen],
        [(one.tally.alive is not None, one.tally.saturated is not None) for one in seen],
        np.asarray([one.site for one in step.sums], np.int64),
        np.asarray(measured, bool).reshape(-1, len(_SUMS)),
        np.asarray(step.model_of, np.int64),
        ranks.averaged,
        order,
    )
    transfer.start(
        [step.loss_scale, _or_nan(step.skipped), _or_nan(step.clipped), *numbers],
        lambda row: then(*shape.statistics(row)),
    )


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
            units += [_count(alive == 0), float(alive.shape[0])]
        if tally.saturated is not None:
            saturated = next(joined)
            limit = SATURATED_OBSERVATIONS * saturated[-1]
            units += [_count(saturated[:-1] > limit), float(saturated.shape[0] - 1)]
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
    return mask.sum() if isinstance(mask, Tensor) else float(np.count_nonzero(mask))


def _number(x: Any) -> Number:
    return x if isinstance(x, Tensor) else float(x)


def _or_nan(number: Number | None) -> Number:
    return math.nan if number is None else number


@dataclass(frozen=True, eq=False)
class _Shape:
    """Where in a row of numbers everything lies."""

    size: int
    places: NDArray[np.int64]
    attention: list[bool]
    units: list[tuple[bool, bool]]
    owners: NDArray[np.int64]
    measured: NDArray[np.bool_]
    model_of: NDArray[np.int64]
    averaged: float
    order: NDArray[np.int64] | None

    def statistics(self, row: Floats) -> tuple[Values, Numbers]:
        """Every statistic, and numbers of the whole."""
        (scale, skipped, clipped), row = row[:3], row[3:]
        if self.order is not None:
            row = row[self.order]
        out: Values = {}
        with np.errstate(all="ignore"):
            row = self._passes(row, scale * self.averaged, out)
            row, gradient = self._weights(row, out)
            self._largest(row, out)
        whole: Numbers = {}
        if not math.isnan(skipped):
            whole = {"loss_scale": float(scale), "skipped": float(skipped)}
        if 0 < clipped < math.inf and clipped != 1:
            whole["clipped"] = float(clipped)
            gradient /= clipped
        return out, whole | {"gradient_norm": gradient}

    def _put(self, out: Values, name: str, place: int, value: float) -> None:
        if name not in out:
            out[name] = np.full(self.size, np.nan)
        out[name][place] = value

    def _passes(self, row: Floats, scale: float, out: Values) -> Floats:
        width = len(_TALLY)
        at = 0
        table = np.empty((len(self.places), width))
        for i, place in enumerate(self.places):
            table[i] = row[at : at + width]
            at += width
            if self.attention[i]:
                passes, most, entropy, heads = row[at : at + len(_ATTENTION)]
                at += len(_ATTENTION)
                self._put(out, "attention_entropy", int(place), _finite(entropy / heads))
                self._put(out, "attention_entropy_most", int(place), most / passes)
            for there, name in zip(self.units[i], ("dead", "saturated"), strict=True):
                if there:
                    held, number = row[at : at + 2]
                    at += 2
                    self._put(out, name, int(place), held / number)
        count, square, delta_count, delta_square, _ = table.T
        out["activation_rms"] = self._spread(_root(square / count), count > 0)
        for name in {"dead", "saturated"} & out.keys():  # of what is no number nothing is dead
            out[name][np.isinf(out["activation_rms"])] = np.nan
        out["delta_rms"] = self._spread(_root(delta_square / delta_count) / scale, delta_count > 0)
        return row[at:]

    def _weights(self, row: Floats, out: Values) -> tuple[Floats, float]:
        width = len(_SUMS)
        table = row[: width * len(self.owners)].reshape(-1, width)
        sums = np.zeros((self.size, width))
        np.add.at(sums, self.owners, np.where(self.measured, table, 0.0))
        held, changed, compared = (self._sites(self.measured[:, column]) for column in (0, 2, 4))
        weight, gradient, change, decrease, before, product = sums.T
        out["weight_norm"] = np.where(held, _root(weight), np.nan)
        out["gradient_norm"] = np.where(held, _root(gradient), np.nan)
        out["update_norm"] = np.where(changed, _root(change), np.nan)
        ratio = out["update_norm"] / out["weight_norm"]
        out["update_ratio"] = np.where(changed & (weight > 0), or_inf(ratio), np.nan)
        total = np.zeros(int(self.model_of.max(initial=-1)) + 1)
        np.add.at(total, self.model_of[changed], decrease[changed])
        share = decrease / total[self.model_of]
        out["learning_share"] = np.where(changed & np.isfinite(share), share, np.nan)
        noise = (gradient + before - 2 * product) / 2
        out["gradient_snr"] = np.where(compared & (noise > 0), product / noise, np.nan)
        every = len(table) and self.measured[:, 1].all()
        whole = float(np.sqrt(table[:, 1].sum())) if every else np.nan
        return row[width * len(self.owners) :], whole

    def _sites(self, measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Sites of which some parameter was measured."""
        found = np.zeros(self.size, bool)
        found[self.owners[measured]] = True
        return found

    def _largest(self, row: Floats, out: Values) -> None:
        at = 0
        for place, attention in zip(self.places, self.attention, strict=True):
            if attention:
                self._put(out, "attention_logit", int(place), _finite(row[at]))
                self._put(out, "attention_entropy_lowest", int(place), _finite(-row[at + 1]))
                at += 2

    def _spread(self, values: Floats, known: NDArray[np.bool_]) -> Floats:
        out = np.full(self.size, np.nan)
        out[self.places[known]] = values[known]
        return out


def or_inf(values: NDArray[Any]) -> NDArray[Any]:
    """What is not finite as inf: nan means that it was not measured."""
    if np.isfinite(values.sum()):
        return values
    return np.where(np.isfinite(values), values, np.inf)


def _root(square: Floats) -> Floats:
    return or_inf(np.sqrt(square))


def _finite(value: float) -> float:
    return value if np.isfinite(value) else np.inf
