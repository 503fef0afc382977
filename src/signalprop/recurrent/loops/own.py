"""Deltas over time of loops over cells of the user's own.

Nothing is run in another way: where a module is given again what it returned before, a hook on that
tensor writes down how large the gradient is that arrives there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from signalprop.capture.statistics import accumulator
from signalprop.capture.time import TimeAxis
from signalprop.nets.recurrent.minimal import MinGRU, MinLSTM
from signalprop.recurrent.horizon.cells import Calls, Held, Loop, tensors

#: gives a tensor as long as it is there, and how often it had been changed
Seen = tuple[Held, int]


class Called(Calls):
    """Sees the loops over modules of the user's in the forward pass that is made while it is open.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._once: dict[str, list[Seen]] = {}
        self._watched: dict[str, _Watched] = {}

    @staticmethod
    def sees(module: nn.Module) -> bool:
        """Modules of the user's, and torch's cells, which have their own way: `loops`."""
        own = not type(module).__module__.startswith("torch.")
        return own or isinstance(module, nn.RNNCellBase)

    def axes(self) -> Iterator[TimeAxis]:
        """What was seen; nothing of loops that no gradient has reached.

        Yields:
            One for every cell, of its longest sequence of calls.
        """
        for loop in self.found():
            if isinstance(loop, _Watched) and not loop.is_cell and not _layered(loop.module):
                axis = loop.axis()
                if axis is not None:
                    yield axis
        for loop in self._watched.values():
            loop.unhook()

    def _seer(self, path: str) -> Any:
        path = path.replace("._orig_mod", "")

        def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            # what is looked at here is not the model's doing
            with torch._C.DisableTorchFunction():
                if path not in self._once:  # most are not called again
                    self._once[path] = _seen(output)
                    return
                loop = self._watched.get(path)
                if loop is None:
                    loop = _Watched(path, module, self._once[path])
                    self.loops[path] = self._watched[path] = loop
                loop.see(args, kwargs, output)

        return see


class _Watched(Loop):
    """The calls of one module, and how large the gradients are of what it is given again."""

    def __init__(self, path: str, module: nn.Module, first: list[Seen]) -> None:
        super().__init__(path, module, [False])
        self._last = first
        self._sizes: dict[tuple[int, int], Tensor] = {}
        self._hooks: dict[tuple[int, int], Any] = {}

    def see(self, args: Any, kwargs: Any, output: Any) -> None:
        """One call."""
        call = len(self.linked)
        try:
            super().see(args, kwargs, output)
        except RuntimeError:  # tensors without a memory or version of their own: vmap, inference
            self.linked[call:] = [False]
            self._last.clear()
            self._new.clear()
            self.again.clear()
            return
        if self.linked[call] and not self.is_cell:
            for which, state in self.again.items():
                self._hook((call - 1, which), state)
                made = self._last[which][0]() if which < len(self._last) else None
                if made is not None:
                    self._hook((call, which), made)
        self.again.clear()

    def _see_cell(self, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        """Not kept: it would be all inputs and states."""

    def _hook(self, at: tuple[int, int], state: Tensor) -> None:
        # a leaf is the user's own (a parameter, an input): nothing is put on it
        if at in self._hooks or not state.requires_grad or state.is_leaf:
            return

        def keep(gradient: Tensor) -> None:
            self._sizes[at] = _rms(gradient)

        self._hooks[at] = state.register_hook(keep)

    def axis(self) -> TimeAxis | None:
        """Of the longest sequence of calls; None where no gradient has arrived."""
        begin, end = self.longest
        mine = {at: size for at, size in self._sizes.items() if begin <= at[0] < end}
        calls = sorted({call for call, _ in mine})
        states = sorted({which for call, which in self._hooks if begin <= call < end})
        if not calls:
            return None
        # what the loss does not depend on has a delta of 0
        none = torch.zeros_like(next(iter(mine.values())))
        found = [
            tuple(torch.stack([mine.get((call, which), none) for call in calls]).tolist())
            for which in states
        ]
        steps = tuple(call - begin + 1 for call in calls)
        c = found[1] if len(found) == 2 else ()
        return TimeAxis(self.path, self.op, 0, False, end - begin, steps, found[0], c, ())

    def hold(self, made: list[Tensor]) -> None:
        """What was returned, until the next call."""
        self._last = _seen(made)

    def holding(self, x: Tensor) -> Held:
        """As long as somebody else keeps it: memory is not to grow because somebody looks."""
        return TensorWeakRef(x)

    def unhook(self) -> None:
        """Leave nothing on tensors that the user may hold."""
        for hook in self._hooks.values():
            hook.remove()


def _seen(output: Any) -> list[Seen]:
    """What was returned, and how often each had been changed by then."""
    try:
        return [(TensorWeakRef(y), y._version) for y in tensors(output)]
    except RuntimeError:  # inference tensors do not count
        return []


def _layered(module: nn.Module) -> bool:
    """Whether it wraps layers that are seen on their own."""
    return any(isinstance(m, (nn.RNNBase, MinGRU, MinLSTM)) for m in module.modules())


def _rms(x: Tensor) -> Tensor:
    """In a precision whose range holds the squares, as a tensor: nobody waits for a device."""
    return x.detach().abs().to(accumulator(x.device)).square().mean().sqrt()
