"""`deltas="borders"`: torch's own kernels in chunks of steps, delta read where they meet.

Whatever torch runs a layer with (oneDNN, cuDNN, its own loop) runs here, too. The state that one
chunk hands to the next is an ordinary tensor, whose gradient autograd knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from signalprop.recurrent.call import Weights, going, padded

#: steps of a chunk, at least and at most; a sequence has about PARTS of them
FEWEST, MOST, PARTS = 20, 50, 16


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
class Chunked:
    """Runs layers in chunks.

    Attributes:
        function: torch's function.
        op: its name.
        chunk: steps of a chunk; None chooses.
        fewest: steps of a chunk at least, where it is chosen.
        gated: whether gates are to be seen as well, which takes one more product for all steps.
        seen: borders by layer and direction, the first and the last step among them.
        gates: activations of the gates by layer and direction, and where sequences are going.
    """

    function: Callable[..., Any]
    op: str
    chunk: int | None = None
    fewest: int = FEWEST
    gated: bool = False
    gates: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    seen: dict[tuple[int, int], list[Border]] = field(default_factory=dict)

    def __call__(
        self,
        place: tuple[int, int],
        x: Tensor,
        states: tuple[Tensor, ...],
        weights: Weights,
        sizes: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer in one direction."""
        steps = len(x)
        size = self.chunk or min(max(-(-steps // PARTS), self.fewest), MOST)
        flat = [w for w in weights if w is not None]
        borders = self.seen[place] = [Border(0, [None] * len(states))]
        states = tuple(_seen(s, borders[-1], i) for i, s in enumerate(states))
        start, outputs = states[0], list[Tensor]()
        for begin in range(0, steps, size):
            end = min(begin + size, steps)
            handed = states
            output, states = self._part(
                x[begin:end], handed, flat, weights[2] is not None,
                None if sizes is None else sizes[begin:end],
            )  # fmt: skip
            border = Border(end, [None] * len(states))
            if self.op == "lstm":
                before = output[-2] if end - begin > 1 else handed[0]
                border.slope = _slope(x[end - 1], before, states[1], weights)
                border.project = None if weights[4] is None else weights[4].detach()
                if sizes is not None:  # what has ended is handed on as it is
                    last = going(sizes[end - 1 : end], x.shape[1], x.device)[0]
                    border.slope = border.slope * last[:, None]
            _watch(output, border)
            states = tuple(_seen(s, border, i) for i, s in enumerate(states))
            borders.append(border)
            outputs.append(output)
        whole = torch.cat(outputs)
        if self.gated and self.op in ("lstm", "gru"):
            mask = None
            if sizes is not None:
                mask = going(sizes, x.shape[1], x.device)[..., None]
            self.gates[place] = _gates(x, start, whole, weights), mask
        return whole, states

    def _part(
        self,
        x: Tensor,
        states: tuple[Tensor, ...],
        flat: list[Tensor],
        biases: bool,
        sizes: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        alive = x.shape[1] if sizes is None else int(sizes[0])
        handed = tuple(s[None, :alive] for s in states)
        hx = handed if self.op == "lstm" else handed[0]
        if sizes is None:
            output, *ends = self.function(x, hx, flat, biases, 1, 0.0, False, False, False)
            return output, tuple(s[0] for s in ends)
        mask = going(sizes, x.shape[1], x.device)
        rows, *ends = self.function(x[mask], sizes, hx, flat, biases, 1, 0.0, False, False)
        both = zip(ends, states, strict=True)
        return padded(rows, mask), tuple(torch.cat([e[0], s[alive:]]) for e, s in both)


@torch.no_grad()
def _gates(x: Tensor, start: Tensor, outputs: Tensor, weights: Weights) -> Tensor:
    """The gates of all steps from what they were given; candidates stand among them untouched."""
    w_ih, w_hh, b_ih, b_hh, _ = weights
    before = torch.cat([start[None].to(outputs.dtype), outputs[:-1]])
    made = F.linear(x, w_ih, b_ih) + F.linear(before, w_hh, b_hh)
    return made.sigmoid()


@torch.no_grad()
def _slope(x: Tensor, h: Tensor, c: Tensor, weights: Weights) -> Tensor:
    """dh_t/dc_t = o (1 - tanh(c_t)^2), o from what the cell was given at this step."""
    w_ih, w_hh, b_ih, b_hh, _ = weights
    rows = slice(3 * c.shape[-1], None)
    o = x @ w_ih[rows].t() + h @ w_hh[rows].t()
    if b_ih is not None and b_hh is not None:
        o = o + b_ih[rows] + b_hh[rows]
    return o.sigmoid() * (1 - c.tanh().square())


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
