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
from torch.overrides import TorchFunctionMode

from signalprop.nets.recurrent import _form
from signalprop.nets.recurrent.lstm import LSTM
from signalprop.nets.recurrent.minimal import MinGRU, MinLSTM
from signalprop.recurrent.call import OPS, Call, Weights, _turned, going, padded
from signalprop.recurrent.steps import Diagonal, Place, Run

Minimal = (MinGRU, MinLSTM)


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
        home = torch.device("cpu") if self.a.device.type == "mps" else self.a.device
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
        handed = tuple(s[None] for s in states)
        hx = handed if self.op == "lstm" else handed[0]
        biases = weights[2] is not None
        lengths = None
        if sizes is None:
            outputs, *ends = self.function(x, hx, flat, biases, 1, 0.0, False, False, False)
        else:
            mask = going(sizes, x.shape[1], x.device)
            lengths = mask.sum(0)
            rows, *ends = self.function(x[mask], sizes, hx, flat, biases, 1, 0.0, False, False)
            outputs = padded(rows, mask)
        self.seen[place] = Run(
            Place(self.site, self.op, place[0], bool(place[1])),
            x.detach(), tuple(s.detach() for s in states), outputs.detach(), weights, lengths,
        )  # fmt: skip
        return outputs, tuple(e[0] for e in ends)


class Seen(TorchFunctionMode):
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
        self._site = ""
        self._random: dict[int, Any] = {}
        self._handles: list[Any] = []
        self._calls: dict[str, int] = {}

    def __enter__(self) -> Seen:
        """Start to look."""
        for path, module in self._model.named_modules():
            if isinstance(module, (nn.RNNBase, *Minimal)):
                add = self._handles.append
                add(module.register_forward_pre_hook(self._entered(path)))
                add(module.register_forward_hook(self._left, with_kwargs=True))
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        """Stop, and take every hook off."""
        try:
            super().__exit__(exc_type, exc_val, exc_tb)
        finally:
            for handle in self._handles:
                handle.remove()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a torch function; recurrent ones layer by layer."""
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

    # ---- this package's own layers, run once more ------------------------------------------------

    def _entered(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._site = path
            if getattr(module, "dropout", 0) and module.training:
                cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
                self._random[id(module)] = torch.get_rng_state(), cuda

        return enter

    def _left(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        own = isinstance(module, Minimal) or (isinstance(module, LSTM) and not module.plain)
        before = self._random.pop(id(module), None)
        path, self._site = self._site, ""
        if not own:
            return
        site = self._named(path)
        given = args[0] if args else kwargs["input"]
        hx = args[1] if len(args) > 1 else kwargs.get("hx")
        after = torch.get_rng_state(), None if before is None else before[1]
        if before is not None and before[1] is not None:
            after = after[0], torch.cuda.get_rng_state_all()
        with torch.no_grad(), torch._C.DisableTorchFunction():
            try:
                _random(before)
                if isinstance(module, LSTM):
                    self.runs += lstm_runs(module, site, given, hx)
                elif isinstance(module, Minimal):
                    self.linear += minimal_runs(module, site, given, hx)
            finally:
                if before is not None:
                    _random(after)


def _random(state: Any) -> None:
    if state is not None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state_all(state[1])


def lstm_runs(module: LSTM, site: str, given: Any, hx: Any) -> list[Run]:
    """This package's LSTM, layer by layer and direction by direction, as it has just run."""
    x, there = _form.opened("LSTM", given, module.batch_first)
    sizes = None if there is None else given.batch_sizes
    h_0, c_0 = module._begin(x, given, hx)
    directions = 2 if module.bidirectional else 1
    found = []
    for layer in range(module.num_layers):
        if layer:
            x = _form.dropped(x, there, module.dropout, module.training)
        read = []
        for way in range(directions):
            at, cell = layer * directions + way, module._cell(layer, way)
            out, _, _ = cell.run(x, there, h_0[at], c_0[at], reverse=way == 1)
            read.append(out)
            place = Place(site, "lstm", layer, bool(way))
            weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, cell.weight_hr)
            run_x, run_out = (_turned(v, sizes) if way else v for v in (x, out))
            lengths = None if there is None else there.sum(0)
            found.append(Run(
                place, run_x, (h_0[at], c_0[at]), run_out, weights, lengths,
                cell.forget, cell.truncated, cell.weight_c,
            ))  # fmt: skip
        x = torch.cat(read, -1) if directions == 2 else read[0]
    return found


def minimal_runs(module: MinGRU | MinLSTM, site: str, given: Any, hx: Any) -> list[Linear]:
    """This package's linear recurrences, as they have just run."""
    x, there = _form.opened(type(module).__name__, given, module.batch_first)
    sizes = None if there is None else given.batch_sizes
    h_0 = module._checked(x, None if hx is None else module._state(hx, given))
    lengths = None if there is None else there.sum(0)
    op = type(module).__name__.lower()
    found = []
    for layer in range(module.num_layers):
        if layer:
            x = _form.dropped(x, there, module.dropout, module.training)
        for way, end in enumerate(module._ends(layer)):
            a = torch.sigmoid(-module._gate(x, end)[0])
            a = _turned(a, sizes) if way else a
            found.append(Linear(Place(site, op, layer, bool(way)), a, lengths))
        x = module._layer(layer, x, there, h_0)[0]
    return found
