"""One more forward pass of what recurs: states at the ends of their range, and states cut off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from signalprop.capture import batch as batches
from signalprop.capture.batch import Batch, Loss
from signalprop.capture.observe import eager
from signalprop.capture.sandbox import untouched
from signalprop.capture.statistics import SATURATED_OBSERVATIONS, SATURATED_SLOPE
from signalprop.capture.trace import Site, Trace
from signalprop.diagnosis.samples import learned_share
from signalprop.recurrent.loops.cells import FEWEST

#: |tanh| above which its slope has gone
EDGE = (1 - SATURATED_SLOPE) ** 0.5

_LAYERS = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class StateFacts:
    """States of a recurrent layer or cell whose state is between -1 and 1.

    Attributes:
        site: path of the module.
        saturated: share of units whose slope is below 5% of its largest in 3/4 of the observations.
        units: how many units.
        observations: how often each was seen, samples times steps.
    """

    site: str
    saturated: float
    units: int
    observations: int


@dataclass(frozen=True)
class LoopFacts:
    """A module that is called again and again, each time with what it has returned before.

    Attributes:
        site: path of the module.
        steps: steps of the whole loop: calls of a cell, steps of all calls of a layer.
        cuts: steps before which the state was taken out of the graph.
        reached: steps, counted back from the last one, that got an error signal.
        recurrent: whether it is a recurrent layer or cell of torch, or is given something new at
            every call besides its state.
    """

    site: str
    steps: int
    cuts: tuple[int, ...]
    reached: int
    recurrent: bool


@dataclass(frozen=True)
class TimeFacts:
    """What one more pass has shown.

    Attributes:
        states: by recurrent module.
        loops: loops with a cut.
        learned: the loss over what it is with the targets of other samples; None without a target.
        targets: numbers of the target for each sample; 0 without one.
    """

    states: tuple[StateFacts, ...]
    loops: tuple[LoopFacts, ...]
    learned: float | None
    targets: int = 0


def recurs(model: nn.Module, trace: Trace) -> bool:
    """Whether there may be something to see: recurrent modules, or others that are called in a row.

    Args:
        model: the model.
        trace: a pass of it.

    Returns:
        Whether.
    """
    return any(isinstance(m, _LAYERS) for m in model.modules()) or bool(own_cells(model, trace))


def own_cells(model: nn.Module, trace: Trace) -> dict[str, list[Site]]:
    """What modules of the user's that are called again and again returned, call by call.

    Args:
        model: the model.
        trace: a pass of it.

    Returns:
        Sites by path of the module, none of torch's own modules.
    """
    found: dict[str, list[Site]] = {}
    for site in sorted(trace.sites.values(), key=lambda s: s.order):
        for name in (site.name, *site.aliases):
            path = re.sub(r"#\d+$", "", name)
            found.setdefault(path, []).append(site)
    modules = dict(model.named_modules())
    return {
        path: sites
        for path, sites in found.items()
        if len(sites) >= FEWEST
        and path in modules
        and not type(modules[path]).__module__.startswith("torch.nn")
    }


def facts_of(model: nn.Module, given: Any, loss: Loss, batch_dim: int) -> TimeFacts:
    """See it.

    Cost: a forward pass; and the way back where a state was cut off.

    Args:
        model: the model.
        given: the batch, no loader.
        loss: the loss.
        batch_dim: dimension of the samples.

    Returns:
        The facts.
    """
    with untouched(model), eager():
        data = batches.read(given, model, loss, batch_dim=batch_dim, gradients=False)
        seen = {path: _Seen(path, m) for path, m in model.named_modules()}
        handles: list[Any] = []
        try:
            for path, module in model.named_modules():
                handles.append(module.register_forward_hook(seen[path], with_kwargs=True))
            output = model(*data.args, **data.kwargs)
        finally:
            for handle in handles:
                handle.remove()
        cut = [one for one in seen.values() if one.is_cut]
        if cut:
            value = batches.loss_of(output, data, loss)
            if value.requires_grad:
                value.backward()
        with torch.no_grad():
            learned = _learned(output, data, loss)
        states = [fact for one in seen.values() for fact in one.states()]
        loops = tuple(one.loop() for one in cut)
        wanted = data.target.numel() if isinstance(data.target, Tensor) else 0
        return TimeFacts(tuple(states), loops, learned, wanted // max(data.size, 1))


def _learned(output: Any, data: Batch, loss: Loss) -> float | None:
    """The smaller of two shares: labels in a row may be the same half a batch later."""
    found = [learned_share(output, data, loss)]
    if isinstance(data.target, Tensor) and data.target.ndim and len(data.target) == data.size:
        value = batches.loss_of(output, data, loss)
        next_one = replace(data, target=data.target.roll(1, dims=0))
        elsewhere = float(batches.loss_of(output, next_one, loss))
        found.append(float(value) / elsewhere if elsewhere > 0 else None)
    return min((share for share in found if share is not None), default=None)


@dataclass
class _Seen:
    """What is seen of one module while it runs."""

    path: str
    module: nn.Module
    last: list[Tensor] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    links: int = 0
    cuts: list[int] = field(default_factory=list)
    arrived: set[int] = field(default_factory=set)
    ends: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    new: int = 0
    given: list[Tensor] = field(default_factory=list)

    @property
    def is_cut(self) -> bool:
        """Whether it is a loop with a cut."""
        return bool(self.cuts) and len(self.before) >= FEWEST

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """After a call."""
        call, steps = len(self.before), sum(self.before)
        made = [x for x in _tensors(output) if x.is_floating_point()]
        if self.last:
            self._compare(_tensors((args, kwargs)), steps)
        self.last = [x for x in made if x.requires_grad]
        isolated = isinstance(module, nn.RNNBase)
        self.before.append(self._length(output) if isolated else 1)
        for x in self.last:
            x.register_hook(lambda gradient, call=call: self._arrive(call, gradient))
        if isinstance(module, _LAYERS):
            for name, state in self._bounded(output):
                self._count(name, state)

    def _compare(self, given: list[Tensor], steps: int) -> None:
        """Whether what was returned last is handed in, and still part of the graph."""
        cut = False
        state = [x for x in given if any(x.shape == y.shape for y in self.last)]
        other = [x for x in given if all(x is not y for y in self.given)]
        self.new += len(other) > 1 or len(other) > len(state)
        self.given = given
        for x in given:
            for y in self.last:
                if x.shape != y.shape or x.dtype != y.dtype:
                    continue
                if x.grad_fn is not None:
                    if x is y or x.grad_fn is y.grad_fn:
                        return
                elif x.data_ptr() == y.data_ptr() or (torch.equal(x, y) and bool(y.any())):
                    cut = True
        if cut:
            self.cuts.append(steps)

    def _arrive(self, call: int, gradient: Tensor) -> None:
        if bool(gradient.any()):
            self.arrived.add(call)

    def _length(self, output: Any) -> int:
        out = output[0]
        if isinstance(out, nn.utils.rnn.PackedSequence):
            return len(out.batch_sizes)
        assert isinstance(self.module, nn.RNNBase)
        return out.shape[1 if self.module.batch_first and out.ndim == 3 else 0]

    def _bounded(self, output: Any) -> Iterator[tuple[str, Tensor]]:
        """States between -1 and 1, (observations, units), by a name."""
        module = self.module
        if getattr(module, "nonlinearity", "tanh") == "relu":
            return
        if isinstance(module, (nn.LSTM, nn.LSTMCell)):
            return  # its cell may count beyond all ends, and hands the error on past the tanh
        if isinstance(module, nn.RNNCellBase):
            yield "", output
        else:
            assert isinstance(module, nn.RNNBase)
            out, last = output
            out = out.data if isinstance(out, nn.utils.rnn.PackedSequence) else out
            yield "top", out
            below = last[: -2 if module.bidirectional else -1]  # seen at their last step alone
            for layer, h in enumerate(below):
                yield str(layer), h

    @torch.no_grad()
    def _count(self, name: str, state: Tensor) -> None:
        flat = state.detach().reshape(-1, state.shape[-1])
        at_end = (flat.abs() > EDGE).sum(0)
        if name in self.ends:
            found, seen = self.ends[name]
            self.ends[name] = found + at_end, seen + len(flat)
        else:
            self.ends[name] = at_end, len(flat)

    def states(self) -> Iterator[StateFacts]:
        """Of every layer that was seen."""
        for at_end, seen in self.ends.values():
            share = (at_end >= SATURATED_OBSERVATIONS * seen).float().mean()
            yield StateFacts(self.path, float(share), len(at_end), seen)

    def loop(self) -> LoopFacts:
        """The whole loop."""
        steps = sum(self.before)
        first = min(self.arrived, default=len(self.before))
        reached = steps - sum(self.before[:first])
        # what refines one thing again and again is no loop over time
        recurrent = isinstance(self.module, _LAYERS) or self.new >= len(self.before) - 1
        return LoopFacts(self.path, steps, tuple(self.cuts), reached, recurrent)


def _tensors(given: Any) -> list[Tensor]:
    return [x for x in tree_leaves(given) if isinstance(x, Tensor)]
