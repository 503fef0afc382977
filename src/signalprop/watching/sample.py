"""What passes from the recorder to the rules: samples in, alarms out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signalprop.diagnosis.finding import Severity
from signalprop.watching.file.schema import RunSite

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sample:
    """What is known of one step of a training.

    Attributes:
        step: number of the update, from 0.
        sites: every site known so far, in execution order of the first step that saw it; later
            samples may have more, never fewer and never in another order.
        values: per statistic (`signalprop.watching.statistics`), (sites,), nan where it does not
            apply; empty for a step that was not sampled.
        scalars: numbers of the step: what the user logged (`loss`, ...), and `learning_rate`,
            `gradient_norm` (of all parameters, before clipping), `clipped` (the factor that
            clipping multiplied by), `loss_scale`, `skipped` (updates that GradScaler skipped so
            far).
    """

    step: int
    sites: tuple[RunSite, ...]
    values: Mapping[str, Floats]
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Alarm:
    """What a rule over time has to say, once.

    Attributes:
        step: at which it was told.
        code: of the rule, e.g. `SP401`.
        title: the rule's title.
        severity: `issue` or `tip`.
        sites: where, from the worst on; empty where it is about the whole network.
        value: the measured number.
        unit: its unit.
        threshold: the number it was compared with.
        since: the step at which it set in.
        explanation: one or two plain sentences with the numbers.
        cures: names of the cures that treat it, best first.
    """

    step: int
    code: str
    title: str
    severity: Severity
    sites: tuple[str, ...]
    value: float
    unit: str
    threshold: float
    since: int
    explanation: str
    cures: tuple[str, ...]

    @property
    def detail(self) -> dict[str, Any]:
        """What a run file keeps of it beside step, code, severity and the first site."""
        return {
            "title": self.title,
            "sites": list(self.sites),
            "value": self.value,
            "unit": self.unit,
            "threshold": self.threshold,
            "since": self.since,
            "explanation": self.explanation,
            "cures": list(self.cures),
        }
