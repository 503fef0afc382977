"""What a dashboard is told of a sample: a few numbers, not a curve per layer.

A net of a thousand sites has 20,000 curves, which no dashboard shows and some charge for. So of
every statistic three numbers are told: the smallest, the median and the largest over the sites.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from signalprop.errors import SignalpropError
from signalprop.watching.file.schema import RunSite
from signalprop.watching.sample import Sample
from signalprop.watching.statistics import STATISTICS

Sites = bool | str | Sequence[str]


@dataclass(frozen=True)
class Told:
    """A sample as a dashboard gets it.

    Attributes:
        step: number of the update.
        numbers: by name, all finite.
        where: name of the site, by the name of a number that is of one site.
    """

    step: int
    numbers: dict[str, float]
    where: dict[str, str] = field(default_factory=dict)


class Summary:
    """Sums samples up.

    Names are `PREFIX/STATISTIC/smallest`, `median`, `largest`, and `not_finite` (how many sites
    have a value that is not finite) where there are any; those of sites that were asked for are
    `PREFIX_sites/STATISTIC/SITE`; those of the whole are `PREFIX/NAME`, or `PREFIX/NAME/all` where
    there is such a statistic too (`gradient_norm`).

    Args:
        prefix: of all names.
        sites: True for a curve of every site and statistic, or patterns of names of sites as in a
            shell (`block.*.attention`); False for none.
        statistics: names of those that are told (`signalprop.watching.statistics`); None for all.

    Raises:
        SignalpropError: an unknown statistic, or a prefix that is none.
    """

    def __init__(
        self,
        prefix: str = "signalprop",
        sites: Sites = False,
        statistics: Iterable[str] | None = None,
    ) -> None:
        if not isinstance(prefix, str) or not prefix.strip("/"):
            raise SignalpropError(f"prefix={prefix!r} must be a name, e.g. 'signalprop'")
        if isinstance(sites, str):
            sites = [sites]
        if not isinstance(sites, bool) and not (
            isinstance(sites, Sequence) and all(isinstance(p, str) for p in sites)
        ):
            raise SignalpropError(f"sites={sites!r} must be True, False or patterns of site names")
        if isinstance(statistics, str):
            statistics = [statistics]
        self.prefix = prefix.strip("/")
        self._patterns = (["*"] if sites else []) if isinstance(sites, bool) else list(sites)
        self._statistics = None if statistics is None else tuple(statistics)
        for name in self._statistics or ():
            if name not in STATISTICS:
                raise SignalpropError(
                    f"{name!r} is no statistic; there are {', '.join(STATISTICS)}"
                )
        self._chosen: tuple[int, list[int]] = (0, [])

    def of(self, sample: Sample) -> Told:
        """Sum a sample up.

        Args:
            sample: of a training, or of a run file.

        Returns:
            What is told of it.
        """
        told = Told(sample.step, self.scalars(sample.scalars.items()))
        chosen = self._choose(sample.sites)
        for statistic, values in sample.values.items():
            if self._statistics is None or statistic in self._statistics:
                self._add(told, f"{self.prefix}/{statistic}", values, sample.sites)
                for place in chosen:
                    if place < len(values) and math.isfinite(values[place]):
                        name = f"{self.prefix}_sites/{statistic}/{sample.sites[place].name}"
                        told.numbers[name] = float(values[place])
        return told

    def scalars(self, values: Iterable[tuple[str, float]]) -> dict[str, float]:
        """Numbers of the whole under their names; those that are not finite are left out."""
        return {self._whole(name): float(v) for name, v in values if math.isfinite(v)}

    def _whole(self, name: str) -> str:
        # what is a folder of others is no name for MLflow
        return f"{self.prefix}/{name}/all" if name in STATISTICS else f"{self.prefix}/{name}"

    def _add(
        self, told: Told, name: str, values: NDArray[np.float64], sites: Sequence[RunSite]
    ) -> None:
        finite = np.flatnonzero(np.isfinite(values))
        broken = int(np.isinf(values).sum())
        if broken:
            told.numbers[f"{name}/not_finite"] = float(broken)
        if not len(finite):
            return
        known = values[finite]
        low, high = finite[int(known.argmin())], finite[int(known.argmax())]
        told.numbers[f"{name}/smallest"] = float(values[low])
        told.numbers[f"{name}/median"] = float(np.median(known))
        told.numbers[f"{name}/largest"] = float(values[high])
        told.where[f"{name}/smallest"] = sites[low].name
        told.where[f"{name}/largest"] = sites[high].name

    def _choose(self, sites: Sequence[RunSite]) -> list[int]:
        """Indices of the sites that are told one by one."""
        count, chosen = self._chosen
        if self._patterns and len(sites) != count:
            chosen = [
                i
                for i, site in enumerate(sites)
                if any(fnmatch.fnmatchcase(site.name, pattern) for pattern in self._patterns)
            ]
            self._chosen = (len(sites), chosen)
        return chosen
