"""Loops over cells: a module that is called again and again with what it returned before.

`Calls` finds them in one forward pass. A cell of torch whose own output is what it is given next
needs no more. Other loops (a module of the user's, a state that is masked, normalised or dropped
between the calls) are run once more with the graph cut at what the module returns, so that every
step is a small graph of its own: `Tape` takes errors through one step after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from signalprop.recurrent.call import Weights
from signalprop.recurrent.horizon.curve import Sizes
from signalprop.recurrent.jacobians.steps import Place, Run, Steps, home_of_doubles
from signalprop.recurrent.loops.cells import FEWEST, op_of

#: gives a tensor, as long as it is there
Held = Callable[[], Tensor | None]

_ATOMS = frozenset({type(None), bool, int, float, str})


@dataclass
class Loop:
    """The calls of one module.

    Attributes:
        path: of the module.
        module: it.
        linked: for each call, whether its state is the very one that the call before returned.
        fed: which tensors of what it returns it is given again.
        again: those that the last call was given.
        cells: (x, states, h) of each call of a cell of torch.
        detached: whether it was given a state of its own without its graph.
    """

    path: str
    module: nn.Module
    linked: list[bool] = field(default_factory=list)
    fed: set[int] = field(default_factory=set)
    again: dict[int, Tensor] = field(default_factory=dict)
    cells: list[tuple[Tensor, tuple[Tensor, ...], Tensor]] = field(default_factory=list)
    detached: bool = False
    _last: list[tuple[Held, int]] = field(default_factory=list)
    _new: list[Held] = field(default_factory=list)

    def see(self, args: Any, kwargs: Any, output: Any) -> None:
        """One call."""
        given, made = [*tensors(args), *tensors(kwargs)], tensors(output)
        again = self.again = dict[int, Tensor]()
        rest: list[Tensor] = []
        last = [(k, y, v) for k, (held, v) in enumerate(self._last) if (y := held()) is not None]
        for x in given:
            which, y = next(((k, y) for k, y, v in last if _same(x, y, v)), (-1, x))
            if which < 0:
                rest.append(x)
            elif x.requires_grad != y.requires_grad:
                self.detached = True
            else:
                again[which] = y
        cell = isinstance(self.module, nn.RNNCellBase)
        # a layer that refines one thing is no loop over time
        known = {id(x) for held in self._new if (x := held()) is not None}
        new = any(id(x) not in known for x in rest)
        states = 2 if isinstance(self.module, nn.LSTMCell) else 1
        self.linked.append(len(again) == states if cell else bool(again) and new)
        self.fed |= again.keys()
        self.hold(made)
        self._new = [self.holding(x) for x in rest]
        if cell:
            self._see_cell(args, kwargs, made)

    def hold(self, made: list[Tensor]) -> None:
        """What was returned, until the next call."""
        self._last = [(self.holding(y), y._version) for y in made]

    def holding(self, x: Tensor) -> Held:
        """Gives a tensor later; here it is kept for that."""
        return lambda: x

    def _see_cell(self, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        x = (args[0] if args else kwargs["input"]).detach()
        hx = args[1] if len(args) > 1 else kwargs.get("hx")
        states = tuple(torch.zeros_like(y) for y in made) if hx is None else hx
        states = (states,) if isinstance(states, Tensor) else tuple(states)
        if x.ndim == 1:
            x, made = x[None], [y[None] for y in made]
            states = tuple(s[None] if s.ndim == 1 else s for s in states)
        self.cells.append((x, tuple(s.detach() for s in states), made[0].detach()))

    @property
    def longest(self) -> tuple[int, int]:
        """Where the longest sequence of linked calls begins and ends."""
        best = start = 0, 0
        for k, linked in enumerate(self.linked):
            start = (start[0], k + 1) if linked else (k, k + 1)
            best = max(best, start, key=lambda one: one[1] - one[0])
        return best

    @property
    def is_cell(self) -> bool:
        """Whether it is one of torch's."""
        return isinstance(self.module, nn.RNNCellBase)

    @property
    def op(self) -> str:
        """`lstm`, `gru`, `rnn_tanh`, `rnn_relu`, or the class of the module."""
        if isinstance(self.module, nn.RNNCellBase):
            return op_of(self.module)
        return type(self.module).__name__.lower()

    def run(self) -> Run | None:
        """The longest sequence as one run; None where its state is not the cell's own."""
        begin, end = self.longest
        calls = self.cells[begin:end]
        if len(calls) < max(FEWEST, len(self.cells) // 2) or len({c[0].shape for c in calls}) > 1:
            return None
        module: Any = self.module
        weights: Weights = (
            module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh, None
        )  # fmt: skip
        x, outputs = torch.stack([c[0] for c in calls]), torch.stack([c[2] for c in calls])
        return Run(Place(self.path, self.op), x, calls[0][1], outputs, weights)


def tensors(value: Any) -> list[Tensor]:
    """The tensors in what a module is given or returns."""
    if isinstance(value, Tensor):
        return [value]
    kind = type(value)
    if kind in _ATOMS:
        return []
    if kind is dict:
        value, kind = tuple(value.values()), tuple
    if kind is tuple or kind is list:  # as nearly always, and far quicker so
        return [x for item in value for x in tensors(item)]
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def _same(x: Tensor, y: Tensor, version: int) -> bool:
    """Whether x is y as it was returned, or shares its values with it."""
    if x is y:
        return x._version == version
    alike = x.numel() == y.numel() and x.numel() > 0 and x.is_floating_point()
    return alike and x.data_ptr() == y.data_ptr() and y._version == version


class Calls:
    """Sees how the modules of a model are called while it is open.

    Args:
        model: the model.

    Attributes:
        loops: by path.
    """

    def __init__(self, model: nn.Module) -> None:
        self.loops: dict[str, Loop] = {}
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> Calls:
        """Start to look."""
        for path, module in self._model.named_modules():
            if path and self.sees(module):
                self._handles.append(
                    module.register_forward_hook(self._seer(path), with_kwargs=True)
                )
        return self

    @staticmethod
    def sees(module: nn.Module) -> bool:
        """Whether a module may be a loop's cell."""
        return not isinstance(module, nn.RNNBase)

    def __exit__(self, *error: object) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()

    def _seer(self, path: str) -> Any:
        def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.loops.setdefault(path, Loop(path, module)).see(args, kwargs, output)

        return see

    def found(self) -> list[Loop]:
        """The modules that are a loop's cell, none inside of another; cells of torch win."""
        cells = [p for p, one in self.loops.items() if one.is_cell and len(one.linked) >= FEWEST]
        others = []
        for path, one in self.loops.items():
            begin, end = one.longest
            if one.is_cell or end - begin < FEWEST:
                continue
            if any(c.startswith(f"{path}.") for c in cells):
                continue
            if any(path.startswith(f"{o}.") for o in [*others, *cells]):
                continue
            others.append(path)
        # the outer of two is called last, but holds the other
        others = [p for p in others if not any(p.startswith(f"{o}.") for o in others)]
        return [self.loops[p] for p in (*cells, *others)]


class Cut:
    """Cuts the graph at what some modules return while it is open; values stay as they are.

    Args:
        loops: whose modules.
        keep: leave the graph whole instead, and only mark where it would be cut.

    Attributes:
        made: by path, for every call the tensors that it returned, and those handed on.
    """

    def __init__(self, loops: list[Loop], *, keep: bool = False) -> None:
        self.made: dict[str, list[tuple[list[Tensor], list[Tensor]]]] = {}
        self._loops, self._keep = loops, keep
        self._handles: list[Any] = []

    def __enter__(self) -> Cut:
        """Start to cut."""
        for loop in self._loops:
            self.made[loop.path] = []
            self._handles.append(loop.module.register_forward_hook(self._cutter(loop)))
        return self

    def __exit__(self, *error: object) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()

    def _cutter(self, loop: Loop) -> Any:
        def cut(module: nn.Module, args: Any, output: Any) -> Any:
            leaves, form = tree_flatten(output)
            tensors = [k for k, x in enumerate(leaves) if isinstance(x, Tensor)]
            wanted = [
                k
                for place, k in enumerate(tensors)
                if (loop.is_cell or place in loop.fed) and leaves[k].is_floating_point()
            ]
            raw = [leaves[k] for k in wanted]
            new = [
                x.view_as(x) if self._keep and x.requires_grad else x.detach().requires_grad_()
                for x in raw
            ]
            for k, x in zip(wanted, new, strict=True):
                leaves[k] = x
            self.made[loop.path].append((raw, new))
            return tree_unflatten(leaves, form)

        return cut


class Tape(Steps):
    """Step Jacobians of any module, each from its own small graph, by autograd.

    Args:
        place: where.
        made: for every call the tensors it returned, and the leaves that stand for them.

    Attributes:
        skips: whether a state was seen to depend on more than the one before it.
    """

    def __init__(self, place: Place, made: list[tuple[list[Tensor], list[Tensor]]]) -> None:
        self.made, self.skips = made, False
        first = made[-1][1]
        rows = 1 if first[0].ndim == 1 else len(first[0])
        size = sum(x.numel() for x in first) // rows
        self.home = first[0].device
        device = home_of_doubles(self.home)
        super().__init__(place, torch.full((rows,), len(made), device=device), size)

    def back(self, t: int, u: Tensor) -> Tensor:
        """J_t^T u, (..., B, n)."""
        raw, before = self.made[t - 1][0], self.made[t - 2][1]
        older = self.made[t - 3][1] if t > 2 else []
        flat = u.reshape(-1, self.rows, self.size)
        found = [self._one(raw, before, older, one) for one in flat]
        return torch.stack(found).view(u.shape)

    def matrix(self, t: int, rows: Tensor | None = None) -> Tensor:
        """J_t of some samples, all unless they are given as indices, written out, (B, n, n)."""
        unit = torch.eye(self.size, dtype=torch.float64, device=self.device)
        made = self.back(t, unit[:, None].expand(-1, self.rows, -1)).transpose(0, 1)
        return made if rows is None else made[rows]

    def _one(
        self, raw: list[Tensor], before: list[Tensor], older: list[Tensor], u: Tensor
    ) -> Tensor:
        parts = u.split([x.numel() // self.rows for x in raw], -1)
        errors = [
            p.reshape(x.shape).to(x.device, x.dtype)
            for p, x in zip(parts, raw, strict=True)
            if x.requires_grad
        ]
        tops = [x for x in raw if x.requires_grad]
        if not tops:
            return torch.zeros_like(u)
        found = torch.autograd.grad(
            tops, [*before, *older], errors, retain_graph=True, allow_unused=True
        )
        self.skips |= any(g is not None for g in found[len(before) :])
        some = [
            torch.zeros_like(x) if g is None else g
            for g, x in zip(found[: len(before)], before, strict=True)
        ]
        return torch.cat([g.reshape(self.rows, -1).to(self.device).double() for g in some], -1)

    def whole(self, errors: int, generator: torch.Generator) -> Sizes:
        """The size of the error at every state, of calls whose graph was kept whole.

        Args:
            errors: how many random errors.
            generator: of the errors.

        Returns:
            (T, errors, B).
        """
        handed = [x for _, new in self.made for x in new]
        last = self.made[-1][1]
        found = []
        for _ in range(errors):
            e = [torch.randn(x.shape, generator=generator).to(x.device, x.dtype) for x in last]
            made = torch.autograd.grad(last, handed, e, retain_graph=True, allow_unused=True)
            per = [
                torch.zeros_like(x) if g is None else g for g, x in zip(made, handed, strict=True)
            ]
            squares = torch.stack([g.reshape(self.rows, -1).double().square().sum(1) for g in per])
            found.append(squares.view(self.length, len(last), self.rows).sum(1).sqrt())
        return Sizes.of(torch.stack(found, 1).to(self.device))

    def local(self, t: int) -> tuple[Tensor, ...]:
        """Not known apart."""
        raise NotImplementedError

    def backward(self, local: tuple[Tensor, ...], u: Tensor) -> Tensor:
        """Not known apart."""
        raise NotImplementedError

    def forward(self, local: tuple[Tensor, ...], v: Tensor) -> Tensor:
        """Not known apart."""
        raise NotImplementedError
