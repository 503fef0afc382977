"""What the callbacks of trainers share: a watch that begins and ends when their training does."""

from __future__ import annotations

import atexit
import functools
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from signalprop.errors import SignalpropError
from signalprop.watching.actions import Actions, StopTraining
from signalprop.watching.sample import Alarm
from signalprop.watching.watch import Watch, watch

#: options of `watch` that a trainer knows better
_TRAINERS = ("model", "optimizer", "start", "scaler")


class Stop:
    """Keeps that the training is to end, for the trainer to end it in its own way.

    `watch` ends a training by an exception out of `optimizer.step`, which a trainer would take for
    a failure. So `stop` in `on=` becomes a call of this, and a function that raises StopTraining
    is called by something that catches it.

    Attributes:
        alarm: why; None while it goes on.
    """

    def __init__(self) -> None:
        self.alarm: Alarm | None = None

    def __call__(self, alarm: Alarm) -> None:
        """An alert after which the training is to end."""
        self.alarm = self.alarm or alarm

    def instead(self, on: Any) -> Any:
        """What is given to `watch` as `on=`.

        Args:
            on: as the user gave it.

        Returns:
            The same, without anything that raises.
        """
        if isinstance(on, Mapping):
            return {key: self.instead(actions) for key, actions in on.items()}
        if isinstance(on, str):
            return self if on == "stop" else on
        if callable(on):
            return self._caught(on)
        if isinstance(on, Sequence):
            return [self.instead(action) for action in on]
        return on

    def _caught(self, function: Callable[[Alarm], object]) -> Callable[[Alarm], None]:
        @functools.wraps(function)
        def call(alarm: Alarm) -> None:
            try:
                function(alarm)
            except StopTraining as stop:
                self(stop.alarm)

        return call


class Attachment:
    """A watch for each training of a trainer.

    Args:
        options: of `watch`, as given to the callback.

    Attributes:
        watch: the watch of the training that is under way, or of the last one; None before.
        stop: whether it is to end.
        next: the step after the last one seen.

    Raises:
        SignalpropError: an option is not known, or one that the trainer gives itself.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        known = [p for p in inspect.signature(watch).parameters if p not in _TRAINERS]
        for name in self._options:
            if name not in known:
                why = "the trainer gives it" if name in _TRAINERS else "watch has no such option"
                raise SignalpropError(f"{name}=: {why}; there are {', '.join(known)}")
        every = self._options.get("every", 50)
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise SignalpropError(f"every={every!r} must be a whole number of steps, 1 or more")
        on = self._options.get("on", "warn")
        if "rules" not in self._options:
            Actions(on)  # says now what is wrong with it, not an hour into a queue
        self.every: int = every
        self.watch: Watch | None = None
        self.stop = Stop()
        self.next = 0
        self._ending: Callable[[], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Launchers send callbacks to other processes; a watch stays where it is."""
        return {**self.__dict__, "watch": None, "_ending": None}

    def begin(
        self,
        owner: object,
        models: Any,
        optimizers: Sequence[Any],
        *,
        start: int,
        scaler: Any,
        undo: Callable[[], object] | None = None,
    ) -> Watch:
        """A training begins.

        Args:
            owner: the callback; when it is gone, the watch ends.
            models: as for `watch`.
            optimizers: likewise.
            start: its first step; beyond 0 it goes on from a checkpoint, and so does the run file.
            scaler: the GradScaler, or None.
            undo: what else is to be done when it ends; must not hold the owner.

        Returns:
            The watch.
        """
        self.end()
        self.stop = Stop()
        options = dict(self._options)
        options["on"] = self.stop.instead(options.get("on", "warn"))
        to = options.get("to", "run.sp")
        if options.get("mode") is None:
            goes_on = start > 0 and to is not None and Path(to).exists()
            options["mode"] = "resume" if goes_on else "new"
        if isinstance(scaler, torch.amp.GradScaler) and not scaler.is_enabled():
            scaler = None
        made = watch(models, list(optimizers), start=start, scaler=scaler, **options)
        self.watch, self.next = made, start
        # where nothing tells of the end: the callback is thrown away, or the interpreter ends

        def closing() -> None:
            made.close()
            if undo is not None:
                undo()

        finalizer = weakref.finalize(owner, closing)
        finalizer.atexit = False  # type: ignore[missing-attribute]
        atexit.register(closing)

        def ending() -> None:
            finalizer.detach()
            atexit.unregister(closing)
            closing()

        self._ending = ending
        return made

    def end(self) -> None:
        """The training is over; a second call does nothing."""
        if self.watch is not None and self._ending is not None:
            self.next = self.watch._stepper.step
            ending, self._ending = self._ending, None
            ending()

    @property
    def open(self) -> bool:
        """Whether a training is watched now."""
        return self._ending is not None

    @property
    def sampling(self) -> bool:
        """Whether the step that is under way is sampled."""
        return self.open and self.watch is not None and self.watch._stepper._sampling is not None

    def stepped(self) -> int | None:
        """The step that has ended since the last call; None if none has."""
        if self.watch is None or not self.open:
            return None
        now = self.watch._stepper.step
        if now == self.next:
            return None
        self.next = now
        return now - 1

    def log(self, values: Mapping[str, Any]) -> None:
        """Record those numbers that are some, of the step that has just ended."""
        if self.watch is None or not self.open or self.next == 0:
            return
        numbers = {str(k): v for k, v in values.items() if _is_number(v)}
        if numbers:
            self.watch.log(**numbers)

    def asks_to_stop(self) -> bool:
        """Whether any action may end a training."""
        return _asks(self._options.get("on", "warn"))


class Losses:
    """Mean or sum of the losses of a step's batches, on their device."""

    def __init__(self) -> None:
        self._sum: Tensor | float | None = None
        self._count = 0

    def add(self, loss: Any) -> None:
        """A batch's loss; what is no single number is left out."""
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                return
            loss = loss.detach().reshape(())
        elif not _is_number(loss):
            return
        self._sum = loss if self._sum is None else self._sum + loss
        self._count += 1

    def take(self, *, summed: bool = False) -> Tensor | float | None:
        """The value, and begin anew; None where there was none."""
        total, count = self._sum, self._count
        self._sum, self._count = None, 0
        if total is None or summed or count == 1:
            return total
        return total / count


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _asks(on: Any) -> bool:
    if isinstance(on, Mapping):
        return any(_asks(actions) for actions in on.values())
    if isinstance(on, str):
        return on == "stop"
    return callable(on) or (isinstance(on, Sequence) and any(_asks(action) for action in on))
