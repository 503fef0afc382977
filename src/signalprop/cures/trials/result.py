"""What trials have shown, as plain data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from signalprop._views import Viewable
from signalprop.capture.trace import plain
from signalprop.cures.training import Training
from signalprop.diagnosis.finding import Diagnosis

#: helps: better with every seed, by more than chance; better: the same of fewer than three seeds
Verdict = Literal["helps", "better", "no difference", "worse", "failed", "untouched"]

#: seeds below which nothing is proved
PROOF = 3
#: seeds from which on the mean gain decides alone, whatever a single one does
MANY = 6
#: a gain smaller than this is none: half a point of accuracy
LEAST = 0.005


@dataclass(frozen=True)
class Trial:
    """A candidate, tried.

    Attributes:
        name: names of its cures, joined by ` + `; `untouched`.
        cures: their names.
        lines: what was changed, to paste.
        verdict: against the untouched network after as many updates.
        metric: value of each seed on the held-out data at its last update; -inf where it diverged.
        untouched: the same of the untouched network after as many updates.
        losses: of its own loss on the held-out data, for each seed.
        curves: training loss of each seed.
        step: its last update.
        stopped: whether it was stopped early, as one of the losers.
        failed: why it could not go on; `""` where it could.
        seconds: all updates of all seeds.
    """

    name: str
    cures: tuple[str, ...]
    lines: tuple[str, ...]
    verdict: Verdict
    metric: tuple[float, ...]
    untouched: tuple[float, ...]
    losses: tuple[float, ...]
    curves: tuple[tuple[float, ...], ...]
    step: int
    stopped: bool
    failed: str
    seconds: float

    @property
    def mean(self) -> float:
        """Mean of the metric over the seeds."""
        return statistics.fmean(self.metric)

    @property
    def spread(self) -> float:
        """Standard deviation of the metric over the seeds; nan of one."""
        finite = all(map(math.isfinite, self.metric))
        return statistics.stdev(self.metric) if len(self.metric) > 1 and finite else math.nan

    @property
    def gain(self) -> float:
        """Mean of the metric less that of the untouched network."""
        if not math.isfinite(self.mean):
            return -math.inf
        return self.mean - statistics.fmean(self.untouched)


def judged(
    metric: tuple[float, ...], untouched: tuple[float, ...], sampling: float = 0.0
) -> Verdict:
    """A verdict from pairs of the same seed.

    Args:
        metric: of the candidate, one for each seed.
        untouched: of the untouched network.
        sampling: standard error of one metric for how few samples it is judged on, which all
            seeds share.

    Returns:
        `helps` where the mean gain over at least three seeds is more than twice its standard error
        and than LEAST, and, of fewer than MANY, it is better with each. A loss may be so spread out
        where nothing is learned that its mean says little; then it counts that the worst seed is
        better than the best without, by more than the spread of its own.
    """
    if not all(map(math.isfinite, metric)):
        return "failed"
    gains = [a - b for a, b in zip(metric, untouched, strict=True)]
    if any(map(math.isinf, gains)):  # the untouched network diverges
        gains = [g for g in gains if math.isfinite(g)] or [math.inf]
        if math.isinf(gains[0]):
            return "helps" if len(metric) >= PROOF else "better"
    mean = statistics.fmean(gains)
    spread = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    error = math.hypot(spread, sampling)
    apart = min(metric) - max(untouched) > max(LEAST, 2 * sampling, _deviation(metric))
    if abs(mean) <= max(LEAST, 2 * error) and not apart:
        return "no difference"
    if mean < 0:
        return "worse"
    if min(gains) <= 0 and len(gains) < MANY:
        return "no difference"
    return "helps" if len(metric) >= PROOF else "better"


def best_of(ranked: Iterable[Trial]) -> Trial | None:
    """The first that helps and was not stopped."""
    good = ("helps", "better")
    return next((t for t in ranked if t.verdict in good and not t.stopped), None)


def _deviation(values: tuple[float, ...]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.inf


@dataclass(frozen=True, repr=False)
class Trials(Viewable):
    """Candidates, tried on the user's data under the same seeds and batches.

    Attributes:
        model: class name of the network.
        metric: name of what candidates are ranked by; the higher the better.
        data: where the batches come from, and what is held out, as a sentence.
        seeds: the seeds.
        steps: updates of a whole training.
        untouched: the network as it is.
        trials: the candidates, best first.
        before: the diagnosis of the untouched network.
        after: the diagnosis of the best candidate, before its training; None where none helps.
        cured: the best candidate, not trained; None where none helps.
        rejected: cures that were prescribed but do not apply -> why.
        complete: False where the trials were interrupted.
        notes: what the reader has to know, as sentences.
    """

    model: str
    metric: str
    data: str
    seeds: tuple[int, ...]
    steps: int
    untouched: Trial
    trials: tuple[Trial, ...]
    before: Diagnosis
    after: Diagnosis | None
    cured: Training | None
    rejected: dict[str, str]
    complete: bool
    notes: tuple[str, ...]

    @property
    def best(self) -> Trial | None:
        """The best candidate that helps; None where nothing does."""
        return best_of(self.trials)

    @property
    def unsteady(self) -> bool:
        """Whether nothing is proved as the untouched network learns with some seeds only.

        A candidate then does well where the untouched network does not, and hardly worse elsewhere:
        more seeds can tell whether that is luck.
        """
        plain = self.untouched.metric
        width = max(plain) - min(plain)
        if self.best is not None or not math.isfinite(width) or len(plain) >= MANY:
            return False
        return any(
            min(t.metric) - min(plain) > width / 2
            and min(a - b for a, b in zip(t.metric, plain, strict=True)) > -width / 10
            for t in self.trials
            if not t.stopped and width > LEAST and len(t.metric) == len(plain)
        )

    def frame(self) -> Any:
        """One row per candidate, the untouched network last, as a pandas DataFrame."""
        import pandas as pd

        rows = [
            {"name": t.name, "verdict": t.verdict, "mean": t.mean, "spread": t.spread,
             "gain": t.gain, "step": t.step, "stopped": t.stopped, "failed": t.failed,
             "seconds": t.seconds, "lines": "\n".join(t.lines)}
            for t in (*self.trials, self.untouched)
        ]  # fmt: skip
        return pd.DataFrame(rows).set_index("name")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for json; the cured network is left out."""
        found = plain(
            {k: v for k, v in self.__dict__.items() if k not in ("cured", "before", "after")}
        )
        found["before"] = _told(self.before)
        found["after"] = None if self.after is None else _told(self.after)
        return found


def _told(found: Diagnosis) -> dict[str, Any]:
    return {"verdict": found.verdict, "findings": plain(found.findings)}
