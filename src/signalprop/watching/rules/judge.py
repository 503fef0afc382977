"""The rules over time at work: every alert once, beside a training or afterwards."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from signalprop.errors import SignalpropError
from signalprop.watching.file.reader import Run
from signalprop.watching.file.schema import RunSite
from signalprop.watching.rules.attention import ATTENTION_RULES
from signalprop.watching.rules.course import COURSE_RULES
from signalprop.watching.rules.depth import DEPTH_RULES
from signalprop.watching.rules.layers import LAYER_RULES
from signalprop.watching.rules.memory import MEMORY_RULES
from signalprop.watching.rules.numbers import NUMBER_RULES
from signalprop.watching.rules.past import Past
from signalprop.watching.rules.rule import RuleOverTime
from signalprop.watching.sample import Alarm, Floats, Sample

_LOG = logging.getLogger("signalprop")

DEFAULT_RULES_OVER_TIME: tuple[RuleOverTime, ...] = tuple(
    sorted(
        DEPTH_RULES + LAYER_RULES + COURSE_RULES + ATTENTION_RULES + NUMBER_RULES + MEMORY_RULES,
        key=lambda judge: judge.rule.code,
    )
)

#: steps between two looks of the rules that are asked at steps
LOOK = 32
#: steps after which an alert is thought over, at least; and the part of the run that it takes
REST, REST_PART = 256, 0.1
#: rules whose sites are where it began, not what they judge
_ABOUT_ALL = ("SP405", "SP411")
#: statistics that are read from a run file
_READ = (
    "activation_rms", "delta_rms", "dead", "weight_norm", "gradient_norm", "update_norm",
    "update_ratio", "gradient_rms", "learning_share", "attention_entropy",
    "attention_entropy_most", "attention_logit",
)  # fmt: skip


class Judge:
    """Judges a run while it goes on.

    For a sampled step call `see` before `step`, so that what is not finite is found at its site.

    An alert is told once. It may come again for a site that it did not name yet, or one of which it
    was silent for `REST` steps and a tenth of the run; but no rule speaks more often than once
    every `REST` steps and a tenth of the run, so a whole run has some tens of alerts at most,
    however long it is. A value that is not finite silences its rule until all were finite for as
    long.

    No method raises: a rule that fails is left out from then on, and the log says so once.

    Args:
        rules: functions marked by `over_time`.
        ignore: codes of rules that are left out.

    Attributes:
        rules: those that are asked.

    Raises:
        SignalpropError: a code to ignore is no rule's.
    """

    def __init__(
        self,
        rules: Sequence[RuleOverTime] = DEFAULT_RULES_OVER_TIME,
        ignore: Collection[str] = (),
    ) -> None:
        ignore = {ignore} if isinstance(ignore, str) else set(ignore)
        codes = [judge.rule.code for judge in rules]
        unknown = sorted(ignore - set(codes))
        if unknown:
            raise SignalpropError(
                f"there is no rule over time {unknown[0]!r}; they are {', '.join(codes)}"
            )
        self.rules = tuple(judge for judge in rules if judge.rule.code not in ignore)
        self._past = Past()
        self._said: dict[str, _Said] = {}
        self._by_when = {
            when: [judge for judge in self.rules if judge.when == when]
            for when in ("stir", "steps", "block")
        }
        self._looked = -(1 << 60)

    # ---------------------------------------------------------------- what is given

    @property
    def sites(self) -> tuple[RunSite, ...]:
        """The sites, in the order of all values; more may be added at the end at any time."""
        return self._past.sites

    @sites.setter
    def sites(self, sites: Sequence[RunSite]) -> None:
        self._past.add_sites(tuple(sites))

    def see(self, sample: Sample) -> tuple[Alarm, ...]:
        """Judge a sampled step.

        Args:
            sample: what was measured: inf is what is not finite, nan what does not apply.

        Returns:
            What is to be told now, mostly nothing.
        """
        past = self._past
        self._at(sample.step)
        past.scalars.update(sample.scalars)
        past.add_sites(sample.sites)
        found: list[Alarm] = []
        if not sample.values:
            return ()
        loss = float(sample.scalars.get("loss", 0.0))
        scaled = "loss_scale" in past.scalars
        if past.finite.see(sample.values, loss, scaled=scaled):
            found += self._ask("stir")
        if past.sample(sample.step, sample.values):
            past.known.update(past.scalars)
            if past.comparable:
                found += self._ask("block")
        return tuple(found)

    def step(
        self, step: int, scalars: Mapping[str, float], gradients: Floats | None = None
    ) -> tuple[Alarm, ...]:
        """Judge a step, sampled or not, by the little that is known of every step.

        Args:
            step: its number.
            scalars: what was logged at this step: `loss`, `learning_rate`, `skipped`, ...
            gradients: (sites,), the gradient probes `gradient_rms`; inf is not finite, nan does not
                apply; None where they are not known.

        Returns:
            What is to be told now, mostly nothing.
        """
        past = self._past
        self._at(step)
        past.scalars.update(scalars)
        loss = scalars.get("loss")
        stirred = False
        if loss is None:
            value = math.nan
        else:
            value = loss = float(loss)
            if value - value == 0:  # finite
                stirred = past.losses.add(step, value, scalars.get("learning_rate"))
        past.ring.put(step, value, gradients)
        scaled = "loss_scale" in past.scalars
        if past.finite.probe(gradients, 0.0 if loss is None else value, scaled=scaled):
            stirred = True
        found = self._ask("stir") if stirred else []
        if step - self._looked >= LOOK:
            self._looked = step
            past.known.update(past.scalars)
            past.skips.see(step, past.first, past.scalars, 200)
            found += self._ask("steps")
        return tuple(found)

    def window(self) -> tuple[NDArray[np.int64], dict[str, Floats], Floats]:
        """The last steps at full resolution, for `RunWriter.window`.

        Returns:
            Steps (steps,), oldest first, 256 at most; values, `gradient_rms` of (steps, sites); and
            the loss (steps,), nan where it is not known.
        """
        steps, gradients, loss = self._past.ring.window()
        return steps, {"gradient_rms": gradients}, loss

    # ---------------------------------------------------------------- inside

    def _at(self, step: int) -> None:
        self._past.step = step
        if self._past.first < 0:
            self._past.first = step

    def _ask(self, when: str) -> list[Alarm]:
        past = self._past
        told: list[Alarm] = []
        rest = max(REST, REST_PART * (past.step - past.first))
        for judge in tuple(self._by_when[when]):
            said = self._said.setdefault(judge.rule.code, _Said())
            if when == "stir":
                if said.resting(past.step, rest):
                    said.still(past.step)
                    continue
            elif not past.known.issuperset(judge.rule.needs):
                continue
            try:
                found = list(judge(past))
            except Exception:
                self._by_when[when].remove(judge)
                _LOG.warning("rule %s failed and is left out", judge.rule.code, exc_info=True)
                continue
            if found:
                told += said.news(found, past.step, rest)
        return told


class _Said:
    """What one rule has told.

    Attributes:
        spoke: the step at which it did last.
        named: what it has told and was not silent of for long, and when it last came.
    """

    def __init__(self) -> None:
        self.spoke: int | None = None
        self.named: dict[str, int] = {}

    def resting(self, step: int, rest: float) -> bool:
        """Whether it has spoken not long ago."""
        return self.spoke is not None and step - self.spoke <= rest

    def still(self, step: int) -> None:
        """Take it that what was told goes on."""
        self.named = dict.fromkeys(self.named, step)

    def news(self, found: list[Alarm], step: int, rest: float) -> list[Alarm]:
        """Those of its alarms that have something to say that was not told."""
        resting = self.resting(step, rest)
        fresh: list[Alarm] = []
        for alarm in found:
            # by its sites; what is about the whole network by what it measures
            names = alarm.sites or (f"({alarm.unit})",)
            if alarm.code in _ABOUT_ALL:
                names = (alarm.code,)
            new = [n for n in names if n not in self.named or step - self.named[n] > rest]
            if new and not resting:
                fresh.append(alarm)
                self.named.update(dict.fromkeys(names, step))
            else:
                self.named.update({n: step for n in names if n not in new})
        if fresh:
            self.spoke = step
        return fresh


def judge(
    run: Run,
    rules: Sequence[RuleOverTime] = DEFAULT_RULES_OVER_TIME,
    ignore: Collection[str] = (),
) -> tuple[Alarm, ...]:
    """Judge a recorded run afterwards.

    What is recorded is read in pieces of some hundred samples. The gradients between sampled steps
    are not recorded, so a spike or what is not finite is found at the sampled steps and in the
    loss; where old samples were thinned, their means are judged.

    Args:
        run: the opened file.
        rules: as for `Judge`.
        ignore: as for `Judge`.

    Returns:
        All alarms, in the order of steps.
    """
    judge = Judge(rules, ignore)
    sites = run.sites
    scalars: dict[int, dict[str, float]] = {}
    for name, (steps, values) in run.scalars().items():
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            scalars.setdefault(step, {})[name] = value
    waiting = sorted(scalars, reverse=True)
    found: list[Alarm] = []

    def until(step: float) -> None:
        while waiting and waiting[-1] < step:
            at = waiting.pop()
            found.extend(judge.step(at, scalars[at]))

    judge.sites = sites
    last = -1
    for piece in _pieces(run):
        for step in sorted(piece):
            if step <= last:
                continue
            last = step
            until(step)
            values = piece[step]
            own = scalars.get(step, {})
            found += judge.see(Sample(step, sites, values, own))
            if waiting and waiting[-1] == step:
                waiting.pop()
            found += judge.step(step, own, values.get("gradient_rms"))
    until(math.inf)
    return tuple(found)


def _pieces(run: Run, size: int = 256) -> Iterator[dict[int, dict[str, Floats]]]:
    """Values by step and statistic, some hundred steps at a time."""
    steps = run.steps
    borders: list[int | None] = [None, *steps[:: max(size, 1)].tolist(), None]
    names = [name for name in run.statistics if name in _READ]
    for start, stop in itertools.pairwise(borders):
        piece: dict[int, dict[str, Floats]] = {}
        for name in names:
            read = run.values(name, start=start, stop=stop)
            value = np.where(np.isnan(read.mean), read.low, read.mean)
            value[np.isposinf(read.high)] = np.inf
            for row, step in enumerate(read.first.tolist()):
                piece.setdefault(step, {})[name] = value[row]
        yield piece
