"""All that was measured of one layer and direction, together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from signalprop.capture.time import Horizon
from signalprop.report.time.places import Place, placed

if TYPE_CHECKING:  # else a trace's view would load all of `recurrent`
    from signalprop.recurrent.horizon.result import Exponents, Gains, Horizons


@dataclass(frozen=True)
class Curve:
    """One layer in one direction, or the positions that attention runs over.

    Attributes:
        place: where it is.
        horizon: credit over the lag.
        gains: what single steps do; None where they were not measured.
        exponents: Lyapunov exponents; None where they were not asked for.
    """

    place: Place
    horizon: Horizon
    gains: Gains | None
    exponents: Exponents | None

    @property
    def name(self) -> str:
        """As `folding` wants it."""
        return self.place.label

    @property
    def like(self) -> tuple[object, ...]:
        """Equal for curves that are alike."""
        return self.horizon.op, self.horizon.reverse, self.longest

    @property
    def longest(self) -> int:
        """The longest lag."""
        return self.horizon.lags[-1]

    def left(self) -> float:
        """Credit at the longest lag."""
        return self.horizon.credit[-1]

    def at(self, lag: int) -> float | None:
        """Credit at a lag; None beyond the longest one, and where it is not a number."""
        if lag > self.longest:
            return None
        value = min(
            zip(self.horizon.lags, self.horizon.credit, strict=True),
            key=lambda pair: abs(pair[0] - lag),
        )[1]
        return None if math.isnan(value) else value

    def course(self, cells: int, until: int) -> list[float]:
        """Credit at so many lags, evenly spread from 0 to `until`; fewer if there are fewer."""
        credit = self.horizon.credit[: until + 1]
        count = min(cells, len(credit))
        if count < 2:
            return list(credit[:count])
        return [credit[round(i * (len(credit) - 1) / (count - 1))] for i in range(count)]


def drawn(found: Sequence[Curve]) -> int:
    """Up to which lag curves are drawn: what lies far behind the last rounding says nothing."""
    longest = max(curve.longest for curve in found)
    silent = [c.longest if (k := c.horizon.silent) is None else k for c in found]
    return min(longest, max(8, math.ceil(1.25 * max(silent))))


def curves(found: Horizons) -> list[Curve]:
    """Everything by layer and direction.

    Args:
        found: what was measured.

    Returns:
        Curves in the order in which they were measured.
    """
    gains = {(g.site, g.layer, g.reverse): g for g in found.gains}
    exponents = {(e.site, e.layer, e.reverse): e for e in found.exponents}
    made = bare(found.curves)
    keys = [(c.site, c.layer, c.reverse) for c in found.curves]
    return [
        replace(curve, gains=gains.get(key), exponents=exponents.get(key))
        for curve, key in zip(made, keys, strict=True)
    ]


def bare(found: Sequence[Horizon]) -> list[Curve]:
    """Curves of which nothing but credit is known."""
    places = placed((c.site, c.layer, c.reverse) for c in found)
    return [Curve(place, curve, None, None) for place, curve in zip(places, found, strict=True)]


def centre(values: Sequence[float]) -> float | None:
    """Median of what is finite; None where nothing is."""
    known = [v for v in values if math.isfinite(v)]
    return statistics.median(known) if known else None
