"""GRU, one layer in one direction, with every dL/dh_t written down on the way back.

    r, z = sigmoid(pre + W_hh h + b_hh),  n = tanh(pre_n + r (W_hn h + b_hn))
    h_t = (1 - z) n + z h_(t-1)

(Cho et al. 2014, with torch's place for the reset gate.) `pre` = W_ih x + b_ih is made for all
steps at once by whoever calls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from signalprop.recurrent.cells.again import again
from signalprop.recurrent.cells.products import Product
from signalprop.recurrent.cells.record import Deltas


class GRU(torch.autograd.Function):
    """(pre, w_hh, b_hh, h0, mask, deltas) -> (h of every step, h_T).

    pre (T, B, 3 H) in torch's order r, z, n; w_hh (3 H, H); b_hh (3 H,) or None; h0 (B, H); mask
    (T, B, 1), False where a sequence has ended, or None.
    """

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any,
        pre: Tensor,
        w_hh: Tensor,
        b_hh: Tensor | None,
        h0: Tensor,
        mask: Tensor | None,
        deltas: Deltas,
    ) -> tuple[Tensor, Tensor]:
        """All steps; gates and states are kept."""
        steps, rows, width = pre.shape
        hidden = width // 3
        gates = torch.empty_like(pre, memory_format=torch.contiguous_format)
        inner = pre.new_empty(steps, rows, hidden)
        outputs = pre.new_empty(steps + 1, *h0.shape)
        outputs[0] = h0
        product = Product(w_hh, rows)
        for t in range(steps):
            h = outputs[t]
            own = product(h) if b_hh is None else product(h) + b_hh
            torch.add(pre[t, :, : 2 * hidden], own[:, : 2 * hidden], out=gates[t, :, : 2 * hidden])
            gates[t, :, : 2 * hidden].sigmoid_()
            r, z, n = gates[t].chunk(3, -1)
            inner[t] = own[:, 2 * hidden :]
            torch.addcmul(pre[t, :, 2 * hidden :], r, inner[t], out=n).tanh_()
            torch.lerp(n, h, z, out=outputs[t + 1])
            if mask is not None:
                outputs[t + 1] = torch.where(mask[t], outputs[t + 1], h)
        ctx.save_for_backward(pre, w_hh, b_hh, h0, mask, gates, inner, outputs)
        ctx.deltas = deltas
        deltas.gates, deltas.mask = gates, mask
        return outputs[1:], outputs[-1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """All steps back; with `create_graph` through a twin that can be derived again."""
        pre, w_hh, b_hh, h0, mask, gates, inner, outputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*again(unrolled, (pre, w_hh, b_hh, h0), mask, gradients), None, None)
        given, dh = gradients
        steps, rows, width = gates.shape
        hidden = width // 3
        found = torch.empty_like(given, memory_format=torch.contiguous_format)
        dpre = torch.empty_like(gates)
        down = torch.empty_like(gates)  # what reaches W_hh h + b_hh
        product = Product(w_hh.t(), rows)
        for t in range(steps - 1, -1, -1):
            r, z, n = gates[t].chunk(3, -1)
            here = torch.add(given[t], dh, out=found[t])
            dn = here * (1 - z) * (1 - n * n)
            dpre[t, :, 2 * hidden :] = dn
            dpre[t, :, hidden : 2 * hidden] = here * (outputs[t] - n) * z * (1 - z)
            dpre[t, :, :hidden] = dn * inner[t] * r * (1 - r)
            if mask is not None:
                dpre[t] = torch.where(mask[t], dpre[t], 0)
            down[t] = dpre[t]
            down[t, :, 2 * hidden :] *= r
            dh = torch.addcmul(product(down[t]), here, z)
            if mask is not None:
                dh = torch.where(mask[t], dh, here)
        ctx.deltas.h = found
        flat = down.flatten(0, 1)
        d_hh = flat.t() @ outputs[:-1].flatten(0, 1) if ctx.needs_input_grad[1] else None
        d_b = flat.sum(0) if b_hh is not None else None
        return dpre, d_hh, d_b, dh, None, None


def unrolled(
    pre: Tensor, w_hh: Tensor, b_hh: Tensor | None, h: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same as `GRU`, step by step in torch's own operations."""
    outputs = []
    for t in range(len(pre)):
        own = h @ w_hh.t() if b_hh is None else h @ w_hh.t() + b_hh
        _, z, n = _parts(pre[t], own)
        new = n + z * (h - n)
        h = new if mask is None else torch.where(mask[t], new, h)
        outputs.append(h)
    return torch.stack(outputs), h


def _parts(pre: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (a, b, c), (d, e, f) = pre.chunk(3, -1), own.chunk(3, -1)
    r, z = (a + d).sigmoid(), (b + e).sigmoid()
    return r, z, (c + r * f).tanh()
