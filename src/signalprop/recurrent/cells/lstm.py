"""LSTM, one layer in one direction, with every dL/dh_t and dL/dc_t written down on the way back.

    i, f, o = sigmoid(pre + W_hh h),  g = tanh(pre + W_hh h)
    c_t = f c_(t-1) + i g,  h_t = o tanh(c_t), or W_hr (o tanh(c_t)) with a projection

(Hochreiter & Schmidhuber 1997; the forget gate: Gers, Schmidhuber & Cummins 2000.) What the input
adds, `pre` = W_ih x + b, is made for all steps at once by whoever calls. On the way back the local
derivatives are made for many steps at once, too: what is left of a step is one matrix product and a
handful of elementwise operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from signalprop.recurrent.cells.again import again
from signalprop.recurrent.cells.products import Product
from signalprop.recurrent.cells.record import Deltas

#: steps whose local derivatives are held at a time
SPAN = 64


class LSTM(torch.autograd.Function):
    """(pre, w_hh, h0, c0, w_hr, mask, deltas) -> (h of every step, h_T, c_T).

    pre (T, B, 4 H) in torch's order i, f, g, o; w_hh (4 H, P); h0 (B, P), c0 (B, H); w_hr (P, H)
    or None, then P = H; mask (T, B, 1), False where a sequence has ended, or None.
    """

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any,
        pre: Tensor,
        w_hh: Tensor,
        h0: Tensor,
        c0: Tensor,
        w_hr: Tensor | None,
        mask: Tensor | None,
        deltas: Deltas,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All steps; gates and states are kept."""
        steps, rows, width = pre.shape
        hidden = width // 4
        # tanh z = 2 sigmoid(2 z) - 1: torch's tanh costs four times its sigmoid on a CPU
        twice = pre.new_ones(width)
        twice[2 * hidden : 3 * hidden] = 2
        gates = pre * twice
        cells = pre.new_empty(steps + 1, *c0.shape)
        squashed = torch.empty_like(cells[1:])
        outputs = pre.new_empty(steps + 1, *h0.shape)
        cells[0], outputs[0] = c0, h0
        product = Product(w_hh * twice[:, None], rows)
        for t in range(steps):
            i, f, g, o = product.added(outputs[t], gates[t]).sigmoid_().chunk(4, -1)
            g.mul_(2).sub_(1)
            torch.mul(f, cells[t], out=cells[t + 1]).addcmul_(i, g)
            tanh = torch.mul(cells[t + 1], 2, out=squashed[t]).sigmoid_().mul_(2).sub_(1)
            if w_hr is None and mask is None:
                torch.mul(o, tanh, out=outputs[t + 1])
                continue
            h = o * tanh if w_hr is None else (o * tanh) @ w_hr.t()
            outputs[t + 1] = h
            if mask is not None:
                cells[t + 1] = torch.where(mask[t], cells[t + 1], cells[t])
                outputs[t + 1] = torch.where(mask[t], h, outputs[t])
        ctx.save_for_backward(pre, w_hh, h0, c0, w_hr, mask, gates, cells, squashed, outputs)
        ctx.deltas = deltas
        deltas.gates, deltas.mask = gates, mask
        return outputs[1:], outputs[-1].clone(), cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """All steps back; with `create_graph` through a twin that can be derived again."""
        pre, w_hh, h0, c0, w_hr, mask, gates, cells, squashed, outputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*again(unrolled, (pre, w_hh, h0, c0, w_hr), mask, gradients), None, None)
        given, dh, dc = gradients
        dh, dc = dh.clone(), dc.clone()
        steps, rows, width = gates.shape
        hidden = width // 4
        dgates = torch.empty_like(gates)
        found_h = torch.empty_like(given, memory_format=torch.contiguous_format)
        found_c = torch.empty_like(cells[1:])
        made = None if w_hr is None else torch.empty_like(found_c)
        product = Product(w_hh.t(), rows)
        for end in range(steps, 0, -SPAN):
            begin = max(end - SPAN, 0)
            slopes, of_o, of_c = _slopes(
                gates[begin:end], cells[begin : end + 1], squashed[begin:end]
            )
            for t in range(end - 1, begin - 1, -1):
                k = t - begin
                here = torch.add(given[t], dh, out=found_h[t])
                inner = here if w_hr is None else here @ w_hr
                if made is not None:
                    made[t] = inner
                into = torch.addcmul(dc, inner, of_c[k], out=found_c[t])
                parts = dgates[t].view(rows, 4, hidden)
                torch.mul(into.unsqueeze(1), slopes[k], out=parts[:, :3])
                torch.mul(inner, of_o[k], out=parts[:, 3])
                if mask is None:
                    dh = product(dgates[t])
                    dc = into * gates[t, :, hidden : 2 * hidden]
                    continue
                dgates[t] = torch.where(mask[t], dgates[t], 0)
                dh = torch.where(mask[t], product(dgates[t]), here)
                found_c[t] = torch.where(mask[t], into, dc)
                dc = torch.where(mask[t], into * gates[t, :, hidden : 2 * hidden], dc)
        ctx.deltas.h, ctx.deltas.c = found_h, found_c
        flat = dgates.flatten(0, 1)
        d_hh = flat.t() @ outputs[:-1].flatten(0, 1) if ctx.needs_input_grad[1] else None
        d_hr = None
        if w_hr is not None and ctx.needs_input_grad[4]:
            o = gates[..., 3 * hidden :]
            errors = found_h if mask is None else torch.where(mask, found_h, 0)
            d_hr = errors.flatten(0, 1).t() @ (o * squashed).flatten(0, 1)
        return dgates, d_hh, dh, dc, d_hr, None, None


def _slopes(gates: Tensor, cells: Tensor, squashed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dc_t/dz of i, f and g, (steps, B, 3, H); dh_t/dz of o and dh_t/dc_t, (steps, B, H)."""
    i, f, g, o = gates.unflatten(-1, (4, -1)).unbind(-2)
    slopes = gates.new_empty(*gates.shape[:2], 3, i.shape[-1])
    torch.mul(i - i * i, g, out=slopes[:, :, 0])
    torch.mul(f - f * f, cells[:-1], out=slopes[:, :, 1])
    torch.mul(1 - g * g, i, out=slopes[:, :, 2])
    return slopes, (o - o * o) * squashed, o * (1 - squashed * squashed)


def unrolled(
    pre: Tensor, w_hh: Tensor, h: Tensor, c: Tensor, w_hr: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `LSTM`, step by step in torch's own operations."""
    outputs = []
    for t in range(len(pre)):
        i, f, g, o = (pre[t] + h @ w_hh.t()).chunk(4, -1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        new_h = new_h if w_hr is None else new_h @ w_hr.t()
        c = new_c if mask is None else torch.where(mask[t], new_c, c)
        h = new_h if mask is None else torch.where(mask[t], new_h, h)
        outputs.append(h)
    return torch.stack(outputs), h, c
