"""`watch`: a training loop seen while it runs, unchanged."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from signalprop.capture.observe import unwrapped
from signalprop.errors import SignalpropError
from signalprop.watching import given
from signalprop.watching.actions import Actions, Checkpoints, StopTraining
from signalprop.watching.file.writer import RunWriter
from signalprop.watching.logged import Logged
from signalprop.watching.models import Sites, Watched, named, wrappers
from signalprop.watching.passes.window import unwarned
from signalprop.watching.random import RandomStates
from signalprop.watching.ranks.several import ranks_of
from signalprop.watching.recording import SPIKE, Listener, Recording
from signalprop.watching.rules.judge import DEFAULT_RULES_OVER_TIME, Judge
from signalprop.watching.sample import Alarm
from signalprop.watching.scaling import Scaling
from signalprop.watching.statistics import STATISTICS
from signalprop.watching.stepping import Stepper

_LOG = logging.getLogger("signalprop")

#: steps that are sampled one after the other once a loss spike was told
AFTER_SPIKE = 10

Models = torch.nn.Module | Sequence[torch.nn.Module] | Mapping[str, torch.nn.Module]
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None


def watch(
    model: Models,
    optimizer: Optimizers = None,
    *,
    every: int = 50,
    to: str | Path | None = "run.sp",
    mode: str = "new",
    start: int | None = None,
    on: Any = "warn",
    scaler: Any = None,
    rules: Sequence[Any] = DEFAULT_RULES_OVER_TIME,
    ignore: Sequence[str] = (),
    listeners: Sequence[Listener] = (),
    max_bytes: int | None = None,
    raises: bool = True,
) -> Watch:
    """Watch a training run: statistics of every site to a file, and rules that speak up.

    The loop stays as it is. A step is an update of the optimizer; with several a step ends with
    the update of the last one given. Every step that `every` divides is sampled: its forward and
    backward passes are seen by hooks that are there for this step only. Training goes on bit for
    bit as without, and no error of the watch reaches it.

    Args:
        model: the model, also wrapped (compiled, DistributedDataParallel) or sharded
            (`fully_shard`, tensor parallel); several as a sequence or a mapping by name.
        optimizer: what updates them, one or several, in the order in which the loop steps them;
            None where updates are made otherwise: then call `Watch.step` after each.
        every: steps from sample to sample.
        to: the run file; None for none.
        mode: `new` writes to `run-2.sp` and so on where the file exists; `overwrite` replaces it;
            `resume` goes on in it.
        start: number of the first step; otherwise 0, or the step after the last of a run that is
            resumed. What a resumed run had of this step and later ones is replaced.
        on: what is done about an alert: `warn` (a line in the log `signalprop`), `stop` (the
            `with` block ends), `checkpoint` (model and optimizer are saved beside the run), a
            function of the alert, a sequence of these, or a mapping to them from a rule's code, a
            severity or `any`.
        scaler: the `torch.amp.GradScaler`, where there is one.
        rules: what is asked.
        ignore: codes of rules that are left out.
        listeners: adapters that are told the same (`signalprop.watching.adapters`).
        max_bytes: size that the file should not exceed: old samples are then thinned.
        raises: whether `stop` ends the training by an exception out of the update; with False the
            loop sees for itself whether `Watch.stopped` says that it is to end.

    Returns:
        The watch, a context manager; without `with`, call `Watch.close` at the end.

    Raises:
        SignalpropError: an argument is not what it should be. A file that cannot be written does
            not raise: the log says so, and training goes on.

    Note:
        Cost: a sampled step takes about a third more time; others two hooks, a glance at 256
        elements of each gradient and a copy of the random generators' states. Memory: on sampled
        steps a copy of the weights, and one set of gradients from the step before.

    Examples:
        >>> import torch, signalprop as sp
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with sp.watch(model, optimizer, every=10, to=None) as run:
        ...     for _ in range(20):
        ...         loss = model(torch.randn(16, 4)).square().mean()
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
        ...         run.log(loss=loss)
        >>> run.alarms
        ()
    """
    return Watch(
        model,
        optimizer,
        every=every,
        to=to,
        mode=mode,
        start=start,
        on=on,
        scaler=scaler,
        judge=Judge(rules, ignore),
        listeners=listeners,
        max_bytes=max_bytes,
        raises=raises,
    )


class Watch:
    """A training that is watched; made by `watch`.

    Attributes:
        path: the run file; None where there is none.
    """

    def __init__(
        self,
        model: Models,
        optimizer: Optimizers,
        *,
        every: int,
        to: str | Path | None,
        mode: str,
        start: int | None,
        on: Any,
        scaler: Any,
        judge: Judge,
        listeners: Sequence[Listener],
        max_bytes: int | None,
        raises: bool,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise SignalpropError(f"every={every!r} must be a whole number of steps, 1 or more")
        if mode not in ("new", "overwrite", "resume"):
            raise SignalpropError(f"mode={mode!r} is none of 'new', 'overwrite', 'resume'")
        models = named(model)
        optimizers = given.optimizers(optimizer)
        given.check_held([unwrapped(m) for _, m in models], optimizers)
        path = given.file(to, mode)
        actions = Actions(
            on,
            checkpoint=None if path is None else Checkpoints(path, dict(models), optimizers),
            codes=[rule.rule.code for rule in judge.rules],
        )
        first = given.first_step(start, path, mode)
        self._closed = False
        self._raises = raises
        self._stopped: Alarm | None = None
        self._gradients: dict[int, NDArray[np.float64]] = {}
        self._pending: tuple[Alarm, ...] = ()
        self._said: set[str] = set()
        self._broken: str | None = None
        self._sites = Sites()
        settings = repr((every, mode, start, [name for name, _ in models], len(optimizers)))
        self._ranks = ranks_of([m for _, m in models], settings=settings)
        watched = [
            Watched(name, i, unwrapped(m), self._sites, wrappers(m))
            for i, (name, m) in enumerate(models)
        ]
        # asked now: where a rank leaves later, it is the only one that knows at once
        self._together = self._ranks.together
        self._scaling = Scaling(scaler, optimizers, self._skipped)
        self._stepper = Stepper(
            watched,
            self._sites,
            optimizers,
            every=every,
            ranks=self._ranks,
            scaling=self._scaling,
            sampled=self._sampled,
            glanced=self._glanced,
            ended=self._ended,
            failed=self._failed,
        )
        self._stepper.step = self._ranks.first(first)
        self._logged = Logged(self._stepper.step, self._stepper.later, self._warn)
        writer = self._writer(path, mode, max_bytes, models, optimizers, every)
        if writer is not None and path != Path(to or ""):
            _LOG.warning("%s exists; this run is recorded to %s", to, path)
        self.path = None if writer is None else writer.path
        self._recording = Recording(
            writer,
            self._sites,
            judge,
            actions,
            listeners if self._ranks.writes else (),
            self._replayable,
        )
        self._warn_again = unwarned()
        self._stepper.start()

    # ---- for the loop ------------------------------------------------------------------------

    def log(self, **values: Any) -> None:
        """Record numbers of the step, e.g. `run.log(loss=loss, accuracy=acc)`.

        Called after the update they belong to the step that has just ended; in a loop that calls
        before its updates, to the one that is under way.

        Args:
            **values: numbers, or tensors of one element, for which the device is not waited for.
        """
        if not self._closed:
            self._logged.add(self._stepper.step, values)

    def step(self) -> None:
        """An update was made without an optimizer that is watched."""
        if not self._closed:
            self._stepper.end()

    @property
    def steps(self) -> int:
        """How many steps are over: the number of the one that is under way.

        Those before it count too, where a run is resumed or begins at `start=`.
        """
        return self._stepper.step

    @property
    def sampling(self) -> bool:
        """Whether the step that is under way is sampled; False when the watch is over."""
        return self._stepper.sampling

    @property
    def ranks(self) -> int:
        """How many processes are recorded as one; 1 where the others, if any, do not watch."""
        return self._together

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Every alert so far."""
        return tuple(self._recording.alarms)

    @property
    def failed(self) -> str | None:
        """Why nothing is recorded any more, in one sentence; None while it works."""
        writer = self._recording.writer
        return self._broken or (writer.failed if writer is not None else None)

    def flush(self) -> None:
        """Wait until all that was measured so far is in the file."""
        self._stepper.finish()
        self._deliver(self._stepper.step)
        if self._recording.writer is not None:
            self._recording.writer.flush()

    def close(self) -> None:
        """Take every hook off and write the rest; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._ranks.leave("has ended its watch")
        self._detach()
        self._deliver(self._stepper.step + 1)
        self._recording.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.close()
        return isinstance(error, StopTraining) and error.alarm is self.stopped

    @property
    def stopped(self) -> Alarm | None:
        """The alert that ends the training, where the action `stop` was asked for.

        Of several ranks all have it, from the same step on: the next one that is sampled.
        """
        return self._stopped

    # ---- what the stepper tells --------------------------------------------------------------

    def _sampled(
        self, step: int, values: Mapping[str, NDArray[np.float64]], numbers: Mapping[str, float]
    ) -> None:
        if self._ranks.writes:
            found = self._recording.sampled(step, values, numbers)
            self._pending += found
            self._closer(found)

    def _glanced(self, step: int, gradients: NDArray[np.float64]) -> None:
        self._gradients[step] = gradients

    def _ended(self, step: int) -> None:
        """A step has ended: hand on the one before, whose numbers are complete now."""
        try:
            if self._gradients or self._logged.of:
                self._deliver(min(step, self._stepper.arrived))
        except Exception as error:
            self._failed(error)
        alarms, self._pending = self._pending, ()
        if self._ranks.told_closer():
            self._stepper.dense_until = self._stepper.step + 1 + AFTER_SPIKE
        actions = self._recording.actions
        actions.stopped = actions.stopped or self._ranks.told
        try:
            self._recording.act(alarms)
        except StopTraining as stop:
            if self._ranks.stops(stop.alarm):
                self._stopped = stop.alarm
                if self._raises:
                    raise

    def _skipped(self) -> None:
        self._stepper.skipped()

    def _deliver(self, before: int) -> None:
        """Hand on what is known of the steps before one."""
        steps = sorted(s for s in {*self._gradients, *self._logged.of} if s < before)
        for step in steps:
            scalars = self._logged.of.pop(step, {})
            gradients = self._gradients.pop(step, None)
            if self._ranks.writes:
                found = self._recording.stepped(step, scalars, gradients)
                if found:
                    self._pending += found
                    self._closer(found)

    def _closer(self, alarms: Sequence[Alarm]) -> None:
        """After a spike every step is sampled for a while."""
        if any(alarm.code == SPIKE for alarm in alarms) and self._ranks.closer():
            self._stepper.dense_until = self._stepper.step + 1 + AFTER_SPIKE

    def _replayable(self, step: int) -> tuple[int | None, RandomStates | None]:
        states = dict(self._stepper.states).get(step)
        return self._stepper.batch(step), states

    # ---- inside ------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        """An error of ours: training goes on without the watch."""
        if self._broken is not None:
            return
        self._broken = (
            f"watching stopped at step {self._stepper.step} ({type(error).__name__}: {error}); "
            "training goes on"
        )
        _LOG.warning(self._broken, exc_info=_LOG.isEnabledFor(logging.DEBUG))
        self._ranks.leave(f"has stopped watching ({type(error).__name__}: {error})")
        self._detach()

    def _detach(self) -> None:
        self._warn_again()
        for part in (self._stepper, self._scaling):
            try:
                part.close()
            except Exception as error:
                self._warn(f"{type(part).__name__} could not be closed: {error}")

    def _warn(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            _LOG.warning(sentence)

    def _writer(
        self,
        path: Path | None,
        mode: str,
        max_bytes: int | None,
        models: Sequence[tuple[str, torch.nn.Module]],
        optimizers: Sequence[torch.optim.Optimizer],
        every: int,
    ) -> RunWriter | None:
        if path is None or not self._ranks.writes:
            return None
        return RunWriter(
            path,
            mode=mode,
            log=[s.name for s in STATISTICS.values() if s.log],
            max_bytes=max_bytes,
            meta=given.facts(models, optimizers, every, self._together),
        )
