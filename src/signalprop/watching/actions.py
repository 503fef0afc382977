"""What is done about an alarm: say it, save a checkpoint, call a function, end the training."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.watching.random import RandomStates
from signalprop.watching.rules.judge import DEFAULT_RULES_OVER_TIME
from signalprop.watching.sample import Alarm

_LOG = logging.getLogger("signalprop")

Action = str | Callable[[Alarm], object]
On = Action | Sequence[Action] | Mapping[str, Action | Sequence[Action] | None] | None

NAMES = ("warn", "stop", "checkpoint")
#: alarms are chosen by code, by severity, or all
GROUPS = ("issue", "tip", "any")
#: checkpoints of one run, as each may be large
MOST_CHECKPOINTS = 10


class StopTraining(Exception):  # noqa: N818 - no error: what was asked for
    """Ends a training because of an alarm; the `with` block of `watch` takes it at its end.

    It is an Exception, and no BaseException like KeyboardInterrupt, so that what a program does
    about failures (close files, tell the scheduler, save) is done; launchers take a BaseException
    for the end of the process. A loop that swallows every Exception meets it again at its next
    step, since the recorder raises it at every step from then on.

    Args:
        alarm: why.

    Attributes:
        alarm: why.
    """

    def __init__(self, alarm: Alarm) -> None:
        super().__init__(line(alarm))
        self.alarm = alarm


def line(alarm: Alarm) -> str:
    """An alarm in one line."""
    where = f" ({alarm.sites[0]})" if alarm.sites else ""
    since = f" [since step {alarm.since}]" if alarm.since < alarm.step else ""
    text = f"step {alarm.step}: {alarm.code} {alarm.title}{where}: {alarm.explanation}{since}"
    return " ".join(text.split())


class Actions:
    """Does what was asked for about alarms.

    The most specific choice counts: that of an alarm's code, else that of its severity, else that
    of `any`. So `{"any": "warn", "SP408": ()}` is silent about SP408, and `{"any": "warn",
    "SP411": ("checkpoint", "stop")}` saves and stops at the first value that is not finite.

    Args:
        on: an action, several, or a mapping from a code (`SP405`), a severity (`issue`, `tip`) or
            `any` to them. An action is `warn` (one line in the log `signalprop`), `checkpoint`,
            `stop`, or a function that is called with the alarm. None for nothing.
        checkpoint: called with an alarm to save a checkpoint, see `Checkpoints`; None where there
            is nothing to save.
        codes: of the rules that are asked.

    Attributes:
        stopped: the alarm that ended the training; None while it goes on.

    Raises:
        SignalpropError: an action or a choice is not known.
    """

    def __init__(
        self,
        on: On = "warn",
        *,
        checkpoint: Callable[[Alarm], object] | None = None,
        codes: Iterable[str] | None = None,
    ) -> None:
        known = [judge.rule.code for judge in DEFAULT_RULES_OVER_TIME]
        known = list(codes) if codes is not None else known
        chosen = on if isinstance(on, Mapping) else {"any": on}
        self._chosen: dict[str, tuple[Action, ...]] = {}
        for key, actions in chosen.items():
            if key not in (*known, *GROUPS):
                raise SignalpropError(
                    f"on= has {key!r}, which is no code of a rule over time and none of "
                    f"{_listed(GROUPS)}{_near(key, (*known, *GROUPS))}"
                )
            self._chosen[key] = tuple(_actions(actions))
        self.stopped: Alarm | None = None
        self._checkpoint = checkpoint
        self._said: set[object] = set()

    def take(self, alarms: Iterable[Alarm]) -> None:
        """Do what is to be done; stopping comes last.

        Args:
            alarms: those that are new; with none it costs nothing.

        Raises:
            StopTraining: training is to end, or was to end before. Nothing else is raised.
        """
        for alarm in alarms:
            for action in self._of(alarm):
                self._do(action, alarm)
        if self.stopped is not None:
            raise StopTraining(self.stopped)

    def _of(self, alarm: Alarm) -> tuple[Action, ...]:
        for key in (alarm.code, alarm.severity, "any"):
            if key in self._chosen:
                return self._chosen[key]
        return ()

    def _do(self, action: Action, alarm: Alarm) -> None:
        if action == "warn":
            self._once(line(alarm), (alarm.code, alarm.sites, alarm.explanation))
        elif action == "stop":
            self.stopped = self.stopped or alarm
        else:
            call = self._checkpoint if action == "checkpoint" else action
            if call is None or isinstance(call, str):
                self._once("no checkpoint was saved: there is nothing to save", "nothing")
                return
            try:
                call(alarm)
            except StopTraining as stop:  # asked for by the function
                self.stopped = self.stopped or stop.alarm
            except Exception as error:
                name = getattr(call, "__qualname__", type(call).__name__)
                why = f"{type(error).__name__}: {error}"
                self._once(
                    f"on=: {name} failed about {alarm.code} ({why}); training goes on", id(call)
                )

    def _once(self, text: str, key: object) -> None:
        if key not in self._said and len(self._said) < 10_000:
            self._said.add(key)
            _LOG.warning("%s", text)


def _actions(given: Action | Sequence[Action] | None) -> Iterator[Action]:
    if given is None:
        return
    many = [given] if isinstance(given, str) or callable(given) else given
    if not isinstance(many, Sequence):
        raise SignalpropError(
            f"on= has {given!r}; an action is one of {_listed(NAMES)}, or a function of the alarm"
        )
    for action in many:
        if not callable(action) and action not in NAMES:
            raise SignalpropError(
                f"on= has the action {action!r}; it is one of {_listed(NAMES)}, or a function of "
                f"the alarm{_near(action, NAMES)}"
            )
        yield action


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _near(key: object, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""


# ---- checkpoints -----------------------------------------------------------------------------


class Checkpoints:
    """Saves all that a training needs to go on, beside its run file.

    `RUN.step-00001234.pt` holds a dictionary that `torch.load(path, weights_only=True)` reads:
    `models` and `optimizers` (state_dicts by name, by number), `step`, `alarm` (its code), and
    `random`: `torch` (by device: `cpu` for `torch.set_rng_state`, `cuda:0` for that of CUDA),
    `numpy` (as for `numpy.random.set_state`, but its words are a tensor) and `python` (for
    `random.setstate`). It is written to a temporary name, and renamed when it is on the disk.

    Args:
        run: path of the run file.
        models: by name.
        optimizers: in their order.
    """

    def __init__(
        self,
        run: str | Path,
        models: Mapping[str, nn.Module],
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> None:
        self._run = Path(run).absolute()
        self._models, self._optimizers = dict(models), tuple(optimizers)
        self._saved = 0
        self._said: set[str] = set()

    def __call__(self, alarm: Alarm) -> Path | None:
        """Save; at most ten in a run, and never twice for a step.

        Args:
            alarm: why.

        Returns:
            The file; None where it could not be written, which the log says once.
        """
        path = self._run.with_name(f"{self._run.stem}.step-{alarm.step:08d}.pt")
        if self._saved >= MOST_CHECKPOINTS:
            self._say(f"{self._saved} checkpoints were saved in this run; no more will be")
            return None
        if path.exists():
            return path
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            state = self._state(alarm)
            with open(beside, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except Exception as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._say(f"no checkpoint was saved to {path}: {why}; training goes on")
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            return None
        self._saved += 1
        return path

    def _state(self, alarm: Alarm) -> dict[str, Any]:
        models = {name: _bare(model).state_dict() for name, model in self._models.items()}
        optimizers = {i: optimizer.state_dict() for i, optimizer in enumerate(self._optimizers)}
        for value in (v for state in models.values() for v in state.values()):
            if hasattr(value, "full_tensor"):
                raise SignalpropError(
                    "the parameters are sharded over ranks: save them with "
                    "torch.distributed.checkpoint in a function given to on="
                )
        states = RandomStates.now()
        name, keys, position, has_gauss, gauss = states.numpy
        words = torch.tensor(keys.astype(np.int64))
        return {
            "step": alarm.step,
            "alarm": alarm.code,
            "models": models,
            "optimizers": optimizers,
            "random": {
                "torch": dict(states.torch),
                "numpy": (name, words, position, has_gauss, gauss),
                "python": states.python,
            },
        }

    def _say(self, sentence: str) -> None:
        if sentence not in self._said and len(self._said) < 3:
            self._said.add(sentence)
            _LOG.warning("%s", sentence)


def _bare(model: nn.Module) -> nn.Module:
    """The user's own module in what torch wraps around it, whose names its checkpoint has."""
    while True:
        wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
        inner = getattr(model, "module" if wrapped else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
