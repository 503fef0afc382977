"""Counts the steps of a training by its optimizers, and measures those that are sampled.

Between samples there is a hook before and after every update and nothing else: no module is hooked.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from signalprop.compiled.sums import functions
from signalprop.memory import page_faults
from signalprop.watching.collect import Step, collect
from signalprop.watching.glances import Glanced, Glances
from signalprop.watching.models import Sites, Watched
from signalprop.watching.passes.tally import Tally
from signalprop.watching.passes.window import Passes, Window
from signalprop.watching.random import RandomStates
from signalprop.watching.ranks.alone import Ranks
from signalprop.watching.scaling import Scaling
from signalprop.watching.table import Values
from signalprop.watching.transfer import Row, Transfer
from signalprop.watching.updates.clipping import Clipping
from signalprop.watching.updates.optimizers import (
    evaluates,
    parameters_of,
    rates_of,
    unscaled,
)
from signalprop.watching.updates.parameter import Gradient, Sums
from signalprop.watching.updates.update import Update

#: steps whose glances may wait on an accelerator before they are brought over
WAITING = 64

Sampled = Callable[[int, Values, dict[str, float]], None]


@dataclass(eq=False)
class _Sampling:
    """What a sampled step has shown so far."""

    window: Window
    passes: list[Passes]
    tallies: dict[int, Tally]
    sums: list[Sums]
    updates: dict[int, Update]
    clipping: Clipping
    whole: dict[int, Tensor] = field(default_factory=dict)
    copied: bool = True

    def close(self) -> None:
        """Take every hook off."""
        self.window.close()
        self.clipping.close()


class Stepper:
    """Steps and samples of a training.

    Args:
        models: the watched models.
        sites: of all of them.
        optimizers: in the order in which a step of the loop calls them; the last ends the step.
        every: steps from sample to sample.
        ranks: that train together.
        scaling: what multiplies the loss.
        sampled: told of every sampled step: its statistics, and numbers of the whole.
        glanced: told of every step: a glance at the gradients, (sites,).
        ended: told that a step is over; it may raise, in the training, what it was asked to.
        failed: called with an exception of ours.
    """

    def __init__(
        self,
        models: Sequence[Watched],
        sites: Sites,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        every: int,
        ranks: Ranks,
        scaling: Scaling,
        sampled: Sampled,
        glanced: Glanced,
        ended: Callable[[int], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.models, self.sites, self.optimizers = models, sites, optimizers
        self.every, self.ranks, self.scaling = every, ranks, scaling
        self.step = 0
        self.dense_until = 0
        self.states: deque[tuple[int, RandomStates]] = deque(maxlen=WAITING + 4)
        self.transfer = Transfer()
        self._sampled = sampled
        self._ended, self._failed = ended, failed
        self._sampling: _Sampling | None = None
        self._earlier: dict[int, Gradient] = {}
        self._rooms: dict[int, Tensor] = {}
        self._reused = False  # whether the memory of gradients is written to again
        self._glances = Glances(sites, glanced, self.later)
        self._waiting: list[tuple[int, Tensor, Callable[[Row], None]]] = []
        self._under_way: deque[int] = deque()
        self._batches = 1
        self._clock = (0, time.perf_counter(), page_faults())
        self._handles: list[RemovableHandle] = []
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before))
            self._handles.append(optimizer.register_step_post_hook(self._after))

    # ---- the loop ----------------------------------------------------------------------------

    def start(self) -> None:
        """The first step begins."""
        functions()  # built now, where that is to be done, rather than in the middle of a pass
        self.states.append((self.step, RandomStates.now()))
        if self._is_sampled(self.step):
            self._open()

    def close(self) -> None:
        """Take every hook off, and hand over what is under way."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        sampling, self._sampling = self._sampling, None
        if sampling is not None:
            sampling.close()
        self._earlier.clear()
        self._rooms.clear()
        self.finish()

    def finish(self) -> None:
        """Wait for what is under way."""
        self._bring()
        self.transfer.finish()

    @property
    def arrived(self) -> int:
        """The step before which all has been brought over."""
        waiting = [self._under_way[0]] if self._under_way else []
        return min([self.step, *waiting, *(step for step, _, _ in self._waiting[:1])])

    @property
    def sampling(self) -> bool:
        """Whether the step that is under way is sampled."""
        return self._sampling is not None

    def later(self, step: int, value: Tensor, then: Callable[[Row], None]) -> None:
        """Bring a number of a step over, with others."""
        self._waiting.append((step, value, then))

    def batch(self, step: int) -> int:
        """Index of the first batch of a step, if every step had as many as the last sampled one."""
        return (step + self.scaling.left_out) * self._batches

    def skipped(self) -> None:
        """An update was left out: what was seen of its step is of an overflow."""
        if self._sampling is not None:
            for passes in self._sampling.passes:
                passes.seen()

    def end(self) -> None:
        """The step is over; the next one begins."""
        step = self.step
        try:
            self._end()
        except Exception as error:
            self._failed(error)
        self._ended(step)

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        try:
            late = evaluates(args, kwargs)
            if self._sampling is not None:
                self._measure(optimizer, late=late)
            elif not late:
                self._look(optimizer)
        except Exception as error:
            self._failed(error)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        try:
            sampling = self._sampling
            if sampling is None and evaluates(args, kwargs):
                self._look(optimizer)
            if sampling is not None:
                update = sampling.updates.pop(id(optimizer), None)
                if update is not None:
                    self._see_passes(sampling, optimizer)  # of a loss evaluated by the optimizer
                    sums = unscaled(update.after(), optimizer)
                    sampling.sums += sums
                    self._glances.look(optimizer, self.step)
                    if self._is_sampled(self.step + 1):
                        self._keep(optimizer, {id(one.parameter): one for one in sums})
        except Exception as error:
            self._failed(error)
        if optimizer is self.optimizers[-1]:
            self.end()

    def _look(self, optimizer: torch.optim.Optimizer) -> None:
        """At the gradients of a step that is not sampled."""
        self._glances.look(optimizer, self.step)
        if self._is_sampled(self.step + 1):
            self._keep(optimizer)

    def _is_sampled(self, step: int) -> bool:
        return step % self.every == 0 or step < self.dense_until

    # ---- a sampled step ----------------------------------------------------------------------

    def _open(self) -> None:
        passes = [Passes(m.module, m.wrappers, m.spots) for m in self.models]
        for model, its in zip(self.models, passes, strict=True):
            model.spots = its.spots
        window = Window(passes, self._failed)
        held = [p for o in self.optimizers for p in parameters_of(o)]
        clipping = Clipping(held, self.ranks, self._failed)
        self._sampling = _Sampling(window, passes, {}, [], {}, clipping)

    def _measure(self, optimizer: torch.optim.Optimizer, *, late: bool) -> None:
        sampling = self._sampling
        assert sampling is not None
        self._see_passes(sampling, optimizer)
        if not late:
            sampling.clipping.at_update(self.scaling.scale())
        parameters = parameters_of(optimizer)
        self._reused |= not all(gradient.intact for gradient in self._earlier.values())
        pairs = zip(self.models, sampling.passes, strict=True)
        held = [one for m, p in pairs for one in m.held(p.parameters, parameters)]
        sampling.whole.update(self.ranks.whole(one.parameter for one in held))
        update = Update(held, self._earlier, self._rooms, late=late, whole=sampling.whole)
        sampling.copied &= update.copied
        sampling.updates[id(optimizer)] = update

    def _see_passes(self, sampling: _Sampling, optimizer: torch.optim.Optimizer | None) -> None:
        """Passes of the models that this optimizer updates; of all where none is known."""
        mine = None if optimizer is None else {id(p) for p in parameters_of(optimizer)}
        for model, passes in zip(self.models, sampling.passes, strict=True):
            if mine is not None and mine.isdisjoint(id(p) for p in passes.trained):
                continue
            seen = passes.seen()
            calls = Counter(recorder.entry for recorder in seen if not recorder.recomputed)
            if calls and model.index == 0:
                self._batches = max(calls.values())
            for place, tally in model.tallies(seen).items():
                known = sampling.tallies.get(place)
                if known is None:
                    sampling.tallies[place] = tally
                else:
                    known.add(tally)

    def _keep(
        self, optimizer: torch.optim.Optimizer, sums: Mapping[int, Sums] | None = None
    ) -> None:
        """Keep the gradients for the next step, to compare with."""
        parameters = parameters_of(optimizer)
        known = self._sampling.whole if self._sampling is not None else None
        whole = self.ranks.whole(parameters) if known is None else known
        for parameter in parameters:
            if parameter.grad is not None:
                copy = self._reused or self.ranks.copies
                seen = sums.get(id(parameter)) if sums else None
                self._earlier[id(parameter)] = Gradient.keep(
                    whole.get(id(parameter), parameter.grad),
                    copy=copy,
                    square=None if seen is None else seen.gradient,
                )

    def _end(self) -> None:
        sampling, self._sampling = self._sampling, None
        if sampling is not None:
            try:
                self._finish(sampling)
            except BaseException:
                sampling.close()
                raise
        self._glances.end(self.step)
        if self._waiting:
            self._bring(most=WAITING)
        self.transfer.poll()
        self.step += 1
        self.states.append((self.step, RandomStates.now()))
        if self._is_sampled(self.step):
            self._open()

    def _finish(self, sampling: _Sampling) -> None:
        if not self.optimizers:
            self._see_passes(sampling, None)
        sampling.window.close()
        if not self._is_sampled(self.step + 1):
            self._earlier.clear()
            self._rooms.clear()
        step, size = self.step, len(self.sites.all)
        numbers = {**self._pace(), **rates_of(self.optimizers)}

        def then(values: Values, found: dict[str, float]) -> None:
            self._sampled(step, values, numbers | found)

        seen = Step(
            sampling.tallies,
            sampling.sums,
            self.sites.model_of[:size],
            self.scaling.scale(),
            self.scaling.skipped() if self.scaling.on else None,
            sampling.clipping.close(),
            step,
            self.sites.all,
            sampling.copied,
        )
        self._bring()
        collect(seen, self.ranks, self.transfer, then)
        if self.ranks.writes:
            self._glances.choose(sampling.sums, self.optimizers)

    def _pace(self) -> dict[str, float]:
        """Seconds and page faults per step, not more often than once a second."""
        step, clock, faults = self._clock
        if time.perf_counter() - clock < 1:
            return {}
        self._clock = (self.step + 1, time.perf_counter(), page_faults())
        count = max(1, self.step + 1 - step)
        return {
            "seconds": (self._clock[1] - clock) / count,
            "page_faults": (self._clock[2] - faults) / count,
        }

    def _bring(self, most: int = 1) -> None:
        """Bring over what waits on an accelerator, if it is so much."""
        if len(self._waiting) < most:
            return
        waiting = self._waiting
        self._waiting = []
        self._under_way.append(waiting[0][0])

        def then(row: Row) -> None:
            self._under_way.popleft()
            at = 0
            for _, value, arrived in waiting:
                arrived(row[at : at + value.numel()])
                at += value.numel()

        self.transfer.start([value for _, value, _ in waiting], then)
