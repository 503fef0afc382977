"""Passes of compiled models: what went in and what error came back, to run them again by eye.

Compiled code has no sites, and to force it to run as Python would change its rounding. So the
compiled pass is left alone; the same pass is made once more in Python, on the sampled steps only,
with the errors that came back to its outputs, before the optimizer changes the weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from signalprop.capture.modules import tensors_in
from signalprop.capture.observe import eager, unwrapped
from signalprop.capture.sandbox import untouched
from signalprop.watching.passes.light import LightRecorder

_again: set[int] = set()


def wrapper_of(module: torch.nn.Module, model: torch.nn.Module) -> bool:
    """Whether a module is `torch.compile`'s wrapper of a model, or of a wrapper of it."""
    return module is not model and hasattr(module, "_orig_mod") and unwrapped(module) is model


@dataclass(eq=False)
class Call:
    """A compiled pass.

    Attributes:
        args: what the model was given.
        kwargs: the same by name.
        versions: of every tensor given, to see whether it has been written to since.
        random: states of torch's generators before the pass.
        autocast: device type and dtype of the autocast that was on.
        errors: dL/d output by the output's place; filled by the backward pass.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: list[int]
    random: dict[str, Tensor]
    autocast: list[tuple[str, torch.dtype]]
    errors: dict[int, Tensor] = field(default_factory=dict)
    handles: list[RemovableHandle] = field(default_factory=list)

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """A pass that begins now."""
        random = {"cpu": torch.get_rng_state()}
        kinds = ["cpu"]
        if torch.cuda.is_initialized():
            kinds.append("cuda")
            random["cuda"] = torch.cuda.get_rng_state()
        autocast = [
            (kind, torch.get_autocast_dtype(kind))
            for kind in kinds
            if torch.is_autocast_enabled(kind)
        ]
        return Call(args, kwargs, _versions(args, kwargs), random, autocast)

    def returned(self, output: Any) -> None:
        """It has returned: be told of the errors that come back."""
        for place, (_, tensor) in enumerate(tensors_in(output)):
            if tensor.requires_grad:
                self.handles.append(tensor.register_hook(self._keep(place)))

    def _keep(self, place: int) -> Callable[[Tensor], None]:
        errors = self.errors

        def keep(error: Tensor) -> None:
            known = errors.get(place)
            errors[place] = error.detach().clone() if known is None else known + error.detach()

        return keep

    def end(self) -> None:
        """Let go of the user's tensors."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.errors.clear()
        self.args, self.kwargs = (), dict[str, Any]()

    @property
    def intact(self) -> bool:
        """Whether the tensors it was given still hold what they held."""
        return _versions(self.args, self.kwargs) == self.versions


def _versions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    tensors = (x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
    return [-1 if x.is_inference() else x._version for x in tensors]


def again(model: torch.nn.Module, call: Call) -> LightRecorder | None:
    """Make a pass once more in Python and record it; the model stays as it is.

    Random numbers of compiled code are others than those of Python's: with dropout the masks are
    not the same, the statistics are.

    Args:
        model: the model.
        call: its compiled pass, whose backward has run.

    Returns:
        What was seen; None where no error has come back, or the inputs have been written to.
    """
    if not call.errors or not call.intact:
        return None
    with ExitStack() as stack:
        stack.enter_context(_making_again())
        sandbox = stack.enter_context(untouched(model))
        stack.enter_context(eager())
        for kind, dtype in call.autocast:
            stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
        torch.set_rng_state(call.random["cpu"])
        if "cuda" in call.random:
            torch.cuda.set_rng_state(call.random["cuda"])
        recorder = LightRecorder(
            model, sandbox.parameters.values(), before_write=sandbox.before_write
        )
        with recorder:
            output = model(*call.args, **call.kwargs)
        found = [tensor for _, tensor in tensors_in(output)]
        _backward(model, found, call.errors)
        recorder.end()
    return recorder


@contextmanager
def _making_again() -> Iterator[None]:
    _again.add(threading.get_ident())
    try:
        yield
    finally:
        _again.discard(threading.get_ident())


def is_again() -> bool:
    """Whether a pass of this thread is one that is made once more, by whichever watch."""
    return threading.get_ident() in _again


def _backward(model: torch.nn.Module, outputs: list[Tensor], errors: dict[int, Tensor]) -> None:
    places = [i for i in errors if i < len(outputs) and outputs[i].requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(
        [outputs[i] for i in places],
        trained,
        [errors[i].to(outputs[i].dtype) for i in places],
        allow_unused=True,
    )


class Listener:
    """Hooks on the compiled entries of one model, for one step.

    The entries are torch's wrapper of the model, or the model itself where it has compiled parts or
    was compiled in place.

    Args:
        model: the user's module.
        wrappers: those that are known.
    """

    def __init__(self, model: torch.nn.Module, wrappers: list[torch.nn.Module]) -> None:
        self.calls: list[Call] = []
        self._open: Call | None = None
        self._entry: torch.nn.Module | None = None
        self._handles: list[Any] = []
        for entry in (*wrappers, model):
            if getattr(entry, "_compiled_call_impl", None) is not None:
                self._handles.append(_InPlace(entry, self))
            else:
                self._handles.append(
                    entry.register_forward_pre_hook(self._before(), prepend=True, with_kwargs=True)
                )
                self._handles.append(entry.register_forward_hook(self._after(), always_call=True))

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        for call in self.calls:
            call.end()

    def take(self) -> list[Call]:
        """Hand over the calls so far."""
        calls = self.calls
        self.calls = []
        return calls

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A call of an entry; False where it is inside another, or is not for training."""
        if self._open is not None or not torch.is_grad_enabled() or is_again():
            return False
        self._open = Call.of(args, kwargs)
        return True

    def finish(self, output: Any) -> None:
        """The call has returned; None where it has raised."""
        call, self._open = self._open, None
        if call is not None and output is not None:
            call.returned(output)
            self.calls.append(call)

    # closures, not methods: a copy of the model made meanwhile must not copy what they lead to

    def _before(self) -> Callable[..., None]:
        def before(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            if not torch.compiler.is_compiling() and self.begin(args, kwargs):
                self._entry = module

        return before

    def _after(self) -> Callable[..., None]:
        def after(module: torch.nn.Module, args: Any, output: Any) -> None:
            if not torch.compiler.is_compiling() and module is self._entry:
                self._entry = None
                self.finish(output)

        return after


class _InPlace:
    """Stands in front of a module that was compiled in place, whose hooks are compiled with it."""

    def __init__(self, module: torch.nn.Module, listener: Listener) -> None:
        inner: Any = module._compiled_call_impl
        self._module, self._inner = module, inner

        def call(*args: Any, **kwargs: Any) -> Any:
            mine = listener.begin(args, kwargs)
            output = None
            try:
                output = inner(*args, **kwargs)
            finally:
                if mine:
                    listener.finish(output)
            return output

        self._mine = call
        module._compiled_call_impl = call  # type: ignore[assignment]

    def remove(self) -> None:
        """Take it away."""
        if self._module._compiled_call_impl is self._mine:
            self._module._compiled_call_impl = self._inner
