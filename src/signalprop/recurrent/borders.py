"""`deltas="borders"`: torch's own kernels in chunks of steps, delta read where they meet.

Whatever torch runs a layer with (oneDNN, cuDNN, its own loop) runs here, too. The state that one
chunk hands to the next is an ordinary tensor, whose gradient autograd knows.

On a CPU a chunk costs oneDNN a part of its time again (its weights are turned round for each), so
where the compiled loops have been built they run all steps at once and the same borders are read.
Nothing is built for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from signalprop.recurrent import stepwise
from signalprop.recurrent.call import Weights, by_torch, going
from signalprop.recurrent.cells.record import Deltas
from signalprop.recurrent.compiled.loops import fits

#: steps of a chunk, at least and at most: every start of torch's kernels costs
FEWEST, MOST = 20, 50
#: chunks of a short sequence, and of one that is seen closely
FEW, MANY = 2, 16


@dataclass
class Border:
    """Where two chunks meet.

    Attributes:
        step: steps before it; the state is h_step.
        passed: gradients of the states that are handed on: h, and c of an LSTM.
        given: gradient of the output at this step; None where the loss does not read it.
        slope: dh/dc at this step, of an LSTM, (B, H); None of others, and at the start.
        project: W_hr of an LSTM with a projection, else None.
    """

    step: int
    passed: list[Tensor | None]
    given: Tensor | None = None
    slope: Tensor | None = None
    project: Tensor | None = None

    def h(self) -> Tensor | None:
        """dL/dh of the state, (B, P)."""
        parts = [g for g in (self.given, self.passed[0]) if g is not None]
        return sum(parts[1:], parts[0]) if parts else None

    def c(self) -> Tensor | None:
        """dL/dc of the state, what goes through h_step included, (B, H); None without a cell."""
        if len(self.passed) < 2:
            return None
        passed, h = self.passed[1], self.h()
        if self.slope is None or h is None:
            return passed
        inner = h if self.project is None else h @ self.project
        return inner * self.slope if passed is None else passed + inner * self.slope


@dataclass
class Read:
    """A border that the compiled loops have passed.

    Attributes:
        step: steps before it.
        deltas: of all borders.
        index: of this one among them.
    """

    step: int
    deltas: Deltas
    index: int

    def h(self) -> Tensor | None:
        """dL/dh of the state, (B, P)."""
        return None if self.deltas.h is None else self.deltas.h[self.index]

    def c(self) -> Tensor | None:
        """dL/dc of the state, (B, H); None without a cell."""
        return None if self.deltas.c is None else self.deltas.c[self.index]


@dataclass
class Chunked:
    """Runs layers in chunks.

    Attributes:
        function: torch's function.
        op: its name.
        chunk: steps of a chunk; None chooses.
        closely: whether short sequences get more chunks, and gates are to be seen as well, which
            takes one more product for all steps.
        seen: borders by layer and direction, the first and the last step among them.
        gates: activations of the gates by layer and direction, and where sequences are going.
    """

    function: Callable[..., Any]
    op: str
    chunk: int | None = None
    closely: bool = False
    gates: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    seen: dict[tuple[int, int], list[Border | Read]] = field(default_factory=dict)

    def __call__(
        self,
        place: tuple[int, int],
        x: Tensor,
        states: tuple[Tensor, ...],
        weights: Weights,
        sizes: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer in one direction."""
        if x.is_cuda and torch.is_autocast_enabled("cuda"):  # cuDNN's weights: once, not by chunk
            narrow = torch.get_autocast_dtype("cuda")
            with torch.autocast("cuda", enabled=False):
                states = tuple(s.to(narrow) for s in states)
                return self(place, x.to(narrow), states, stepwise.cast(weights, narrow), sizes)
        steps = len(x)
        parts, fewest = (MANY, 1) if self.closely else (FEW, FEWEST)
        size = self.chunk or min(max(-(-steps // parts), fewest), MOST)
        flat = _together(weights) if x.is_cuda else [w for w in weights if w is not None]
        first = Border(0, [None] * len(states))
        borders: list[Border | Read] = [first]
        self.seen[place] = borders
        states = tuple(_seen(s, first, i) for i, s in enumerate(states))
        if not torch.is_autocast_enabled(x.device.type) and fits(
            weights[1], x, *flat, *states, build_now=False
        ):
            return self._at_once(place, x, states, weights, sizes, size)
        start, outputs = states[0], list[Tensor]()
        before: list[Tensor] = []
        cells: list[Tensor] = []
        end = 0
        for part in x.split(size):  # one gradient for all parts, where slices would have one each
            begin, end = end, end + len(part)
            handed = states
            output, states = by_torch(
                self.function, self.op, part, handed, flat, weights[2] is not None,
                None if sizes is None else sizes[begin:end],
            )  # fmt: skip
            border = Border(end, [None] * len(states))
            if self.op == "lstm":
                before.append((output[-2] if len(part) > 1 else handed[0]).detach())
                cells.append(states[1].detach())
            _watch(output, border)
            states = tuple(_seen(s, border, i) for i, s in enumerate(states))
            borders.append(border)
            outputs.append(output)
        if self.op == "lstm":
            _slope(borders[1:], x, before, cells, weights, sizes)
        whole = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        if self.closely and self.op in ("lstm", "gru"):
            mask = None
            if sizes is not None:
                mask = going(sizes, x.shape[1], x.device)[..., None]
            self.gates[place] = _gates(x, start, whole, weights), mask
        return whole, states

    def _at_once(
        self,
        place: tuple[int, int],
        x: Tensor,
        states: tuple[Tensor, ...],
        weights: Weights,
        sizes: Tensor | None,
        size: int,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        ends = [min(begin + size, len(x)) for begin in range(0, len(x), size)]
        gated = self.closely and self.op in ("lstm", "gru")
        deltas = Deltas([end - 1 for end in ends], gated)
        self.seen[place] += [Read(end, deltas, k) for k, end in enumerate(ends)]
        mask = stepwise.ended(x, sizes)
        made = stepwise.run(self.op, x, states, weights, mask, deltas)
        if deltas.gates is not None:
            self.gates[place] = deltas.gates, mask
        return made


@torch.no_grad()
def _gates(x: Tensor, start: Tensor, outputs: Tensor, weights: Weights) -> Tensor:
    """The gates of all steps from what they were given; candidates stand among them untouched."""
    w_ih, w_hh, b_ih, b_hh, _ = weights
    before = torch.cat([start[None].to(outputs.dtype), outputs[:-1]])
    made = F.linear(x, w_ih, b_ih) + F.linear(before, w_hh, b_hh)
    return made.sigmoid()


@torch.no_grad()
def _slope(
    borders: list[Border | Read],
    x: Tensor,
    before: list[Tensor],
    cells: list[Tensor],
    weights: Weights,
    sizes: Tensor | None,
) -> None:
    """dh_t/dc_t = o (1 - tanh(c_t)^2) of all borders, o from what the cell was given there."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    c, last = torch.stack(cells), [border.step - 1 for border in borders]
    rows = slice(3 * c.shape[-1], None)
    o = F.linear(x[last], w_ih[rows], None if b_ih is None else b_ih[rows])
    o = o + F.linear(torch.stack(before), w_hh[rows], None if b_hh is None else b_hh[rows])
    slopes = o.sigmoid() * (1 - c.tanh().square())
    if sizes is not None:  # what has ended is handed on as it is
        slopes = slopes * going(sizes[last], x.shape[1], x.device)[..., None]
    for border, slope in zip(borders, slopes, strict=True):
        assert isinstance(border, Border)
        border.slope = slope
        border.project = None if w_hr is None else w_hr.detach()


def _together(weights: Weights) -> list[Tensor]:
    """The weights in one buffer, in cuDNN's order: elsewhere it copies them at every chunk."""
    w_ih, _, b_ih, _, w_hr = weights
    flat = [w for w in weights if w is not None]
    if w_hr is not None or w_ih.untyped_storage().nbytes() == sum(w.nbytes for w in flat):
        return flat
    parts = [w.reshape(-1) for w in flat]
    if b_ih is None:
        parts.append(w_ih.new_zeros(2 * len(w_ih)))  # cuDNN keeps room for biases
    views = torch.cat(parts).split([len(p) for p in parts])
    return [v.view_as(w) for v, w in zip(views, flat, strict=False)]


def _seen(state: Tensor, border: Border, i: int) -> Tensor:
    """The state, a tensor of its own whose gradient is written down."""
    if not state.requires_grad:
        return state
    state = state.view_as(state)

    def read(gradient: Tensor) -> None:
        border.passed[i] = gradient.detach()

    state.register_hook(read)
    return state


def _watch(output: Tensor, border: Border) -> None:
    """Write down the gradient of the last step of a chunk's output."""
    if output.requires_grad:

        def read(gradient: Tensor) -> None:
            border.given = gradient[-1].detach().clone()

        output.register_hook(read)
