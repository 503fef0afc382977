"""From the numbers of a step to the run file, to the rules, and to whoever else listens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from signalprop.watching.actions import Actions
from signalprop.watching.file.writer import RunWriter
from signalprop.watching.models import Sites
from signalprop.watching.random import RandomStates
from signalprop.watching.rules.judge import Judge
from signalprop.watching.sample import Alarm, Sample
from signalprop.watching.statistics import STATISTICS

_NOTHING = np.full(1, np.nan)
_LOG = logging.getLogger("signalprop")

#: codes of the rules about which more is kept: the steps before, or what is needed to run it again
SPIKE, NOT_FINITE = "SP405", "SP411"


class Listener(Protocol):
    """Somebody beside the run file who is told, e.g. a logger of another tool."""

    def sample(self, sample: Sample) -> None:
        """A sampled step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""

    def alarm(self, alarm: Alarm) -> None:
        """An alert."""

    def close(self) -> None:
        """The run is over."""


class Recording:
    """Hands on what a training shows; nothing in it raises, but what an action was asked to raise.

    Args:
        writer: of the run file; None where there is none.
        sites: of the run.
        judge: the rules.
        actions: what is done about alerts.
        listeners: who else is told.
        replayable: the batch and the random states of a step, as far as they are known.

    Attributes:
        alarms: every alert so far.
    """

    def __init__(
        self,
        writer: RunWriter | None,
        sites: Sites,
        judge: Judge,
        actions: Actions,
        listeners: Sequence[Listener],
        replayable: Callable[[int], tuple[int | None, RandomStates | None]],
    ) -> None:
        self.writer, self.sites, self.judge, self.actions = writer, sites, judge, actions
        self.alarms: list[Alarm] = []
        self._listeners = list(listeners)
        self._replayable = replayable
        self._known: NDArray[np.int64] = np.zeros(0, np.int64)

    def sampled(
        self, step: int, values: Mapping[str, NDArray[np.float64]], numbers: Mapping[str, float]
    ) -> tuple[Alarm, ...]:
        """A sampled step has been measured.

        Args:
            step: its number.
            values: statistics, (sites,).
            numbers: of the whole.

        Returns:
            Alerts of the rules.
        """
        sites = tuple(self.sites.all)
        self.judge.sites = sites
        # in the order in which they are shown; what was not measured at all is left out
        values = {n: v for n in STATISTICS if not np.isnan(v := values.get(n, _NOTHING)).all()}
        sample = Sample(step, sites, values, numbers)
        if self.writer is not None:
            if len(self._known) < len(sites):
                self._known = self.writer.add_sites(sites)
            size = len(sites)
            self.writer.put(step, {n: _wide(v, size) for n, v in values.items()}, self._known)
            self.writer.scalar(step, numbers)
        self._tell("sample", sample)
        found = self.judge.see(sample)
        self._told(found)
        return found

    def stepped(
        self, step: int, scalars: Mapping[str, float], gradients: NDArray[np.float64] | None
    ) -> tuple[Alarm, ...]:
        """A step is over.

        Args:
            step: its number.
            scalars: what the user logged of it.
            gradients: a glance at the gradients, (sites,).

        Returns:
            Alerts of the rules.
        """
        if scalars:
            if self.writer is not None:
                self.writer.scalar(step, scalars)
            self._tell("scalars", step, scalars)
        found = self.judge.step(step, scalars, gradients)
        if found:
            self._told(found)
        return found

    def act(self, alarms: Sequence[Alarm]) -> None:
        """Do what was asked for.

        Raises:
            StopTraining: where an action says so.
        """
        self.actions.take(alarms)

    def close(self) -> None:
        """Write the rest."""
        for listener in self._listeners:
            try:
                listener.close()
            except Exception as error:
                _LOG.warning("%s: %s", type(listener).__name__, error)
        if self.writer is not None:
            self.writer.close()

    def _told(self, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            self.alarms.append(alarm)
            if self.writer is not None:
                site = alarm.sites[0] if alarm.sites else None
                self.writer.alert(alarm.step, alarm.code, alarm.severity, site, alarm.detail)
                self._keep_more(self.writer, alarm, site)
            self._tell("alarm", alarm)

    def _keep_more(self, writer: RunWriter, alarm: Alarm, site: str | None) -> None:
        if alarm.code in (SPIKE, NOT_FINITE):
            steps, values, loss = self.judge.window()
            if len(steps):
                writer.window(
                    alarm.step,
                    alarm.code,
                    [int(s) for s in steps],
                    {**values, "loss": loss[:, None]},
                )
        if alarm.code == NOT_FINITE:
            batch, states = self._replayable(alarm.since)
            if states is not None:
                writer.replay(alarm.since, site, batch, states.to_bytes(), alarm.detail)

    def _tell(self, what: str, *args: Any) -> None:
        for listener in list(self._listeners):
            try:
                getattr(listener, what)(*args)
            except Exception as error:
                self._listeners.remove(listener)
                _LOG.warning("%s is told nothing more: %s", type(listener).__name__, error)


def _wide(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    if len(values) == size:
        return values
    return np.concatenate([values, np.full(size - len(values), np.nan)])
