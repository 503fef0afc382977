"""Plain recurrent net, one layer in one direction, with every dL/dh_t written down.

    h_t = phi(W_ih x_t + b + W_hh h_(t-1)), phi tanh or ReLU

(Elman 1990.) What the input adds is made for many steps at once, and so are the gradients of the
weights. In between, a span of steps runs in the compiled loop where there is one, in `Steps`
otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from signalprop.recurrent.cells.again import again, as_forward
from signalprop.recurrent.cells.bulk import Sums, backwards, linear, spans
from signalprop.recurrent.cells.products import Product, tanh
from signalprop.recurrent.cells.record import Deltas
from signalprop.recurrent.compiled.loops import CompiledRNN, fits


class RNN(torch.autograd.Function):
    """(x, w_ih, bias, w_hh, h0, mask, relu, deltas) -> (h of every step, h_T).

    x (T, B, I); w_ih (H, I); bias (H,) or None; w_hh (H, H); h0 (B, H); mask (T, B, 1), False
    where a sequence has ended, or None; relu instead of tanh.
    """

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any,
        x: Tensor,
        w_ih: Tensor,
        bias: Tensor | None,
        w_hh: Tensor,
        h0: Tensor,
        mask: Tensor | None,
        relu: bool,
        deltas: Deltas,
    ) -> tuple[Tensor, Tensor]:
        """All steps; states are kept."""
        steps, rows, _ = x.shape
        outputs = x.new_empty(steps + 1, *h0.shape)
        outputs[0] = h0
        loop = _loop(w_hh, relu, rows, x, h0)
        for a, b in spans(outputs[1:], w_hh):
            linear(x[a:b], w_ih, bias, outputs[a + 1 : b + 1])
            loop.forward(None if mask is None else mask[a:b], outputs[a : b + 1])
        ctx.save_for_backward(x, w_ih, bias, w_hh, h0, mask, outputs)
        ctx.deltas, ctx.relu = deltas, relu
        deltas.forward(None, mask)
        return outputs[1:], outputs[-1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """All steps back; with `create_graph` through a twin that can be derived again."""
        *given, mask, outputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            twin = unrolled_relu if ctx.relu else unrolled_tanh
            return (*again(twin, given, mask, gradients), None, None, None)
        with as_forward(outputs):
            return _backward(ctx, given, mask, outputs, gradients)


def _backward(
    ctx: Any,
    given: list[Any],
    mask: Tensor | None,
    outputs: Tensor,
    gradients: tuple[Tensor, ...],
) -> tuple[Any, ...]:
    x, w_ih, _, w_hh, h0 = given
    needs = ctx.needs_input_grad
    arriving, dh = gradients
    dh = dh.clone(memory_format=torch.contiguous_format)
    found = torch.empty_like(outputs[1:])
    of_input = Sums(x, w_ih, needs[:3])
    of_state = Sums(outputs[:-1], w_hh, (False, needs[3], False))
    loop = _loop(w_hh, ctx.relu, len(h0), x, dh, arriving, back=True)
    parts = list(backwards(found, w_hh))
    errors = torch.empty_like(found[: max(b - a for a, b in parts)])
    for a, b in parts:
        error, going = errors[: b - a], None if mask is None else mask[a:b]
        loop.backward(arriving[a:b], going, outputs[a : b + 1], error, found[a:b], dh)
        of_input.add(a, b, error)
        of_state.add(a, b, error)
    ctx.deltas.backward(found)
    made = of_input.x, of_input.weight, of_input.bias, of_state.weight
    return *made, dh, None, None, None


def _loop(
    w_hh: Tensor, relu: bool, rows: int, *used: Tensor, back: bool = False
) -> CompiledRNN | Steps:
    return CompiledRNN(w_hh, relu) if fits(w_hh, *used) else Steps(w_hh, relu, rows, back)


class Steps:
    """A span of steps in torch's operations.

    Args:
        w_hh: (H, H).
        relu: instead of tanh.
        rows: B.
        back: whether steps run back.
    """

    def __init__(self, w_hh: Tensor, relu: bool, rows: int, back: bool) -> None:
        self.relu = relu
        self.product = Product(w_hh.t() if back else w_hh, rows)

    def forward(self, mask: Tensor | None, outputs: Tensor) -> None:
        """Steps forward.

        Args:
            mask: (S, B, 1), or None.
            outputs: the first state, then W_ih x + b of every step, (S + 1, B, H); overwritten.
        """
        states = outputs.unbind(0)
        for t in range(len(states) - 1):
            here = self.product.added(states[t], states[t + 1])
            if self.relu:
                here.relu_()
            else:
                tanh(here, here)
            if mask is not None:
                here.copy_(torch.where(mask[t], here, states[t]))

    def backward(
        self,
        given: Tensor,
        mask: Tensor | None,
        outputs: Tensor,
        error: Tensor,
        found: Tensor,
        dh: Tensor,
    ) -> None:
        """Steps back.

        Args:
            given: gradient of the outputs, (S, B, H).
            mask: (S, B, 1), or None.
            outputs: (S + 1, B, H).
            error: gets the gradient before phi, (S, B, H).
            found: gets dL/dh_t, (S, B, H).
            dh: gradient of the last h, (B, H); gets that of the first.
        """
        after, last = outputs[1:], dh
        slopes = (after > 0).to(after.dtype) if self.relu else 1 - after * after
        if mask is not None:
            slopes = torch.where(mask, slopes, 0)
        given_t, found_t, error_t = given.unbind(0), found.unbind(0), error.unbind(0)
        slope_t = slopes.unbind(0)
        for t in range(len(after) - 1, -1, -1):
            here = torch.add(given_t[t], dh, out=found_t[t])
            dh = self.product(torch.mul(here, slope_t[t], out=error_t[t]))
            if mask is not None:
                dh = torch.where(mask[t], dh, here)
        last.copy_(dh)


def unrolled_tanh(
    x: Tensor, w_ih: Tensor, bias: Tensor | None, w_hh: Tensor, h: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same as `RNN` with tanh, step by step in torch's own operations."""
    return _unrolled(torch.tanh, F.linear(x, w_ih, bias), w_hh, h, mask)


def unrolled_relu(
    x: Tensor, w_ih: Tensor, bias: Tensor | None, w_hh: Tensor, h: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same as `RNN` with ReLU, step by step in torch's own operations."""
    return _unrolled(torch.relu, F.linear(x, w_ih, bias), w_hh, h, mask)


def _unrolled(
    phi: Any, pre: Tensor, w_hh: Tensor, h: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(len(pre)):
        new = phi(pre[t] + h @ w_hh.t())
        h = new if mask is None else torch.where(mask[t], new, h)
        outputs.append(h)
    return torch.stack(outputs), h
