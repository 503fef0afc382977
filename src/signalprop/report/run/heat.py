"""A statistic over sites and steps as the numbers of a heat map: heights, edges, special cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from signalprop.report.run.even import joined
from signalprop.watching.file.reader import Run
from signalprop.watching.file.result import Values
from signalprop.watching.statistics import is_log
from signalprop.watching.statistics import statistic as known

Of = Literal["mean", "low", "high"]
Scale = Literal["value", "change"]
Floats = NDArray[np.float32]

#: cells that have no height of their own
ZERO, INFINITE = 0, 1


@dataclass(frozen=True, eq=False)
class Heat:
    """A heat map's numbers.

    Attributes:
        name: of the run.
        statistic: its name.
        log: whether heights are powers of ten.
        geometric: whether that is what the mean of joined steps is.
        scale: `value`, or `change` since the first sampled steps.
        sites: names, top to bottom.
        edges: (columns + 1,), the steps between which a column lies.
        first: (columns,), first step of a column.
        last: (columns,), its last step.
        samples: (columns,), how many sampled steps are joined in it.
        height: (sites, columns), what the colour shows; nan where `special` says why not.
        value: (sites, columns), as recorded.
        special: (sites, columns), `ZERO` where a statistic of log scale is zero or less,
            `INFINITE` where a value was not finite, else nan.
    """

    name: str
    statistic: str
    log: bool
    geometric: bool
    scale: Scale
    sites: tuple[str, ...]
    edges: NDArray[np.float64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    samples: NDArray[np.int64]
    height: Floats
    value: Floats
    special: Floats


def heat(
    run: Run,
    statistic: str,
    *,
    start: int | None = None,
    stop: int | None = None,
    columns: int = 300,
    of: Of = "mean",
    scale: Scale = "value",
    begin: Floats | None = None,
) -> Heat:
    """Read a stretch of a run as a heat map.

    Args:
        run: open.
        statistic: its name.
        start: the first step; None for the beginning.
        stop: the step to end before; None for the end.
        columns: at most so many.
        of: what is shown of steps that are joined.
        scale: the value, or its change since the run's first sampled steps: a ratio for a
            statistic of log scale, else a difference.
        begin: (sites,), what `beginning` gave for this statistic; read where it is not given.

    Returns:
        Its numbers.

    Raises:
        SignalpropError: there is no such statistic, or the file is damaged.
    """
    found = run.values(statistic, start=start, stop=stop, columns=columns)
    log = found.log or is_log(statistic, _whole(run, found, start, stop))
    found = joined(found)
    value: Floats = getattr(found, of).T
    special = np.full(value.shape, np.nan, np.float32)
    if log:
        special[value <= 0] = ZERO
    special[(np.isinf(found.high) | np.isinf(found.low)).T] = INFINITE
    with np.errstate(divide="ignore", invalid="ignore"):
        height = np.log10(value) if log else value.astype(np.float32, copy=True)
    if scale == "change":
        base = beginning(run, statistic) if begin is None else begin
        with np.errstate(divide="ignore", invalid="ignore"):
            height = height - (np.log10(base) if log else base)[: len(height), None]
    height = np.where(np.isnan(special) & np.isfinite(height), height, np.float32(np.nan))
    return Heat(
        run.path.name,
        statistic,
        log,
        found.log,
        scale,
        found.sites,
        edges(found.first, found.last),
        found.first,
        found.last,
        found.samples,
        height.astype(np.float32),
        value,
        special,
    )


def rows(maps: Sequence[Heat]) -> NDArray[np.int64]:
    """The sites of which anything was measured.

    Args:
        maps: of one run.

    Returns:
        Their indices.
    """
    some = np.zeros(len(maps[0].sites), bool)
    for one in maps:
        some |= (~np.isnan(one.value) | ~np.isnan(one.special)).any(axis=1)
    return np.flatnonzero(some) if some.any() else np.arange(len(some))


def cut(shown: Heat, kept: NDArray[np.int64]) -> Heat:
    """Some sites of a heat map.

    Args:
        shown: the map.
        kept: indices of the sites.

    Returns:
        The map of these.
    """
    return replace(
        shown,
        sites=tuple(shown.sites[k] for k in kept),
        height=shown.height[kept],
        value=shown.value[kept],
        special=shown.special[kept],
    )


def beginning(run: Run, statistic: str) -> Floats:
    """Per site, the first value that counts, over the run in 64 columns; nan where there is none.

    Args:
        run: open.
        statistic: its name.

    Returns:
        (sites,).
    """
    found = run.values(statistic, columns=64)
    if not len(found.first):
        return np.full(len(found.sites), np.nan, np.float32)
    counts = (found.count > 0) & np.isfinite(found.mean)
    at = counts.argmax(axis=0)
    values = found.mean[at, np.arange(len(at))]
    return np.where(counts.any(axis=0), values, np.float32(np.nan))


def _whole(run: Run, found: Values, start: int | None, stop: int | None) -> Floats:
    """What a user's own statistic is over the run, so that all its parts have one scale."""
    if known(found.statistic).of or (start is None and stop is None):
        return found.mean
    return run.values(found.statistic, columns=64).mean


def edges(first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.float64]:
    """Between which steps every column is drawn: half way to its neighbours.

    Args:
        first: (columns,), first steps.
        last: (columns,), last steps.

    Returns:
        (columns + 1,), increasing.
    """
    if not len(first):
        return np.zeros(0)
    inner = (last[:-1] + first[1:]) / 2
    if len(inner):
        gaps = first[1:] - last[:-1]
        before, after = float(gaps[0]) / 2, float(gaps[-1]) / 2
    else:
        before = after = 0.5
    return np.concatenate([[first[0] - before], inner, [last[-1] + after]])


def limits(
    maps: Sequence[Heat], *, beyond: float = 0.01, decades: float = 1.0
) -> tuple[float, float]:
    """The heights between which colours lie, the same for all maps.

    A hundredth at either end is left out, so that one wild cell does not make all others alike.

    Args:
        maps: of one statistic.
        beyond: share of the cells left out at either end.
        decades: at least so many, on a log scale: a flat statistic must not look like a cliff.

    Returns:
        The lowest and the highest; around zero for changes and learning shares.
    """
    parts = [m.height[np.isfinite(m.height)] for m in maps]
    seen = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    log = any(m.log for m in maps)
    name = maps[0].statistic if maps else ""
    centre = middle(name, maps[0].scale if maps else "value")
    if not len(seen):
        return (centre - 1, centre + 1) if centre is not None else (0.0, 1.0)
    low, high = (float(v) for v in np.quantile(seen, (beyond, 1 - beyond)))
    if centre is not None:
        least = 1.0 if log else 1e-3
        reach = max(abs(low - centre), abs(high - centre), least)
        return centre - reach, centre + reach
    if known(name).unit.startswith("share"):
        return 0.0, max(1e-3, float(seen.max()))
    if name.startswith("attention_entropy"):
        return 0.0, max(1e-3, float(seen.max()))
    more = max(0.0, (decades if log else 0.1 * abs(high)) - (high - low)) / 2
    return low - more, high + more if high + more > low - more else low + 1


def middle(statistic: str, scale: Scale) -> float | None:
    """The height where two colours meet; None where one colour is enough."""
    if scale == "change":
        return 0.0
    if statistic == "learning_share":
        return 0.0
    if statistic == "update_ratio":
        return -3.0  # |dw| / |w| of about 1e-3 is what well-tuned trainings show
    return None
