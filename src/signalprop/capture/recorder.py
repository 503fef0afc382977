"""Sees a forward pass: module calls by global hooks, functional operations by a function mode.

Global module hooks are used because they leave the user's modules untouched: nothing is
registered on a module, so nothing can be left on one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from signalprop.capture import facts, kinds, statistics
from signalprop.capture.hooked import Hooked
from signalprop.capture.kinds import Kind
from signalprop.capture.modules import (
    Tree,
    is_atomic,
    kind_by_parts,
    measurable,
    state_labels,
    tensors_in,
    torch_name,
)
from signalprop.capture.seen import Frame, Kept, Seen, SeenLoss

#: modules that return what they are given
PASS_THROUGH = (torch.nn.Identity, torch.nn.Flatten, torch.nn.Unflatten)


class Recorder(Hooked):
    """Records the sites of one forward pass, as a context manager around it.

    Args:
        model: the model whose modules give the paths.
        batch: number of samples.
        batch_dim: dimension of the samples.
        parameters: the model's parameters.
        before_write: called with a tensor about to be changed in place.
        keep: whether to keep where every site's tensor hangs in autograd's graph, instead of its
            statistics.
        tree: the model's modules, if they are known.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        batch: int,
        batch_dim: int,
        parameters: Iterable[Tensor],
        before_write: Callable[[Tensor], None],
        keep: bool = False,
        tree: Tree | None = None,
    ) -> None:
        super().__init__()
        self.sites: list[Seen] = []
        self.losses: list[SeenLoss] = []
        self.called: dict[str, int] = {}
        self.unwound: list[str] = []
        self.kept: list[Kept | None] | None = [] if keep else None
        self.in_loss = False
        self.batch, self.batch_dim = batch, batch_dim
        self._before_write = before_write
        tree = tree or Tree(model)
        self.modules, self._paths = tree.modules, tree.paths
        self._parameters = {id(p) for p in parameters}
        self._bound: dict[tuple[Any, int], Seen] = {}
        self._stack: list[Frame] = []
        self._thread = threading.get_ident()
        self._conv = False

    # ---- the context: hooks on while inside, none left outside -------------------------------

    def _hooks(self) -> list[RemovableHandle]:
        return [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]

    def loss_phase(self) -> None:
        """From here on what is seen belongs to the loss, not to the model."""
        self.in_loss = True
        self._stack.clear()

    def see_input(self, name: str, x: Tensor) -> None:
        """A tensor of the batch, before the model has touched it."""
        if measurable(x):
            self._see(x, name, "", "input", "input", None)

    # ---- modules -----------------------------------------------------------------------------

    # The mode is on while module hooks run; what they look at and compute must not be seen.

    def _enter_module(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() == self._thread:
            with torch._C.DisableTorchFunction():
                self._enter(module, args)

    def _leave_module(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == self._thread and self._stack:
            with torch._C.DisableTorchFunction():
                self._leave(module, args, output)

    def _enter(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.unwound.clear()
        path = self._paths.get(id(module))
        if path is None:  # a loss module, or one made inside forward: no room of its own
            here = self._stack[-1] if self._stack else None
            path = here.path if here else ""
            atomic = here.atomic if here else False
            self._stack.append(Frame(module, path, atomic, None, None, 0))
            return
        self.called.setdefault(path, len(self.sites))
        inside = bool(self._stack) and self._stack[-1].atomic
        given = next((t for _, t in tensors_in(args)), None)
        atomic = inside or is_atomic(module, path)
        if given is None:
            self._stack.append(Frame(module, path, atomic, None, None, 0))
        else:
            version = -1 if given.is_inference() else given._version
            self._stack.append(Frame(module, path, atomic, given, given.grad_fn, version))

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        frame = self._stack.pop()
        if output is None:
            self.unwound.append(frame.path)
            return
        if self.in_loss or (self._stack and self._stack[-1].atomic):
            return
        leaf = frame.atomic or not module._modules
        for label, x in tensors_in(output):
            if not measurable(x):
                continue
            label = state_labels(module).get(label, label)
            known = self._bound.get((x.grad_fn, x.output_nr)) if x.grad_fn is not None else None
            if known is not None:
                if leaf and known.module == frame.path and frame.path:
                    known.base = frame.path + label
                elif not label:
                    known.aliases.append(frame.path)
            elif leaf and frame.path and not self._passes_through(frame, x):
                kind = kinds.kind_of_module(module)
                op = kinds.OP_NAMES.get(torch_name(module), kinds.class_of(module).__name__)
                if kind is None:
                    kind = kinds.kind_of_op(op)
                    if kind == "other" and x.grad_fn is not None:
                        kind = kind_by_parts(module, frame.entry, x)
                self._see(x, frame.path + label, frame.path, op, kind, frame.entry)

    def _passes_through(self, frame: Frame, x: Tensor) -> bool:
        if isinstance(frame.module, PASS_THROUGH):
            return True
        if x is frame.given and not x.is_inference() and x._version == frame.version:
            return True  # handed on as it came, not changed in place
        view = x.grad_fn is not None and kinds.moves_values_only(x.grad_fn.name())
        return view and not frame.module._parameters

    # ---- functional operations ---------------------------------------------------------------

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a torch function and note what it made."""
        kwargs = kwargs or {}
        called = getattr(func, "__name__", "")
        if called.endswith("_") and args and isinstance(args[0], Tensor):
            writes = called[-2] != "_" or called.startswith("__i") or called == "__setitem__"
            if writes and called != "requires_grad_":
                self._before_write(args[0])
        for written in (kwargs.get("out"), args[0] if called.startswith("_foreach") else None):
            for _, tensor in tensors_in(written):
                self._before_write(tensor)
        if kwargs.get("max_norm") is not None and len(args) > 1:
            self._before_write(args[1])  # an embedding that shortens its own rows
        op = kinds.OP_NAMES.get(called)
        if op is None or not args:
            return func(*args, **kwargs)
        if op in kinds.LOSS_OPS:
            self._see_loss(op, args, kwargs)
            return func(*args, **kwargs)
        if self.in_loss:
            if op in kinds.ARITHMETIC:
                self._see_broadcast(op, args)
            out = func(*args, **kwargs)
            self._see_output_op(op, args, out)
            return out
        if self._stack and self._stack[-1].atomic:
            return func(*args, **kwargs)
        first = args[0]
        entry = first.grad_fn if isinstance(first, Tensor) else None
        out = func(*args, **kwargs)
        if op in kinds.ARITHMETIC and not self._joins(args):
            return out
        if op == "dropout" and entry is not None and getattr(out, "grad_fn", None) is entry:
            return out
        tensor = next((t for _, t in tensors_in(out) if measurable(t)), None)
        if tensor is not None and not self._is_of_weights_only(op, args):
            path = self._stack[-1].path if self._stack else ""
            base = f"{path}.{op}" if path else op
            self._see(tensor, base, path, op, kinds.kind_of_op(op), entry)
        return out

    def _joins(self, args: tuple[Any, ...]) -> bool:
        """Whether arithmetic combines two activations, not one with a constant or a weight."""
        if len(args) < 2:
            return False
        a, b = args[0], args[1]
        return (
            isinstance(a, Tensor)
            and isinstance(b, Tensor)
            and a.shape == b.shape
            and a.requires_grad
            and b.requires_grad
            and id(a) not in self._parameters
            and id(b) not in self._parameters
        )

    def _is_of_weights_only(self, op: str, args: tuple[Any, ...]) -> bool:
        """Whether every tensor it was given is a parameter: it makes a weight, no activation."""
        if op in ("embedding", "embedding_bag"):
            return False
        tensors = [a for a in args if isinstance(a, Tensor)]
        return bool(tensors) and all(id(t) in self._parameters for t in tensors)

    # ---- what is kept ------------------------------------------------------------------------

    def _see(self, x: Tensor, base: str, path: str, op: str, kind: Kind, entry: Any) -> None:
        node, output_nr = x.grad_fn, x.output_nr
        if node is not None and (node, output_nr) in self._bound:
            return
        self.unwound.clear()
        if op.lower().startswith("conv"):
            self._conv = x.ndim >= 3
        elif op in ("linear", "embedding"):
            self._conv = False
        seen = Seen(
            base=base,
            module=path,
            op=op,
            kind=kind,
            shape=tuple(x.shape),
            dtype=str(x.dtype).removeprefix("torch."),
            node=node,
            output_nr=output_nr,
            entry=entry if entry is not node else None,
            numel=x.numel() * (2 if x.is_complex() else 1),
            scalars=[],
            order=len(self.sites),
            in_loss=self.in_loss,
        )
        if self.kept is not None:
            self.kept.append(Kept.of(x) if x.requires_grad else None)
        else:
            with torch.no_grad():
                self._measure(seen, x.detach())
        self.sites.append(seen)
        if node is not None:
            self._bound[node, output_nr] = seen

    def _measure(self, seen: Seen, value: Tensor) -> None:
        flat = statistics.by_sample(value, self.batch, self.batch_dim)
        seen.scalars += statistics.activation_scalars(flat)
        if len(flat) > 1:
            self._see_units(seen, value)
        if (
            value.ndim == 3
            and not self._conv
            and value.shape[0] == self.batch
            and value.shape[1] > 1
            and not value.is_complex()
            and (seen.op == "add" or seen.kind == "normalisation")
        ):
            seen.tokens = True
            seen.scalars.append(statistics.token_cosine(value))

    def _see_units(self, seen: Seen, value: Tensor) -> None:
        op = seen.op
        if value.ndim < 2 or value.is_complex():
            return
        unit_dim = 1 if self._conv else value.ndim - 1
        if op in kinds.RECTIFIERS:
            seen.unit_stat = "dead"
            seen.scalars.append(statistics.dead_units(value, unit_dim))
        elif op in kinds.SATURATING:
            seen.unit_stat = "saturated"
            seen.scalars.append(statistics.saturated_units(value, op, unit_dim))
        else:
            return
        seen.units = value.shape[unit_dim]

    def site_of(self, x: Tensor) -> Seen | None:
        """The site that made a tensor, looking through operations that only move values."""
        node, nr = x.grad_fn, x.output_nr
        while node is not None:
            known = self._bound.get((node, nr))
            if known is not None:
                return known
            nexts = [edge for edge in node.next_functions if edge[0] is not None]
            if not kinds.moves_values_only(node.name()) or len(nexts) != 1:
                return None
            node, nr = nexts[0]
        return None

    def _see_output_op(self, op: str, args: tuple[Any, ...], out: Any) -> None:
        """An activation applied between the model and the loss, e.g. `F.nll_loss(softmax(x))`."""
        if op in ("softmax", "log_softmax", "sigmoid", "logsigmoid", "relu", "tanh") and measurable(
            out
        ):
            entry = args[0].grad_fn if isinstance(args[0], Tensor) else None
            self._see(out, f"loss.{op}", "loss", op, "slope", entry)

    def _see_loss(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0]
        target = args[1] if len(args) > 1 else kwargs.get("target")
        if not isinstance(given, Tensor):
            return
        ignored = kwargs.get("ignore_index", -100) if op in ("cross_entropy", "nll_loss") else None
        if not isinstance(target, Tensor):
            target = None
        self.losses.append(facts.of_loss(op, given, target, self.site_of(given), ignored))

    def _see_broadcast(self, op: str, args: tuple[Any, ...]) -> None:
        """Arithmetic in a hand-written loss whose result is larger than both its operands."""
        if len(args) < 2 or not isinstance(args[0], Tensor) or not isinstance(args[1], Tensor):
            return
        a, b = args[0], args[1]
        if a.shape == b.shape or a.ndim == 0 or b.ndim == 0:
            return
        try:
            size = torch.broadcast_shapes(a.shape, b.shape).numel()
        except RuntimeError:
            return
        if size > max(a.numel(), b.numel()):
            given, target = (a, b) if a.requires_grad else (b, a)
            self.losses.append(facts.of_loss(op, given, target, self.site_of(given), None))
