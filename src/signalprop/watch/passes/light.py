"""A recorder with the few statistics that a training can bear, that reads deltas as they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from signalprop.capture import kinds
from signalprop.capture.kinds import Kind
from signalprop.capture.recorder import Recorder
from signalprop.capture.seen import Seen
from signalprop.watch.passes import attention, tally
from signalprop.watch.passes.attention import Attention
from signalprop.watch.passes.tally import Tally
from signalprop.watch.sums import square_sum

#: calls of one module in one pass that are told apart; more are steps in time, and joined
CALLS = 32


class LightRecorder(Recorder):
    """Records one pass: on while the forward runs, and told by autograd during the backward.

    Args:
        model: whose modules give the paths.
        parameters: the model's parameters.
        before_write: called with a tensor about to be changed in place.
        recomputed: whether a part of a forward is run again for a checkpoint: its activations are
            known already.

    Attributes:
        tallies: what was seen, in execution order.
        recomputed: as given.
        arrived: whether an error signal came back.
        open: whether errors that come back are still read.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: Iterable[Tensor],
        *,
        before_write: Callable[[Tensor], None] = lambda _: None,
        recomputed: bool = False,
    ) -> None:
        super().__init__(
            model, batch=1, batch_dim=0, parameters=parameters, before_write=before_write
        )
        self.tallies: list[Tally] = []
        self._without_graph: set[int] = set()
        self.arrived = False
        self.open = True
        self.recomputed = recomputed
        self._attention: list[tuple[str, Attention]] = []

    def enter_module(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """A module is called."""
        if not torch.is_grad_enabled():
            self._without_graph.add(id(module))
        self._enter_module(module, args)

    def leave_module(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """A module has returned; None where it has raised."""
        self._leave_module(module, args, output)

    def lacks_graph(self, module: torch.nn.Module) -> bool:
        """Whether a module ran without a graph, within a pass that has one.

        So does a part that is checkpointed re-entrantly; it runs again during the backward.
        """
        return id(module) in self._without_graph

    @property
    def inside(self) -> bool:
        """Whether a module is being called."""
        return bool(self._stack)

    def end(self) -> None:
        """The forward is over: let go of autograd's graph, which holds the readers of delta."""
        for path, found in self._attention:
            owner = self._owner(path)
            if owner is not None:
                owner.attention = found if owner.attention is None else owner.attention.plus(found)
        self._attention.clear()
        self._bound.clear()
        self._stack.clear()
        for seen in self.sites:
            seen.node = seen.entry = None

    def named(self, joined: set[str]) -> dict[str, Tally]:
        """The tallies by name: the second call of `cell` is `cell#2`.

        Args:
            joined: names whose calls are joined; those with too many calls are added to it.

        Returns:
            In execution order.
        """
        count = Counter(one.base for one in self.tallies)
        joined |= {base for base, calls in count.items() if calls > CALLS}
        count.clear()
        found: dict[str, Tally] = {}
        for one in self.tallies:
            count[one.base] += 1
            k = 1 if one.base in joined else count[one.base]
            name = one.base if k == 1 else f"{one.base}#{k}"
            if name in found:
                found[name].add(one)
            else:
                found[name] = one
        return found

    # ---- what is kept ------------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a torch function and note what it made."""
        out = super().__torch_function__(func, types, args, kwargs)
        name = getattr(func, "__name__", "")
        name = kinds.OP_NAMES.get(name, name)
        if name in attention.SEEN and not self.recomputed:
            found = attention.seen(name, args, kwargs or {}, out)
            if found is not None:
                self._attention.append((self._stack[-1].path if self._stack else "", found))
        return out

    def _owner(self, path: str) -> Tally | None:
        """The site of an attention that was called in a module."""
        here = [one for one in self.tallies if one.module == path]
        named = [one for one in here if one.op in attention.SEEN]
        return (named or here or [None])[-1]

    def _see(self, x: Tensor, base: str, path: str, op: str, kind: Kind, entry: Any) -> None:
        known = len(self.sites)
        super()._see(x, base, path, op, kind, entry)
        if len(self.sites) > known and x.requires_grad and x.grad_fn is not None:
            x.grad_fn.register_prehook(self._reader(self.tallies[-1], x.output_nr))

    def _measure(self, seen: Seen, value: Tensor) -> None:
        made = Tally(seen.base, seen.module, seen.op, seen.kind)
        self.tallies.append(made)
        if self.recomputed:
            made.passes = 0
            return
        value = whole(value)
        made.count, made.square = value.numel(), square_sum(value)
        if value.ndim < 2 or value.shape[0] < 2 or value.is_complex():
            return
        unit_dim = 1 if self._conv else value.ndim - 1
        if seen.op in kinds.RECTIFIERS:
            made.alive = tally.alive_units(value, unit_dim)
        elif seen.op in kinds.SATURATING:
            made.saturated = tally.saturated_units(value, seen.op, unit_dim)

    def _see_loss(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pass

    def _reader(self, one: Tally, output_nr: int) -> Callable[[tuple[Tensor | None, ...]], None]:
        """Reads delta at a node. The graph holds it, so it must not hold the graph."""
        me = self

        def read(gradients: tuple[Tensor | None, ...]) -> None:
            delta = gradients[output_nr]
            if me.open and delta is not None and delta.numel():
                with torch.no_grad():
                    one.add_delta(whole(delta.detach()))
                me.arrived = True

        return read


def whole(x: Tensor) -> Tensor:
    """A tensor as it is; of one that is spread over ranks (DTensor) all of it."""
    full = getattr(x, "full_tensor", None)
    return x if full is None else full()
