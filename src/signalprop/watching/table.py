"""From a row of numbers, brought over from the device, to the statistics of every site."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]
Values = dict[str, Floats]
Numbers = dict[str, float]

#: numbers per tally, in this order
TALLY = ("count", "square", "delta_count", "delta_square", "passes")
#: numbers per site with attention, in this order
ATTENTION = ("passes", "most", "entropy", "heads")
#: numbers per parameter, in this order
SUMS = ("weight", "gradient", "change", "decrease", "before", "product")


@dataclass(frozen=True, eq=False)
class Table:
    """What the numbers in a row are.

    A row holds three numbers of the whole (loss scale, skipped updates, clipping); of every site
    that was seen `TALLY`, `ATTENTION` where there is some, and two numbers each for dead and
    saturated units; `SUMS` of every parameter; two maxima of every site with attention.

    Attributes:
        size: sites of the run.
        places: (seen,), indices of the sites that were seen.
        attention: (seen,), which of them have attention.
        alive: (seen,), which have units that may be dead.
        saturated: (seen,), which have units that may be saturated.
        owners: (parameters,), index of the site of each.
        measured: (parameters, sums), what of a parameter was measured.
        model_of: (sites,), index of a site's model.
        averaged: by how much delta is larger than with the loss of the global batch.
        order: where each number lies in the row; None for in order.
    """

    size: int
    places: NDArray[np.int64]
    attention: Masks
    alive: Masks
    saturated: Masks
    owners: NDArray[np.int64]
    measured: Masks
    model_of: NDArray[np.int64]
    averaged: float
    order: NDArray[np.int64] | None

    def statistics(self, row: Floats) -> tuple[Values, Numbers]:
        """Statistics by name.

        Args:
            row: all numbers.

        Returns:
            (sites,) each, and numbers of the whole.
        """
        (scale, skipped, clipped), row = row[:3], row[3:]
        if self.order is not None:
            row = row[self.order]
        out: Values = {}
        with np.errstate(all="ignore"):
            row = self._passes(row, scale * self.averaged, out)
            row, gradient = self._weights(row, out)
            if self.attention.any():
                logit, lowest = row.reshape(-1, 2).T
                self._put(out, "attention_logit", self.attention, or_inf(logit))
                self._put(out, "attention_entropy_lowest", self.attention, or_inf(-lowest))
        whole: Numbers = {}
        if not math.isnan(skipped):
            whole = {"loss_scale": float(scale), "skipped": float(skipped)}
        if 0 < clipped < math.inf and clipped != 1:
            whole["clipped"] = float(clipped)
            gradient /= clipped
        return out, whole | {"gradient_norm": gradient}

    def _put(self, out: Values, name: str, where: Masks, values: Floats) -> None:
        """Values of some of the sites that were seen."""
        out[name] = np.full(self.size, np.nan)
        out[name][self.places[where]] = values

    def _passes(self, row: Floats, scale: float, out: Values) -> Floats:
        """What was seen of activations and error signals; the rest of the row."""
        widths = len(TALLY) + len(ATTENTION) * self.attention + 2 * self.alive + 2 * self.saturated
        ends = np.cumsum(widths)
        starts = ends - widths
        count, square, delta_count, delta_square, _ = _columns(row, starts, len(TALLY))
        rms = _root(square / count)
        self._put(out, "activation_rms", count > 0, rms[count > 0])
        returned = delta_count > 0
        delta = _root(delta_square / delta_count) / scale
        self._put(out, "delta_rms", returned, delta[returned])
        if self.attention.any():
            at = starts[self.attention] + len(TALLY)
            passes, most, entropy, heads = _columns(row, at, len(ATTENTION))
            self._put(out, "attention_entropy", self.attention, or_inf(entropy / heads))
            self._put(out, "attention_entropy_most", self.attention, most / passes)
        last = ends - 2 * self.saturated
        for name, where, end in (("dead", self.alive, last), ("saturated", self.saturated, ends)):
            if where.any():
                found, units = _columns(row, end[where] - 2, 2)
                # of what is no number nothing is dead
                self._put(out, name, where, np.where(np.isinf(rms[where]), np.nan, found / units))
        return row[ends[-1] if len(ends) else 0 :]

    def _weights(self, row: Floats, out: Values) -> tuple[Floats, float]:
        """What was seen of parameters; the rest of the row, and the norm of the whole gradient."""
        size = self.measured.size
        table = row[:size].reshape(self.measured.shape)
        sums = np.zeros((self.size, len(SUMS)))
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
        return row[size:], whole

    def _sites(self, measured: Masks) -> Masks:
        """Sites of which some parameter was measured."""
        found = np.zeros(self.size, bool)
        found[self.owners[measured]] = True
        return found


def _columns(row: Floats, starts: NDArray[np.int64], width: int) -> Floats:
    """(width, starts): the numbers from each start on."""
    return row[starts + np.arange(width)[:, None]]


def or_inf(values: NDArray[Any]) -> NDArray[Any]:
    """What is not finite as inf: nan means that it was not measured."""
    if np.isfinite(values.sum()):
        return values
    return np.where(np.isfinite(values), values, np.inf)


def _root(square: Floats) -> Floats:
    return or_inf(np.sqrt(square))
