"""The hooks of a sampled step: they find the passes of the watched models, and leave nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils.hooks import RemovableHandle

from signalprop.watching.passes import compiled
from signalprop.watching.passes.light import LightRecorder
from signalprop.watching.passes.spots import Spots

#: passes of one model in one step that are kept; an evaluation with gradients on may make many
MOST = 256


class Passes:
    """The passes of one model within a sampled step.

    Args:
        model: the user's module itself, without wrappers.
        wrappers: `torch.compile`'s wrappers of it that are known; one that is called is added.
        spots: its modules, as they were.

    Attributes:
        model: as given.
        spots: its modules, as they are.
        parameters: the model's, by name.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        wrappers: list[torch.nn.Module],
        spots: Spots | None = None,
    ) -> None:
        self.model = model
        self._wrappers = wrappers
        self._recorders: list[LightRecorder] = []
        self._here: LightRecorder | None = None
        self._entry: torch.nn.Module | None = None
        self.spots = spots = spots if spots is not None and spots.current else Spots(model)
        self.parameters = spots.parameters
        is_compiled = bool(wrappers) or spots.compiled
        # a pass of a sharded model is no private matter: it gathers weights from other ranks
        self._unseen = is_compiled and spots.sharded
        self._listener = (
            compiled.Listener(model, wrappers) if is_compiled and not self._unseen else None
        )

    def enter(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """A module is called, anywhere in the program."""
        if self._here is not None:
            self._here.enter_module(module, args)
        elif self._listener is not None or self._unseen:
            return
        elif module is self.model:
            if torch.is_grad_enabled() and not compiled.is_again() and len(self._recorders) < MOST:
                self._open(module, args, recomputed=False)
        elif compiled.wrapper_of(module, self.model):
            # compiled since the watch began: seen from the next sampled step on
            if module not in self._wrappers:
                self._wrappers.append(module)
        elif id(module) in self.spots.at and torch.is_grad_enabled():
            if (
                torch._C._current_graph_task_id() < 0
            ):  # a method of the model called it, not forward
                if len(self._recorders) < MOST:
                    self._open(module, args, recomputed=False)
            elif any(recorder.lacks_graph(module) for recorder in self._recorders):
                # a part that a re-entrant checkpoint runs again, now with a graph
                self._open(module, args, recomputed=True)

    def leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """A module has returned, or raised."""
        here = self._here
        if here is not None:
            here.leave_module(module, args, output)
            if module is self._entry and not here.inside:
                self.cut()

    @property
    def compiled(self) -> bool:
        """Whether the model, or some part of it, is compiled."""
        return self._listener is not None

    @property
    def trained(self) -> list[Tensor]:
        """The model's parameters that learn."""
        return [p for p in self.parameters.values() if p.requires_grad]

    def cut(self) -> None:
        """End the pass that is being recorded, if one is: also one that an interrupt has cut."""
        here, self._here, self._entry = self._here, None, None
        if here is not None:
            _remove(here)
            here.end()

    def seen(self) -> list[LightRecorder]:
        """The passes that an error came back to, so far; they are handed over."""
        self.cut()
        found = self._recorders
        self._recorders = []
        if self._listener is not None:
            calls = self._listener.take()
            found += [r for call in calls if (r := compiled.again(self.model, call)) is not None]
            for call in calls:
                call.end()
        for recorder in found:
            recorder.open = False
            recorder.check()
        return [recorder for recorder in found if recorder.arrived]

    def close(self) -> None:
        """The step is over: what still comes back from its graphs is of no interest."""
        self.cut()
        for recorder in self._recorders:
            recorder.open = False
        if self._listener is not None:
            self._listener.close()

    def _open(self, module: torch.nn.Module, args: tuple[Any, ...], *, recomputed: bool) -> None:
        made = LightRecorder(
            self.model, self.parameters.values(), recomputed=recomputed, spots=self.spots
        )
        made.entry = self.spots.paths[id(module)]
        self._recorders.append(made)
        self._here, self._entry = made, module
        _push_mode(made)
        made.enter_module(module, args)


def _remove(mode: LightRecorder) -> None:
    """Take a mode off the stack, wherever it lies: an interrupt may have left others on it."""
    if not any(other is mode for other in _get_current_function_mode_stack()):
        return
    above = []
    while (top := _pop_mode()) is not mode:
        above.append(top)
    for other in reversed(above):
        _push_mode(other)


def unwarned() -> Callable[[], None]:
    """Keep torch from warning the user of global hooks where a compiled module is called.

    They are ours, and know that they fire for the wrapper and for the module.

    Returns:
        Takes the filter away again.
    """
    warnings.filterwarnings(
        "ignore", r"Using `torch.compile\(module\)` when there are", UserWarning
    )
    entry = warnings.filters[0]

    def again() -> None:
        if entry in warnings.filters:
            warnings.filters.remove(entry)  # type: ignore[attr-defined]

    return again


class Window:
    """The hooks of one sampled step, in the thread that trains.

    Args:
        models: the passes of every watched model.
        failed: called with an exception of ours, which must not reach the training.
    """

    def __init__(self, models: Iterable[Passes], failed: Callable[[Exception], None]) -> None:
        self._models = list(models)
        self._failed = failed
        self._thread = get_ident()
        self._handles: list[RemovableHandle] = []
        if all(passes.compiled for passes in self._models):
            return  # these are listened to where they are called
        after = register_module_forward_hook(self._leave, always_call=True)
        self._handles += [register_module_forward_pre_hook(self._enter), after]
        # of several watches on one model the last to see it called is the first to see it return
        hooks: Any = after.hooks_dict_ref()
        hooks.move_to_end(after.id, last=False)

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        for passes in self._models:
            passes.close()

    def _enter(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if is_compiling() or get_ident() != self._thread:
            return
        try:
            for passes in self._models:
                passes.enter(module, args)
        except Exception as error:
            self._failed(error)

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if is_compiling() or get_ident() != self._thread:
            return
        try:
            for passes in reversed(self._models):
                passes.leave(module, args, output)
        except Exception as error:
            self._failed(error)
