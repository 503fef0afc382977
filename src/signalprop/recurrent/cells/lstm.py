"""LSTM, one layer in one direction, with every dL/dh_t and dL/dc_t written down on the way back.

    i, f, o = sigmoid(z),  g = tanh(z),  z = W_ih x_t + b + W_hh h
    c_t = f c_(t-1) + i g,  h_t = o tanh(c_t), or W_hr (o tanh c_t) with a projection

(Hochreiter & Schmidhuber 1997; the forget gate: Gers, Schmidhuber & Cummins 2000.) What the input
adds is made for many steps at once, and so are the gradients of the weights. In between, a span of
steps runs in the compiled loop where there is one, in `Steps` otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from signalprop.recurrent.cells.again import again, as_forward
from signalprop.recurrent.cells.bulk import Sums, backwards, linear, spans
from signalprop.recurrent.cells.products import Product, sigmoids, tanh
from signalprop.recurrent.cells.record import Deltas
from signalprop.recurrent.compiled.loops import CompiledLSTM, fits


class LSTM(torch.autograd.Function):
    """(x, w_ih, bias, w_hh, h0, c0, w_hr, mask, deltas) -> (h of every step, h_T, c_T).

    x (T, B, I); w_ih (4 H, I) in torch's order i, f, g, o; bias (4 H,) or None; w_hh (4 H, P); h0
    (B, P), c0 (B, H); w_hr (P, H) or None, then P = H; mask (T, B, 1), False where a sequence has
    ended, or None.
    """

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any,
        x: Tensor,
        w_ih: Tensor,
        bias: Tensor | None,
        w_hh: Tensor,
        h0: Tensor,
        c0: Tensor,
        w_hr: Tensor | None,
        mask: Tensor | None,
        deltas: Deltas,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All steps; gates and states are kept."""
        steps, rows, _ = x.shape
        gates = x.new_empty(steps, rows, len(w_ih))
        cells = x.new_empty(steps + 1, *c0.shape)
        outputs = x.new_empty(steps + 1, *h0.shape)
        cells[0], outputs[0] = c0, h0
        loop = _loop(w_hh, w_hr, bias, rows, x, w_ih, h0, c0)
        left = None if isinstance(loop, CompiledLSTM) else bias  # compiled, it is added on the way
        for a, b in spans(gates, w_hh):
            linear(x[a:b], w_ih, left, gates[a:b])
            going = None if mask is None else mask[a:b]
            loop.forward(gates[a:b], going, cells[a : b + 1], outputs[a : b + 1])
        ctx.save_for_backward(x, w_ih, bias, w_hh, h0, c0, w_hr, mask, gates, cells, outputs)
        ctx.deltas = deltas
        deltas.forward(gates, mask)
        return outputs[1:], outputs[-1].clone(), cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """All steps back; with `create_graph` through a twin that can be derived again."""
        *given, mask, gates, cells, outputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*again(unrolled, given, mask, gradients), None, None)
        with as_forward(gates):
            return _backward(ctx, given, mask, gates, cells, outputs, gradients)


def _backward(
    ctx: Any,
    given: list[Any],
    mask: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    outputs: Tensor,
    gradients: tuple[Tensor, ...],
) -> tuple[Any, ...]:
    x, w_ih, _, w_hh, h0, c0, w_hr = given
    needs = ctx.needs_input_grad
    arriving, dh, dc = gradients
    dh, dc = dh.clone(memory_format=DENSE), dc.clone(memory_format=DENSE)
    found_h, found_c = torch.empty_like(outputs[1:]), torch.empty_like(cells[1:])
    of_input = Sums(x, w_ih, needs[:3])
    of_state = Sums(outputs[:-1], w_hh, (False, needs[3], False))
    of_projection = None if w_hr is None else Sums(cells[1:], w_hr, (False, needs[6], False))
    loop = _loop(w_hh, w_hr, None, len(h0), x, dh, dc, arriving, back=True)
    parts = list(backwards(gates, w_hh))
    errors = torch.empty_like(gates[: max(b - a for a, b in parts)])
    for a, b in parts:
        error, going = errors[: b - a], None if mask is None else mask[a:b]
        loop.backward(
            arriving[a:b], going, gates[a:b], cells[a : b + 1],
            error, found_h[a:b], found_c[a:b], dh, dc,
        )  # fmt: skip
        of_input.add(a, b, error)
        of_state.add(a, b, error)
        if of_projection is not None and of_projection.weight is not None:
            made = gates[a:b, :, -c0.shape[-1] :] * cells[a + 1 : b + 1].tanh()
            here = found_h[a:b] if going is None else torch.where(going, found_h[a:b], 0)
            of_projection.weight.addmm_(here.flatten(0, 1).t(), made.flatten(0, 1))
    ctx.deltas.backward(found_h, found_c)
    d_hr = None if of_projection is None else of_projection.weight
    return of_input.x, of_input.weight, of_input.bias, of_state.weight, dh, dc, d_hr, None, None


DENSE = torch.contiguous_format


def _loop(
    w_hh: Tensor,
    w_hr: Tensor | None,
    bias: Tensor | None,
    rows: int,
    *used: Tensor,
    back: bool = False,
) -> CompiledLSTM | Steps:
    if fits(w_hh, w_hr, bias, *used):
        return CompiledLSTM(w_hh, w_hr, bias)
    return Steps(w_hh, w_hr, rows, back)


class Steps:
    """A span of steps in torch's operations.

    Args:
        w_hh: (4 H, P).
        w_hr: (P, H), or None.
        rows: B.
        back: whether steps run back.
    """

    def __init__(self, w_hh: Tensor, w_hr: Tensor | None, rows: int, back: bool) -> None:
        self.w_hr = w_hr
        self.product = Product(w_hh.t() if back else w_hh, rows)

    def forward(self, gates: Tensor, mask: Tensor | None, cells: Tensor, outputs: Tensor) -> None:
        """Steps forward.

        Args:
            gates: W_ih x + b, (S, B, 4 H); overwritten.
            mask: (S, B, 1), or None.
            cells: (S + 1, B, H), the first one given.
            outputs: (S + 1, B, P), the first one given.
        """
        squashed, minus = torch.empty_like(cells[0]), gates.new_full((), -1)
        # every view at once: one by one they cost as much as the arithmetic
        z, c, h = gates.unbind(0), cells.unbind(0), outputs.unbind(0)
        i, f, g, o = (x.unbind(0) for x in gates.chunk(4, -1))
        for t in range(len(gates)):
            self.product.added(h[t], z[t])
            sigmoids(z[t], g[t], minus)
            torch.mul(f[t], c[t], out=c[t + 1]).addcmul_(i[t], g[t])
            tanh(c[t + 1], squashed)
            if self.w_hr is None:
                torch.mul(o[t], squashed, out=h[t + 1])
            else:
                torch.mm(o[t] * squashed, self.w_hr.t(), out=h[t + 1])
            if mask is not None:
                c[t + 1].copy_(torch.where(mask[t], c[t + 1], c[t]))
                h[t + 1].copy_(torch.where(mask[t], h[t + 1], h[t]))

    def backward(
        self,
        given: Tensor,
        mask: Tensor | None,
        gates: Tensor,
        cells: Tensor,
        error: Tensor,
        found_h: Tensor,
        found_c: Tensor,
        dh: Tensor,
        dc: Tensor,
    ) -> None:
        """Steps back.

        Args:
            given: gradient of the outputs, (S, B, P).
            mask: (S, B, 1), or None.
            gates: (S, B, 4 H).
            cells: (S + 1, B, H).
            error: gets dL/dz, (S, B, 4 H).
            found_h: gets dL/dh_t, (S, B, P).
            found_c: gets dL/dc_t, (S, B, H).
            dh: gradient of the last h, (B, P); gets that of the first.
            dc: the same of c, (B, H).
        """
        _slopes(gates, cells, error, found_c)  # which are multiplied where they lie
        rows, forget = error.unbind(0), gates.chunk(4, -1)[1].unbind(0)
        parts = error.unflatten(-1, (4, -1))
        of_cell, of_o = parts[..., :3, :].unbind(0), parts[..., 3, :].unbind(0)
        h_t, c_t, given_t = found_h.unbind(0), found_c.unbind(0), given.unbind(0)
        wide_t = found_c.unsqueeze(-2).unbind(0)
        torch.add(given_t[-1], dh, out=h_t[-1])
        for t in range(len(gates) - 1, -1, -1):
            here = h_t[t]
            inner = here if self.w_hr is None else here @ self.w_hr
            into = torch.addcmul(dc, inner, c_t[t], out=c_t[t])
            of_cell[t].mul_(wide_t[t])
            of_o[t].mul_(inner)
            if mask is None:
                torch.mul(into, forget[t], out=dc)
            else:
                rows[t].masked_fill_(~mask[t], 0)
                into.copy_(torch.where(mask[t], into, dc))
                dc.copy_(torch.where(mask[t], into * forget[t], dc))
            if t:
                before = self.product.added(rows[t], given_t[t - 1], h_t[t - 1])
            else:
                before = self.product(rows[t], dh)
            if mask is not None:
                before.add_(here.masked_fill(mask[t], 0))


def _slopes(gates: Tensor, cells: Tensor, of_z: Tensor, of_c: Tensor) -> None:
    """Write dc_t/dz of i, f and g and dh_t/dz of o, (S, B, 4 H); dh_t/dc_t, (S, B, H)."""
    i, f, g, o = gates.chunk(4, -1)
    of_i, of_f, of_g, of_o = of_z.chunk(4, -1)
    sigmoid, tanh = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
    sigmoid.grad_input(g, i, grad_input=of_i)  # g i (1 - i)
    sigmoid.grad_input(cells[:-1], f, grad_input=of_f)
    tanh.grad_input(i, g, grad_input=of_g)  # i (1 - g^2)
    squashed = torch.tanh(cells[1:], out=of_c)
    sigmoid.grad_input(squashed, o, grad_input=of_o)
    tanh.grad_input(o, squashed, grad_input=of_c)


def unrolled(
    x: Tensor,
    w_ih: Tensor,
    bias: Tensor | None,
    w_hh: Tensor,
    h: Tensor,
    c: Tensor,
    w_hr: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `LSTM`, step by step in torch's own operations."""
    pre, outputs = F.linear(x, w_ih, bias), list[Tensor]()
    for t in range(len(pre)):
        i, f, g, o = (pre[t] + h @ w_hh.t()).chunk(4, -1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        new_h = new_h if w_hr is None else new_h @ w_hr.t()
        c = new_c if mask is None else torch.where(mask[t], new_c, c)
        h = new_h if mask is None else torch.where(mask[t], new_h, h)
        outputs.append(h)
    return torch.stack(outputs), h, c
