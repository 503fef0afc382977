"""What is read from a run file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signalprop.watching.file.levels import Counts, Floats

Steps = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Values:
    """A statistic over steps and sites.

    Attributes:
        statistic: its name.
        sites: names of the sites.
        first: (columns,), first step of a column.
        last: (columns,), its last step; equal to `first` at full resolution.
        samples: (columns,), how many sampled steps it holds.
        mean: (columns, sites), mean over the samples that count, the geometric one for a statistic
            of log scale; nan where there is no value.
        low: (columns, sites), smallest value; may be -inf.
        high: (columns, sites), largest value; inf where there was one.
        count: (columns, sites), values that count: finite ones, of a statistic of log scale the
            positive ones. Less than `samples` where some were not measured or not finite.
        log: whether it was recorded as one of log scale.
    """

    statistic: str
    sites: tuple[str, ...]
    first: Steps
    last: Steps
    samples: Steps
    mean: Floats
    low: Floats
    high: Floats
    count: Counts
    log: bool


@dataclass(frozen=True)
class Alert:
    """An alert of the run.

    Attributes:
        step: when.
        code: of the rule.
        severity: as the rule has it.
        site: where; None where it is about the whole network.
        detail: what else was recorded with it.
    """

    step: int
    code: str
    severity: str
    site: str | None
    detail: Any


@dataclass(frozen=True, eq=False)
class Window:
    """Every step before a spike.

    Attributes:
        step: of the spike.
        reason: what happened there.
        steps: (steps,).
        values: per statistic, (steps, sites); sites added later are missing.
    """

    step: int
    reason: str
    steps: Steps
    values: Mapping[str, Floats]


@dataclass(frozen=True)
class Replay:
    """What is needed to run a step again.

    Attributes:
        step: of the training.
        site: where the first non-finite value was seen.
        batch: index of the batch.
        states: per random generator, its state.
        detail: what else was recorded with it.
    """

    step: int
    site: str | None
    batch: int | None
    states: Mapping[str, bytes]
    detail: Any


@dataclass(frozen=True, eq=False)
class News:
    """What was recorded after a cursor.

    Attributes:
        cursor: to ask with next.
        restarted: whether the cursor was of no use (unknown, or the run went on from an earlier
            step): what the reader knows is to be thrown away, this begins anew.
        more: whether there is more than was asked for at a time.
        sites: how many sites there are.
        values: per step and statistic, (sites,).
        scalars: step, name, value.
        alerts: the new ones.
        windows: how many windows there are.
    """

    cursor: str
    restarted: bool
    more: bool
    sites: int
    values: Mapping[int, Mapping[str, Floats]]
    scalars: tuple[tuple[int, str, float], ...]
    alerts: tuple[Alert, ...]
    windows: int
