"""`record`: deltas over time while the user's own code runs forward and backward."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from signalprop.capture.hooked import Hooked
from signalprop.capture.time import TimeAxis
from signalprop.errors import SignalpropError
from signalprop.nets.recurrent._cells import Watch
from signalprop.nets.recurrent.lstm import run_direction
from signalprop.nets.recurrent.minimal import run_recurrence
from signalprop.recurrent import axis
from signalprop.recurrent.borders import Chunked
from signalprop.recurrent.call import OPS, Call
from signalprop.recurrent.loops.nets import Direction
from signalprop.recurrent.stepwise import Stepwise
from signalprop.recurrent.whole import Whole

How = Literal["borders", "all"]


class record(Hooked):  # noqa: N801 - reads as a context manager
    """Writes down dL/dh_t and dL/dc_t of every recurrent layer that runs inside.

    The network is not touched: torch's recurrent functions are run in another way while the
    context is open, with the same weights and results; the layers of `signalprop.nets` run as they
    do, and every step is read. Values come with the backward pass,
    inside or after.

    Args:
        model: gives the names of the modules.
        deltas: `borders` runs torch's own kernels in chunks and reads where they meet; `all` runs
            step by step and reads every one.
        chunk: steps of a chunk, for `borders`; None chooses 20 to 50.
        whole: leave every layer one node of autograd's graph, which then cannot be derived twice.

    Raises:
        SignalpropError: an option is unknown.

    Note:
        Dropout between layers draws the same numbers as torch does on a CPU; cuDNN has a random
        state of its own, which nothing else can draw from.

    Examples:
        >>> import torch
        >>> from signalprop.recurrent import record
        >>> net = torch.nn.LSTM(3, 8)
        >>> with record(net, deltas="all") as seen:
        ...     output, _ = net(torch.randn(50, 4, 3))
        ...     output[-1].sum().backward()
        >>> seen.axes()[0].steps[-1], len(seen.axes()[0].h)
        (50, 50)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        deltas: How = "borders",
        chunk: int | None = None,
        *,
        whole: bool = False,
    ) -> None:
        super().__init__()
        if deltas not in get_args(How):
            raise SignalpropError(f"deltas is 'borders' or 'all', not {deltas!r}")
        if chunk is not None and chunk < 1:
            raise SignalpropError(f"chunk is a number of steps, at least 1, not {chunk}")
        self.deltas, self.chunk, self.whole = deltas, chunk, whole
        self.runs: list[tuple[str, Stepwise | Chunked | Direction]] = []
        self._paths = {id(m): path for path, m in model.named_modules()}
        self._stack: list[str] = []
        self._calls: Counter[str] = Counter()
        self._thread = threading.get_ident()

    def _hooks(self) -> list[RemovableHandle]:
        return [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]

    def axes(self) -> list[TimeAxis]:
        """What was seen, layer by layer; layers that no gradient has reached are left out."""
        found: list[TimeAxis] = []
        for site, run in self.runs:
            match run:
                case Direction():
                    seen = run.axis()
                    found += [] if seen is None else [seen]
                case Stepwise():
                    found += axis.of_steps(site, run)
                case Chunked():
                    found += axis.of_borders(site, run)
        return found

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        if threading.get_ident() == self._thread:
            self._stack.append(self._paths.get(id(module), ""))

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == self._thread and self._stack:
            self._stack.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a torch function; recurrent ones in a way that can be seen."""
        if func is run_direction or func is run_recurrence:
            return self._own(func, *args, **(kwargs or {}))
        op = getattr(func, "__name__", "")
        known = op in OPS and len(args) >= 8 and isinstance(args[0], Tensor)
        if not known or threading.get_ident() != self._thread or not len(args[0]):
            return func(*args, **(kwargs or {}))
        name = self._named(next((path for path in reversed(self._stack) if path), ""))
        if self.deltas == "all":
            run: Stepwise | Chunked = Stepwise(op)
        else:  # what is seen once is seen closely
            run = Chunked(func, op, self.chunk, closely=self.whole)
        self.runs.append((name, run))
        call = Call.of(op, args)
        with torch._C.DisableTorchFunction():
            if self.whole and torch.is_grad_enabled():
                made = Whole.apply(call, run, *call.tensors())
                # output and states are places of their own, though one node makes them
                return tuple(x.view_as(x) for x in made)
            return call.run(run)

    def _named(self, site: str, *, again: bool = True) -> str:
        """With the number of the call, a new one unless it is still the same."""
        self._calls[site] += again
        return site if self._calls[site] == 1 else f"{site}#{self._calls[site]}"

    def _own(
        self,
        func: Callable[..., Any],
        layer: torch.nn.Module,
        place: tuple[int, int],
        *args: Any,
        watch: Watch | None = None,
    ) -> Any:
        """One direction of one layer of `signalprop.nets`."""
        path = self._paths.get(id(layer), "")
        name = self._named(path, again=place == (0, 0))
        if func is run_direction:
            x, there, *_ = args
            run = Direction(name, "lstm", place, len(x), there, others=watch)
            made = func(layer, place, *args, watch=run.watch)
        else:
            _, drive, there, _ = args
            run = Direction(name, type(layer).__name__.lower(), place, len(drive), there)
            run.watch_all(drive)
            made = func(layer, place, *args)
        self.runs.append((name, run))
        return made
