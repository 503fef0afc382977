"""What the callbacks of trainers share: a watch that begins and ends when their training does."""

from __future__ import annotations

import atexit
import inspect
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from signalprop.errors import SignalpropError
from signalprop.watching.actions import Actions
from signalprop.watching.watch import Watch, watch

_LOG = logging.getLogger("signalprop")

#: options of `watch` that a trainer knows better
_TRAINERS = ("model", "optimizer", "start", "scaler", "raises")


class Attachment:
    """A watch for each training of a trainer.

    Args:
        options: of `watch`, as given to the callback.

    Attributes:
        watch: the watch of the training that is under way, or of the last one; None before.
        every: steps from sample to sample.
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
        if "rules" not in self._options:
            # says now what is wrong with it, not an hour into a queue
            Actions(self._options.get("on", "warn"))
        self.every: int = every
        self.watch: Watch | None = None
        self.next = self._first = 0
        self._joint = False
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
        options = dict(self._options)
        to = options.get("to", "run.sp")
        if options.get("mode") is None:
            goes_on = start > 0 and to is not None and Path(to).exists()
            options["mode"] = "resume" if goes_on else "new"
        if isinstance(scaler, torch.amp.GradScaler) and not scaler.is_enabled():
            scaler = None
        # an exception out of an update would be a failure to a trainer, which ends by a flag
        made = watch(models, list(optimizers), start=start, scaler=scaler, raises=False, **options)
        self.watch, self.next, self._first = made, made.steps, made.steps
        self._joint = made.ranks > 1 and made.ranks == torch.distributed.get_world_size()
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
            self.next = self.watch.steps
            ending, self._ending = self._ending, None
            ending()

    @property
    def open(self) -> bool:
        """Whether a training is watched now."""
        return self._ending is not None

    @property
    def sampling(self) -> bool:
        """Whether the step that is under way is sampled."""
        return self.open and self.watch is not None and self.watch.sampling

    @property
    def stops(self) -> bool:
        """Whether the training is to end; of several processes at the same step on all."""
        return self.open and self.watch is not None and self.watch.stopped is not None

    def stepped(self) -> int | None:
        """The step that has ended since the last call; None if none has."""
        if self.watch is None or not self.open:
            return None
        now = self.watch.steps
        if now == self.next:
            return None
        self.next = now
        return now - 1

    def log(self, values: Mapping[str, Any]) -> None:
        """Record those numbers that are some, of the step that has just ended."""
        if self.watch is None or not self.open or self.next == self._first:
            return
        numbers = {str(k): v for k, v in values.items() if _is_number(v)}
        if numbers:
            self.watch.log(**numbers)

    def mean(self, value: Any, device: torch.device) -> Any:
        """A number's mean over the processes that are recorded as one.

        All of them call it alike, whatever has become of their watches.

        Args:
            value: on this process; what is no single number does not count.
            device: where the processes can add.

        Returns:
            The mean, on that device; the value itself where there is one process, or it is none.
        """
        if not self._joint:
            return value
        row = torch.zeros(2, device=device)  # sum and count
        if _is_number(value):
            row[0] = value.detach().reshape(()) if isinstance(value, Tensor) else float(value)
            row[1] = 1
        try:
            torch.distributed.all_reduce(row)
        except RuntimeError as error:  # another process is gone, which is the trainer's to say
            self._joint = False
            _LOG.warning("what is logged is of this process alone (%s)", error)
            return value
        return row[0] / row[1] if _is_number(value) else value


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
            loss = loss.detach().reshape(()).clone()  # trainers scale it in place
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
