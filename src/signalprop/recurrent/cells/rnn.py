"""Plain recurrent net, one layer in one direction, with every dL/dh_t written down.

    h_t = phi(pre + W_hh h_(t-1)), phi tanh or ReLU

(Elman 1990.) `pre` = W_ih x + b is made for all steps at once by whoever calls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from signalprop.recurrent.cells.again import again
from signalprop.recurrent.cells.products import Product
from signalprop.recurrent.cells.record import Deltas


class RNN(torch.autograd.Function):
    """(pre, w_hh, h0, mask, relu, deltas) -> (h of every step, h_T).

    pre (T, B, H); w_hh (H, H); h0 (B, H); mask (T, B, 1), False where a sequence has ended, or
    None; relu instead of tanh.
    """

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any,
        pre: Tensor,
        w_hh: Tensor,
        h0: Tensor,
        mask: Tensor | None,
        relu: bool,
        deltas: Deltas,
    ) -> tuple[Tensor, Tensor]:
        """All steps; states are kept."""
        outputs = pre.new_empty(len(pre) + 1, *h0.shape)
        outputs[0] = h0
        outputs[1:] = pre
        product = Product(w_hh, pre.shape[1])
        for t in range(len(pre)):
            here = product.added(outputs[t], outputs[t + 1])
            if relu:
                here.relu_()
            else:
                here.tanh_()
            if mask is not None:
                outputs[t + 1] = torch.where(mask[t], here, outputs[t])
        ctx.save_for_backward(pre, w_hh, h0, mask, outputs)
        ctx.deltas, ctx.relu = deltas, relu
        deltas.mask = mask
        return outputs[1:], outputs[-1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """All steps back; with `create_graph` through a twin that can be derived again."""
        pre, w_hh, h0, mask, outputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            twin = unrolled_relu if ctx.relu else unrolled_tanh
            return (*again(twin, (pre, w_hh, h0), mask, gradients), None, None, None)
        given, dh = gradients
        found = torch.empty_like(given, memory_format=torch.contiguous_format)
        after = outputs[1:]
        slopes = (after > 0).to(after.dtype) if ctx.relu else 1 - after * after
        if mask is not None:
            slopes = torch.where(mask, slopes, 0)
        dpre = torch.empty_like(slopes)
        product = Product(w_hh.t(), pre.shape[1])
        for t in range(len(pre) - 1, -1, -1):
            here = torch.add(given[t], dh, out=found[t])
            dh = product(torch.mul(here, slopes[t], out=dpre[t]))
            if mask is not None:
                dh = torch.where(mask[t], dh, here)
        ctx.deltas.h = found
        d_hh = None
        if ctx.needs_input_grad[1]:
            d_hh = dpre.flatten(0, 1).t() @ outputs[:-1].flatten(0, 1)
        return dpre, d_hh, dh, None, None, None


def unrolled_tanh(
    pre: Tensor, w_hh: Tensor, h: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same as `RNN` with tanh, step by step in torch's own operations."""
    return _unrolled(torch.tanh, pre, w_hh, h, mask)


def unrolled_relu(
    pre: Tensor, w_hh: Tensor, h: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same as `RNN` with ReLU, step by step in torch's own operations."""
    return _unrolled(torch.relu, pre, w_hh, h, mask)


def _unrolled(
    phi: Any, pre: Tensor, w_hh: Tensor, h: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(len(pre)):
        new = phi(pre[t] + h @ w_hh.t())
        h = new if mask is None else torch.where(mask[t], new, h)
        outputs.append(h)
    return torch.stack(outputs), h
