"""From what was seen of a step to its statistics, one array over all sites each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from signalprop.capture.statistics import SATURATED_OBSERVATIONS
from signalprop.watch.passes.tally import Tally, Vector
from signalprop.watch.ranks import Ranks
from signalprop.watch.transfer import Number, Transfer
from signalprop.watch.updates.update import Sums

Floats = NDArray[np.float64]
Values = dict[str, Floats]
Numbers = dict[str, float]

#: numbers per tally, in this order
_TALLY = ("count", "square", "delta_count", "delta_square", "passes")
#: numbers per parameter, in this order
_SUMS = ("weight", "gradient", "change", "decrease", "before", "product")


@dataclass(frozen=True, eq=False)
class Step:
    """What was seen of one sampled step.

    Attributes:
        tallies: by index of the site.
        sums: of every parameter that was updated.
        model_of: index of a site's model.
        loss_scale: what the loss was multiplied by before the backward pass.
        clipped: what clipping multiplied the gradient by; None where it is not known.
    """

    tallies: Mapping[int, Tally]
    sums: Sequence[Sums]
    model_of: Sequence[int]
    loss_scale: Number = 1.0
    clipped: Number | None = None


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
    places = list(step.tallies)
    tallies = [step.tallies[place] for place in places]
    numbers: list[Number] = []
    for tally in tallies:
        numbers += [getattr(tally, name) for name in _TALLY]
        if tally.attention is not None:
            numbers += [tally.attention.passes, tally.attention.most, tally.attention.entropy]
    for one in step.sums:
        share = ranks.share(one.parameter)
        for name in _SUMS:
            value = getattr(one, name)
            numbers.append(np.nan if value is None else value * share)
    largest: list[Number] = [t.attention.logit for t in tallies if t.attention is not None]
    vectors = [v for t in tallies for v in (t.alive, t.saturated) if v is not None]
    numbers = ranks.total(numbers)
    largest = ranks.largest(largest)
    found = iter(ranks.totals(vectors))
    units: list[Number] = []
    for tally in tallies:
        if tally.alive is not None:
            units.append(_share(next(found), lambda v: v == 0))
        if tally.saturated is not None:
            limit = SATURATED_OBSERVATIONS * ranks.world * tally.passes
            units.append(_share(next(found), lambda v, limit=limit: v > limit))
    heads = [0 if t.attention is None else len(t.attention.entropy) for t in tallies]
    shape = _Shape(
        len(step.model_of),
        np.asarray(places, np.int64),
        heads,
        [(t.alive is not None, t.saturated is not None) for t in tallies],
        np.asarray([one.site for one in step.sums], np.int64),
        np.asarray([[getattr(one, n) is not None for n in _SUMS] for one in step.sums], bool),
        np.asarray(step.model_of, np.int64),
    )
    transfer.start(
        [step.loss_scale, math.nan if step.clipped is None else step.clipped]
        + [*numbers, *largest, *units],
        lambda row: then(*shape.statistics(row)),
    )


def _share(units: Vector, counts: Callable[[Vector], Vector]) -> Number:
    """Share of the units that a condition holds for."""
    held = counts(units)
    if isinstance(held, Tensor):
        return held.sum() / held.numel()
    return float(np.count_nonzero(held)) / held.size


@dataclass(frozen=True, eq=False)
class _Shape:
    """Where in a row of numbers everything lies."""

    size: int
    places: NDArray[np.int64]
    heads: list[int]
    units: list[tuple[bool, bool]]
    owners: NDArray[np.int64]
    measured: NDArray[np.bool_]
    model_of: NDArray[np.int64]

    def statistics(self, row: Floats) -> tuple[Values, Numbers]:
        """Every statistic, and numbers of the whole."""
        (scale, clipped), row = row[:2], row[2:]
        out: Values = {}
        with np.errstate(all="ignore"):
            row = self._passes(row, scale, out)
            row, gradient = self._weights(row, out)
            self._rest(row, out)
        whole = {"loss_scale": float(scale)} if scale != 1 else {}
        if 0 < clipped < math.inf:
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
        for i, heads in enumerate(self.heads):
            table[i] = row[at : at + width]
            at += width
            if heads:
                passes, most, *entropies = row[at : at + 2 + heads]
                at += 2 + heads
                place = int(self.places[i])
                mean = np.asarray(entropies) / passes
                self._put(out, "attention_entropy", place, _finite(float(mean.mean())))
                self._put(out, "attention_entropy_lowest", place, _finite(float(mean.min())))
                self._put(out, "attention_entropy_most", place, most / passes)
        count, square, delta_count, delta_square, _ = table.T
        out["activation_rms"] = self._spread(_root(square / count), count > 0)
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
        out["update_ratio"] = np.where(changed & (weight > 0), _or_inf(ratio), np.nan)
        total = np.zeros(int(self.model_of.max(initial=-1)) + 1)
        np.add.at(total, self.model_of[changed], decrease[changed])
        share = decrease / total[self.model_of]
        out["learning_share"] = np.where(changed & np.isfinite(share), share, np.nan)
        noise = (gradient + before - 2 * product) / 2
        out["gradient_snr"] = np.where(compared & (noise > 0), product / noise, np.nan)
        whole = float(np.sqrt(table[:, 1].sum())) if len(table) else np.nan
        return row[width * len(self.owners) :], whole

    def _sites(self, measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Sites of which some parameter was measured."""
        found = np.zeros(self.size, bool)
        found[self.owners[measured]] = True
        return found

    def _rest(self, row: Floats, out: Values) -> None:
        at = 0
        for place, heads in zip(self.places, self.heads, strict=True):
            if heads:
                self._put(out, "attention_logit", int(place), _finite(row[at]))
                at += 1
        for place, (alive, saturated) in zip(self.places, self.units, strict=True):
            for there, name in ((alive, "dead"), (saturated, "saturated")):
                if there:
                    self._put(out, name, int(place), row[at])
                    at += 1

    def _spread(self, values: Floats, known: NDArray[np.bool_]) -> Floats:
        out = np.full(self.size, np.nan)
        out[self.places[known]] = values[known]
        return out


def _or_inf(values: Floats) -> Floats:
    """What is not finite as inf: nan means that it was not measured."""
    return np.where(np.isfinite(values), values, np.inf)


def _root(square: Floats) -> Floats:
    return _or_inf(np.sqrt(square))


def _finite(value: float) -> float:
    return value if np.isfinite(value) else np.inf
