"""One forward pass in which every recurrent layer is written down, direction by direction.

torch's own kernels run, layer by layer. Where the code around a layer hands the state from call to
call, the calls are one sequence; where it detaches the state, they are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from signalprop.capture.hooked import Hooked
from signalprop.nets.recurrent._cells import Watch
from signalprop.nets.recurrent.lstm import LSTM, run_direction
from signalprop.nets.recurrent.minimal import MinGRU, MinLSTM, run_recurrence
from signalprop.recurrent.call import OPS, Call, Weights, by_torch, going, turned
from signalprop.recurrent.jacobians.steps import Diagonal, Place, Run, home_of_doubles


@dataclass
class Chain:
    """Calls of one layer, each with the state that the one before left.

    Attributes:
        site: path of the module.
        op: its operation.
        calls: what was seen of each, by layer and direction.
        last: the states that the last one returned.
    """

    site: str
    op: str
    calls: list[dict[tuple[int, int], Run]]
    last: tuple[Tensor, ...] = ()

    def runs(self) -> list[Run]:
        """All calls as one sequence, by layer and direction."""
        return [joined([call[place] for call in self.calls]) for place in sorted(self.calls[0])]


def joined(runs: list[Run]) -> Run:
    """Calls that follow one another as one."""
    if len(runs) == 1:
        return runs[0]
    x, outputs = (torch.cat([getattr(run, name) for run in runs]) for name in ("x", "outputs"))
    return replace(runs[0], x=x, outputs=outputs)


@dataclass
class Linear:
    """A linear recurrence as it ran, in the order in which it ran.

    Attributes:
        place: where.
        a: its factors, (T, B, H).
        lengths: of the sequences, (B,); None where all have T steps.
    """

    place: Place
    a: Tensor
    lengths: Tensor | None

    def steps(self, samples: Tensor) -> Diagonal:
        """The step Jacobians of some samples."""
        home = home_of_doubles(self.a.device)
        a = self.a.detach().index_select(1, samples.to(self.a.device)).to(home).double()
        if self.lengths is None:
            lengths = torch.full((len(samples),), len(a), device=home)
        else:
            lengths = self.lengths.to(home)[samples.to(home)]
        return Diagonal(self.place, a, lengths)


@dataclass
class _Seer:
    """Runs one layer in one direction with torch's own function, and keeps what went in and out."""

    function: Callable[..., Any]
    site: str
    op: str
    seen: dict[tuple[int, int], Run] = field(default_factory=dict)

    def __call__(
        self,
        place: tuple[int, int],
        x: Tensor,
        states: tuple[Tensor, ...],
        weights: Weights,
        sizes: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        flat = [w for w in weights if w is not None]
        biases = weights[2] is not None
        outputs, ends = by_torch(self.function, self.op, x, states, flat, biases, sizes)
        lengths = None if sizes is None else going(sizes, x.shape[1], x.device).sum(0)
        self.seen[place] = Run(
            Place(self.site, self.op, place[0], bool(place[1])),
            x.detach(), tuple(s.detach() for s in states), outputs.detach(), weights, lengths,
        )  # fmt: skip
        return outputs, ends


class Seen(Hooked):
    """Writes down the recurrent layers that run inside.

    Args:
        model: gives the names of the modules.

    Attributes:
        chains: calls of torch's recurrent functions.
        runs: other recurrent layers of this package.
        linear: linear recurrences.
        cut: sites that were given their own state detached.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.chains: list[Chain] = []
        self.runs: list[Run] = []
        self.linear: list[Linear] = []
        self.cut: set[str] = set()
        self._model = model
        self._site = self._own_site = ""
        self._calls: dict[str, int] = {}

    def _hooks(self) -> list[RemovableHandle]:
        found: list[RemovableHandle] = []
        for path, module in self._model.named_modules():
            if isinstance(module, (nn.RNNBase, MinGRU, MinLSTM)):
                found.append(module.register_forward_pre_hook(self._entered(path)))
                found.append(module.register_forward_hook(self._left))
        return found

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a torch function; recurrent ones layer by layer."""
        if func is run_direction:
            return self._see_direction(*args, **(kwargs or {}))
        if func is run_recurrence:
            return self._see_recurrence(*args)
        op = getattr(func, "__name__", "")
        known = op in OPS and len(args) >= 8 and isinstance(args[0], Tensor)
        if not known or not len(args[0]):
            return func(*args, **(kwargs or {}))
        call = Call.of(op, args)
        chain = self._chain(call)
        seer = _Seer(func, chain.site, op)
        with torch._C.DisableTorchFunction():
            made = call.run(seer)
        chain.calls.append(seer.seen)
        chain.last = made[1:]
        return made

    def _chain(self, call: Call) -> Chain:
        """The chain that a call belongs to, a new one where it begins anew."""
        if call.directions == 1 and call.sizes is None:
            for chain in reversed(self.chains):
                same = self._of(chain.site) == self._site and chain.op == call.op
                if not same or len(chain.last) != len(call.states):
                    continue
                both = list(zip(chain.last, call.states, strict=True))
                if all(a.data_ptr() == b.data_ptr() and a.numel() == b.numel() for a, b in both):
                    if all(a.requires_grad == b.requires_grad for a, b in both):
                        return chain
                    self.cut.add(self._site)
                break
        self.chains.append(Chain(self._named(self._site), call.op, []))
        return self.chains[-1]

    def _named(self, site: str) -> str:
        self._calls[site] = self._calls.get(site, 0) + 1
        return site if self._calls[site] == 1 else f"{site}#{self._calls[site]}"

    def _of(self, name: str) -> str:
        return name.partition("#")[0]

    def _entered(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._site = path

        return enter

    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        self._site = ""

    # ---- this package's own layers ---------------------------------------------------------------

    def _own(self, op: str, place: tuple[int, int]) -> Place:
        """A place of the layer that is being run; a call begins with its first direction."""
        if place == (0, 0):
            self._own_site = self._named(self._site)
        return Place(self._own_site, op, place[0], bool(place[1]))

    def _see_direction(
        self,
        layer: LSTM,
        place: tuple[int, int],
        x: Tensor,
        there: Tensor | None,
        h: Tensor,
        c: Tensor,
        watch: Watch | None = None,
    ) -> Any:
        made = run_direction(layer, place, x, there, h, c, watch)
        cell, sizes = layer._cell(*place), None if there is None else there.sum(1)
        weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, cell.weight_hr)
        x, out = (turned(v.detach(), sizes) if place[1] else v.detach() for v in (x, made[0]))
        lengths = None if there is None else there.sum(0)
        self.runs.append(Run(
            self._own("lstm", place), x, (h.detach(), c.detach()), out, weights, lengths,
            cell.forget, cell.truncated, cell.weight_c,
        ))  # fmt: skip
        return made

    def _see_recurrence(
        self,
        layer: MinGRU | MinLSTM,
        place: tuple[int, int],
        a: Tensor,
        b: Tensor,
        there: Tensor | None,
        h: Tensor,
    ) -> Any:
        sizes, lengths = (None, None) if there is None else (there.sum(1), there.sum(0))
        factors = turned(a.detach(), sizes) if place[1] else a.detach()
        found = self._own(type(layer).__name__.lower(), place)
        self.linear.append(Linear(found, factors, lengths))
        return run_recurrence(layer, place, a, b, there, h)
