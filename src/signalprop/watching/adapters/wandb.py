"""A watched run in Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from signalprop.errors import SignalpropError
from signalprop.watching.actions import line
from signalprop.watching.adapters import exporting
from signalprop.watching.adapters.adapter import Adapter
from signalprop.watching.adapters.packages import needed
from signalprop.watching.adapters.summary import Sites, Told
from signalprop.watching.sample import Alarm


class WandB(Adapter):
    """Tells Weights & Biases what a watched run shows: `sp.watch(..., listeners=[WandB()])`.

    Of every statistic three curves (smallest, median and largest over the sites), the names of the
    sites beside them, and alerts as text and count. They have a step of their own,
    `signalprop/step`, so they go with calls of `wandb.log` that count otherwise.

    W&B takes no number for a step before its last one, so nothing is told with `step=`: numbers
    join the row under way, which your next `wandb.log` ends; only where none came between two
    samples, the row is ended here.

    Args:
        run: a run; None for the one that is active when training starts.
        prefix: of all names.
        sites: True for a curve of every site and statistic too, or patterns of names of sites.
        statistics: names of those that are told; None for all.
        scalars: numbers that the loop logs: those of sampled steps (`sampled`), `all`, `none`.
        alert: whether alerts are sent to where W&B sends them (mail, Slack), too.
        commit: False never ends a row, for programs that log with a `step=` that grows more slowly
            than samples come (epochs): of several samples in a row the last is then kept.

    Raises:
        SignalpropError: an argument is not what it should be.
        MissingPackageError: `wandb` is not installed.

    Note:
        Cost: about a millisecond per sample, in the training's thread; a process of W&B's own
        sends.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        prefix: str = "signalprop",
        sites: Sites = False,
        statistics: Iterable[str] | None = None,
        scalars: str = "sampled",
        alert: bool = False,
        commit: bool = True,
    ) -> None:
        super().__init__(prefix=prefix, sites=sites, statistics=statistics, scalars=scalars)
        self._package = needed("wandb", "wandb", "WandB")
        if run is not None and not (hasattr(run, "log") and hasattr(run, "define_metric")):
            raise SignalpropError(f"WandB({type(run).__name__}): give the run of wandb.init()")
        self._run, self._alert, self._commit = run, alert, commit
        self._defined: set[str] = set()
        self._row: tuple[int, int] | None = None  # step of ours and of W&B, of the row under way
        self._alarms = 0

    def put(self, told: Told) -> None:
        """Hand numbers of a step on."""
        where = {f"{name}_site": site for name, site in told.where.items()}
        self._log(told.step, {**told.numbers, **where})

    def say(self, alarm: Alarm) -> None:
        """Hand an alert on."""
        self._alarms += 1
        prefix = self.summary.prefix
        text = line(alarm)
        self._log(alarm.step, {f"{prefix}/alerts": self._alarms, f"{prefix}/alert": text})
        if self._alert:
            level = self._package.AlertLevel.WARN
            title = f"{alarm.code} {alarm.title}"[:60]
            self._active().alert(title=title, text=text, level=level, wait_duration=60)

    def close(self) -> None:
        """End the row that is under way; the run itself stays open."""
        run = self._run
        # a run that was finished before has written its row
        if run is not None and self._row is not None and self._commit and not _finished(run):
            if self._row[1] == run.step:
                run.log({}, commit=True)
            self._row = None

    def _log(self, step: int, values: dict[str, Any]) -> None:
        run = self._active()
        waits = self._row is not None and self._row[0] != step and self._row[1] == run.step
        if self._commit and waits:  # nobody has ended the row
            run.log({}, commit=True)
        self._define(run, values)
        run.log({**values, f"{self.summary.prefix}/step": step}, commit=False)
        self._row = (step, run.step)

    def _define(self, run: Any, values: Iterable[str]) -> None:
        """Say of every name that it counts by our step, also where others have said so of `*`."""
        prefix = self.summary.prefix
        own, each = f"{prefix}/step", f"{prefix}_sites/*"
        if not self._defined:
            run.define_metric(own, hidden=True)
            run.define_metric(each, step_metric=own)
            self._defined |= {own, each}
        for name in values:
            if name not in self._defined and not name.startswith(f"{prefix}_sites/"):
                self._defined.add(name)
                run.define_metric(name, step_metric=own)

    def _active(self) -> Any:
        if self._run is None:
            self._run = self._package.run
            if self._run is None:
                raise SignalpropError(
                    "no W&B run is active; call wandb.init() first, or give its run to WandB"
                )
        if _finished(self._run):  # W&B would wait half a minute for an answer
            raise SignalpropError("the W&B run was finished before the watch was closed")
        return self._run


def _finished(run: Any) -> bool:
    return bool(getattr(run, "_is_finished", False))


def export(
    run: str | Path,
    to: Any = None,
    *,
    prefix: str = "signalprop",
    sites: Sites = False,
    statistics: Iterable[str] | None = None,
) -> int:
    """Hand a recorded run to Weights & Biases.

    Args:
        run: the run file.
        to: a W&B run; None for the active one. It stays open.
        prefix: see `WandB`.
        sites: see `WandB`.
        statistics: see `WandB`.

    Returns:
        How many sampled steps were handed over.

    Raises:
        SignalpropError: the file cannot be read, or no run is active.
        MissingPackageError: `wandb` is not installed.
    """
    adapter = WandB(to, prefix=prefix, sites=sites, statistics=statistics, scalars="all")
    return exporting.export(run, adapter)
