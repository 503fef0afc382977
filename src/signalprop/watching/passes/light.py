"""A recorder with the few statistics that a training can bear, that reads deltas as they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _pop_mode, _push_mode
from torch.utils.hooks import RemovableHandle

from signalprop.capture import kinds
from signalprop.capture.kinds import Kind
from signalprop.capture.modules import measurable, tensors_in
from signalprop.capture.recorder import Recorder
from signalprop.watching.passes import attention
from signalprop.watching.passes.attention import Attention
from signalprop.watching.passes.spots import Call, Spot, Spots
from signalprop.watching.passes.tally import Tally
from signalprop.watching.ranks import parts

#: calls of one module in one pass that are told apart; more are steps in time, and joined
CALLS = 32
_WITH_UNITS = kinds.RECTIFIERS | kinds.SATURATING


def _nothing(written: Tensor) -> None:
    """The user's own pass writes to what it likes."""


class LightRecorder(Recorder):
    """Records one pass: on while the forward runs, and told by autograd during the backward.

    Args:
        model: whose modules give the paths.
        parameters: the model's parameters.
        before_write: called with a tensor about to be changed in place.
        recomputed: whether a part of a forward is run again for a checkpoint: its activations are
            known already.
        spots: the model's modules, if they are known.

    Attributes:
        tallies: what was seen, in execution order.
        recomputed: as given.
        arrived: whether an error signal came back.
        entry: path of the module that was called: the model itself, or the outermost of its parts.
        open: whether errors that come back are still read.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: Iterable[Tensor],
        *,
        before_write: Callable[[Tensor], None] = _nothing,
        recomputed: bool = False,
        spots: Spots | None = None,
    ) -> None:
        spots = spots or Spots(model)
        super().__init__(
            model,
            batch=1,
            batch_dim=0,
            parameters=parameters,
            before_write=before_write,
            tree=spots,
        )
        self._spots = spots.at
        self._made: dict[tuple[Any, int], Tally] = {}
        self.tallies: list[Tally] = []
        self._without_graph: set[int] = set()
        self.arrived = False
        self.entry = ""
        self.open = True
        self.recomputed = recomputed
        self._attention: list[tuple[str, Attention]] = []
        self._last: dict[int, RemovableHandle] = {}
        # an exception of ours within a torch function of the model, or its backward pass, which it
        # must not reach; and there our mode cannot be taken off
        self._broken: Exception | None = None

    def enter_module(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """A module is called."""
        if not torch.is_grad_enabled():
            self._without_graph.add(id(module))
        with torch._C.DisableTorchFunction():  # what is looked at here must not be seen
            self._enter(module, args)
        if module._forward_hooks and len(self._stack) > 1 and _is_spread(module):
            self._leave_last(module)

    def leave_module(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """A module has returned; None where it has raised."""
        if self._last:
            waiting = self._last.get(id(module))
            if waiting is not None and output is not None:
                return
            if waiting is not None:
                waiting.remove()
                del self._last[id(module)]
        self._leave_now(module, args, output)

    def _leave_now(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self._stack:
            with torch._C.DisableTorchFunction():
                self._leave(module, args, output)

    def _leave_last(self, module: torch.nn.Module) -> None:
        """See a tensor-parallel module's output after its own hooks, which add it over the ranks.

        Until then it may be no more than a term of a sum.
        """
        if id(module) in self._last:
            return
        me = self

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            me._last.pop(id(module)).remove()
            me._leave_now(module, args, output)

        self._last[id(module)] = module.register_forward_hook(leave)

    def check(self) -> None:
        """Raise what has failed where it could not be raised."""
        broken, self._broken = self._broken, None
        if broken is not None:
            raise broken

    def lacks_graph(self, module: torch.nn.Module) -> bool:
        """Whether a module ran without a graph: a part that is checkpointed re-entrantly."""
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
        for handle in self._last.values():
            handle.remove()
        self._last.clear()
        self._made.clear()
        self._stack.clear()

    def named(self, joined: set[str]) -> dict[str, Tally]:
        """The tallies by name: the second call of `cell` is `cell#2`.

        Args:
            joined: names whose calls are joined; those with too many calls are added to it.

        Returns:
            In execution order.
        """
        found = {one.base: one for one in self.tallies}
        if len(found) == len(self.tallies):  # nothing was called twice
            return found
        count = Counter(one.base for one in self.tallies)
        joined |= {base for base, calls in count.items() if calls > CALLS}
        count.clear()
        found.clear()
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
        name = kinds.OP_NAMES.get(getattr(func, "__name__", ""), "")
        if self._before_write is _nothing and (
            not name or (name not in attention.SEEN and self._stack and self._stack[-1].atomic)
        ):
            return func(*args, **(kwargs or {}))
        out = super().__torch_function__(func, types, args, kwargs)
        if name in attention.SEEN and not self.recomputed:
            self._attend(name, args, kwargs or {}, out)
        return out

    def _attend(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        try:
            with torch._C.DisableTorchFunction():
                found = _attention(name, args, kwargs, out)
        except Exception as error:
            self._broken = error
            return
        if found is not None:
            self._attention.append((self._stack[-1].path if self._stack else "", found))

    def _owner(self, path: str) -> Tally | None:
        """The site of an attention that was called in a module."""
        here = [one for one in self.tallies if one.module == path]
        named = [one for one in here if one.op in attention.SEEN]
        return (named or here or [None])[-1]

    def _enter(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        here = self._stack[-1] if self._stack else None
        inside = here is not None and here.atomic
        spot = self._spots.get(id(module))
        if spot is None:  # a loss module, or one made inside forward: no room of its own
            path = "" if here is None else here.path
            spot = Spot.of(module, path, atomic=inside)
            self._stack.append(Call(module, path, inside, None, None, 0, spot))
            return
        given = args[0] if args else None
        if type(given) is not Tensor:
            given = next((t for _, t in tensors_in(args)), None)
        atomic = inside or spot.atomic
        if given is None:
            call = Call(module, spot.path, atomic, None, None, 0, spot)
        else:
            version = -1 if given.is_inference() else given._version
            call = Call(module, spot.path, atomic, given, given.grad_fn, version, spot)
        self._stack.append(call)
        if spot.quiet and _top_mode() is self:
            # nothing that is to be seen happens in it, and every torch function would ask us
            call.away = True
            _pop_mode()

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        call = self._stack.pop()
        assert isinstance(call, Call)
        if call.away:
            _push_mode(self)
        self.check()
        if output is None or (self._stack and self._stack[-1].atomic):
            return
        path, spot = call.path, call.spot
        leaf = call.atomic or spot.leaf
        for label, x in (("", output),) if type(output) is Tensor else tensors_in(output):
            if not measurable(x):
                continue
            if label:
                label = spot.labels.get(label, label)
            node = x.grad_fn
            known = self._made.get((node, x.output_nr))
            if known is not None:
                if leaf and path and known.module == path:
                    known.base = path + label
            elif leaf and path and not call.hands_on(x, node):
                self._note(x, node, path + label, path, spot.op, call.kind(x))

    def _see(self, x: Tensor, base: str, path: str, op: str, kind: Kind, entry: Any) -> None:
        del entry
        try:
            with torch._C.DisableTorchFunction():  # another watch must not take it for the model's
                node = x.grad_fn
                if (node, x.output_nr) not in self._made:
                    self._note(x, node, base, path, op, kind)
        except Exception as error:
            self._broken = error

    def _note(self, x: Tensor, node: Any, base: str, path: str, op: str, kind: Kind) -> None:
        if op in ("linear", "embedding"):
            self._conv = False
        elif op.startswith(("conv", "Conv")):
            self._conv = x.ndim >= 3
        made = Tally(base, path, op, kind)
        self.tallies.append(made)
        if self.recomputed:
            made.passes = 0
        else:
            self._fill(made, x)
        if node is not None:
            self._made[node, x.output_nr] = made
            if x.requires_grad:
                node.register_prehook(self._reader(made, x.output_nr))

    def _fill(self, made: Tally, value: Tensor) -> None:
        spread = None
        if type(value) is not Tensor:
            value = value.detach()
            spread, mine = parts.placements(value), parts.part(value)
            if mine is None:
                return
            value = mine
        unit_dim = None
        if made.op in _WITH_UNITS and value.ndim > 1 and value.shape[0] > 1:
            unit_dim = 1 if self._conv else value.ndim - 1
            if value.is_complex() or (
                # other ranks have other observations of the same units
                spread is not None and any(p.is_shard() and p.dim != unit_dim for p in spread)
            ):
                unit_dim = None
        made.see(value, unit_dim)

    def _see_loss(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pass

    def _reader(self, one: Tally, output_nr: int) -> Callable[[tuple[Tensor | None, ...]], None]:
        """Reads delta at a node. The graph holds it, so it must not hold the graph."""
        me = self

        def read(gradients: tuple[Tensor | None, ...]) -> None:
            delta = gradients[output_nr]
            if not me.open or delta is None or not delta.numel():
                return
            if torch._C._functorch.is_functorch_wrapped_tensor(delta):
                return  # of many backward passes at once: none of them is the training's
            try:
                delta = delta.detach()
                mine = delta if type(delta) is Tensor else parts.part(delta)
                if mine is not None:
                    one.add_delta(mine)
                me.arrived = True
            except Exception as error:
                me.open, me._broken = False, error

        return read


def _top_mode() -> Any:
    count = torch._C._len_torch_function_stack()
    return torch._C._get_function_stack_at(count - 1) if count else None


def _is_spread(module: torch.nn.Module) -> bool:
    """Whether a module's own parameters are spread over ranks."""
    return any(p is not None and parts.placements(p) for p in module._parameters.values())


def _attention(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
) -> Attention | None:
    """What a call tells of this rank's heads; None where queries or keys lie on several ranks."""
    given = [x for x in (*args, *kwargs.values(), out) if isinstance(x, Tensor)]
    spread = [place for x in given for place in parts.placements(x) or ()]
    if not spread:
        return attention.seen(name, args, kwargs, out)
    if name == "multi_head_attention_forward" or not all(
        place.is_replicate() or place.is_shard(0) or place.is_shard(1) for place in spread
    ):
        return None
    args = tuple(_local(x) for x in args)
    kwargs = {key: _local(x) for key, x in kwargs.items()}
    return attention.seen(name, args, kwargs, _local(out))


def _local(x: Any) -> Any:
    return parts.part(x) if isinstance(x, Tensor) else x
