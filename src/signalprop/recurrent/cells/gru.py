"""GRU, one layer in one direction, with every dL/dh_t written down on the way back.

    r, z = sigmoid(W_ih x_t + b_ih + W_hh h + b_hh),  n = tanh(W_in x_t + b_in + r (W_hn h + b_hn))
    h_t = (1 - z) n + z h_(t-1)

(Cho et al. 2014, with torch's place for the reset gate.) What the input adds is made for many steps
at once, and so are the gradients of the weights. In between, a span of steps runs in the compiled
loop where there is one, in `Steps` otherwise.
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
from signalprop.recurrent.compiled.loops import CompiledGRU, fits


class GRU(torch.autograd.Function):
    """(x, w_ih, b_ih, w_hh, b_hh, h0, mask, deltas) -> (h of every step, h_T).

    x (T, B, I); w_ih (3 H, I) in torch's order r, z, n; w_hh (3 H, H); b_ih, b_hh (3 H,) or None;
    h0 (B, H); mask (T, B, 1), False where a sequence has ended, or None.
    """

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any,
        x: Tensor,
        w_ih: Tensor,
        b_ih: Tensor | None,
        w_hh: Tensor,
        b_hh: Tensor | None,
        h0: Tensor,
        mask: Tensor | None,
        deltas: Deltas,
    ) -> tuple[Tensor, Tensor]:
        """All steps; gates and states are kept."""
        steps, rows, _ = x.shape
        gates = x.new_empty(steps, rows, len(w_ih))
        inner = x.new_empty(steps, *h0.shape)
        outputs = x.new_empty(steps + 1, *h0.shape)
        outputs[0] = h0
        loop = _loop(w_hh, b_hh, rows, x, h0)
        for a, b in spans(gates, w_hh):
            linear(x[a:b], w_ih, b_ih, gates[a:b])
            going = None if mask is None else mask[a:b]
            loop.forward(gates[a:b], going, inner[a:b], outputs[a : b + 1])
        ctx.save_for_backward(x, w_ih, b_ih, w_hh, b_hh, h0, mask, gates, inner, outputs)
        ctx.deltas = deltas
        deltas.forward(gates, mask)
        return outputs[1:], outputs[-1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """All steps back; with `create_graph` through a twin that can be derived again."""
        *given, mask, gates, inner, outputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*again(unrolled, given, mask, gradients), None, None)
        with as_forward(gates):
            return _backward(ctx, given, mask, gates, inner, outputs, gradients)


def _backward(
    ctx: Any,
    given: list[Any],
    mask: Tensor | None,
    gates: Tensor,
    inner: Tensor,
    outputs: Tensor,
    gradients: tuple[Tensor, ...],
) -> tuple[Any, ...]:
    x, w_ih, _, w_hh, b_hh, h0 = given
    needs = ctx.needs_input_grad
    arriving, dh = gradients
    dh = dh.clone(memory_format=torch.contiguous_format)
    found = torch.empty_like(outputs[1:])
    of_input = Sums(x, w_ih, needs[:3])
    of_state = Sums(outputs[:-1], w_hh, (False, needs[3], needs[4]))
    loop = _loop(w_hh, b_hh, len(h0), x, dh, arriving, back=True)
    parts = list(backwards(gates, w_hh))
    most, new = max(b - a for a, b in parts), 2 * h0.shape[-1]
    errors, owns = torch.empty_like(gates[:most]), torch.empty_like(inner[:most])
    for a, b in parts:
        error, own = errors[: b - a], owns[: b - a]
        loop.backward(
            arriving[a:b], None if mask is None else mask[a:b], gates[a:b], inner[a:b],
            outputs[a : b + 1], error, own, found[a:b], dh,
        )  # fmt: skip
        of_input.add(a, b, error)
        of_state.add(a, b, error[..., :new])
        of_state.add(a, b, own, new)
    ctx.deltas.backward(found)
    made = of_input.x, of_input.weight, of_input.bias, of_state.weight, of_state.bias
    return *made, dh, None, None


def _loop(
    w_hh: Tensor, b_hh: Tensor | None, rows: int, *used: Tensor, back: bool = False
) -> CompiledGRU | Steps:
    if fits(w_hh, b_hh, *used):
        return CompiledGRU(w_hh, b_hh)
    return Steps(w_hh, b_hh, rows, back)


class Steps:
    """A span of steps in torch's operations.

    Args:
        w_hh: (3 H, H).
        b_hh: (3 H,), or None.
        rows: B.
        back: whether steps run back.
    """

    def __init__(self, w_hh: Tensor, b_hh: Tensor | None, rows: int, back: bool) -> None:
        self.b_hh = b_hh
        self.product = Product(w_hh.t() if back else w_hh, rows)

    def forward(self, gates: Tensor, mask: Tensor | None, inner: Tensor, outputs: Tensor) -> None:
        """Steps forward.

        Args:
            gates: W_ih x + b_ih, (S, B, 3 H); overwritten.
            mask: (S, B, 1), or None.
            inner: gets W_hn h + b_hn, (S, B, H).
            outputs: (S + 1, B, H), the first one given.
        """
        hidden = outputs.shape[-1]
        states, owns = outputs.unbind(0), inner.unbind(0)
        both, n = (x.unbind(0) for x in gates.split([2 * hidden, hidden], -1))
        r, z = (x.unbind(0) for x in gates.split(hidden, -1)[:2])
        made = torch.empty_like(gates[0])
        upper, lower = made.split([2 * hidden, hidden], -1)
        for t, h in enumerate(states[:-1]):
            if self.b_hh is None:
                self.product(h, made)
            else:
                self.product.added(h, made.copy_(self.b_hh.expand_as(made)))
            both[t].add_(upper).sigmoid_()
            tanh(n[t].addcmul_(r[t], owns[t].copy_(lower)), n[t])
            torch.lerp(n[t], h, z[t], out=states[t + 1])
            if mask is not None:
                states[t + 1].copy_(torch.where(mask[t], states[t + 1], h))

    def backward(
        self,
        given: Tensor,
        mask: Tensor | None,
        gates: Tensor,
        inner: Tensor,
        outputs: Tensor,
        error: Tensor,
        own: Tensor,
        found: Tensor,
        dh: Tensor,
    ) -> None:
        """Steps back.

        Args:
            given: gradient of the outputs, (S, B, H).
            mask: (S, B, 1), or None.
            gates: (S, B, 3 H).
            inner: (S, B, H).
            outputs: (S + 1, B, H).
            error: gets what reaches W_ih x + b_ih, (S, B, 3 H).
            own: gets what reaches W_hn h + b_hn, (S, B, H).
            found: gets dL/dh_t, (S, B, H).
            dh: gradient of the last h, (B, H); gets that of the first.
        """
        hidden = outputs.shape[-1]
        r, z, n = gates.chunk(3, -1)
        # the errors of z and of n are here times a slope; that of r is n's times another one
        of_z = torch.addcmul(z, z, z, value=-1).mul_(outputs[:-1] - n).unbind(0)
        of_n = torch.mul(1 - z, 1 - n * n).unbind(0)
        of_r = torch.addcmul(r, r, r, value=-1).mul_(inner).unbind(0)
        r, z, last = r.unbind(0), z.unbind(0), dh
        down = torch.empty_like(error[0])  # what reaches W_hh h + b_hh
        upper, lower = down.split([2 * hidden, hidden], -1)
        rows, both = error.unbind(0), error[..., : 2 * hidden].unbind(0)
        error_r, error_z, error_n = (x.unbind(0) for x in error.chunk(3, -1))
        given_t, found_t, own_t = given.unbind(0), found.unbind(0), own.unbind(0)
        for t in range(len(gates) - 1, -1, -1):
            here = torch.add(given_t[t], dh, out=found_t[t])
            torch.mul(here, of_z[t], out=error_z[t])
            torch.mul(here, of_n[t], out=error_n[t])
            torch.mul(error_n[t], of_r[t], out=error_r[t])
            if mask is not None:
                rows[t].masked_fill_(~mask[t], 0)
            lower.copy_(torch.mul(error_n[t], r[t], out=own_t[t]))
            upper.copy_(both[t])
            dh = self.product(down).addcmul_(here, z[t])
            if mask is not None:
                dh = torch.where(mask[t], dh, here)
        last.copy_(dh)


def unrolled(
    x: Tensor,
    w_ih: Tensor,
    b_ih: Tensor | None,
    w_hh: Tensor,
    b_hh: Tensor | None,
    h: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The same as `GRU`, step by step in torch's own operations."""
    pre, outputs = F.linear(x, w_ih, b_ih), list[Tensor]()
    for t in range(len(pre)):
        (a, b, c), (d, e, f) = pre[t].chunk(3, -1), F.linear(h, w_hh, b_hh).chunk(3, -1)
        r, z = (a + d).sigmoid(), (b + e).sigmoid()
        n = (c + r * f).tanh()
        new = n + z * (h - n)
        h = new if mask is None else torch.where(mask[t], new, h)
        outputs.append(h)
    return torch.stack(outputs), h
