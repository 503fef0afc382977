"""Linear recurrences h_t = a_t h_{t-1} + b_t without a loop over all steps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_scan(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t for all t at once, for b of any sign.

    The steps are cut into about sqrt(T) blocks as long: all blocks are run from 0 side by side,
    with the product of their a; then what each begins with is handed from block to block; so some
    2 sqrt(T) operations one after the other in place of T, each on many entries. Nothing is divided
    and no logarithm taken of b: with 0 <= a <= 1 rounding errors are not amplified, an a of 0 cuts
    exactly, and a product that underflows is a 0.

    Args:
        a: (T, ...), the decays.
        b: (T, ...), what comes in.
        h: (...), the state before the first step.

    Returns:
        (T, ...), the states.
    """
    steps = a.shape[0]
    size = math.isqrt(steps - 1) + 1
    blocks = -(-steps // size)
    behind = (0, 0) * h.dim() + (0, blocks * size - steps)
    # of padding: a = 1 and b = 0, the state stays
    factors = F.pad(a, behind, value=1.0).unflatten(0, (blocks, size)).unbind(1)
    drives = F.pad(b, behind).unflatten(0, (blocks, size)).unbind(1)
    products, parts = [factors[0]], [drives[0]]
    for factor, drive in zip(factors[1:], drives[1:], strict=True):
        products.append(products[-1] * factor)
        parts.append(torch.addcmul(drive, factor, parts[-1]))
    starts = [h]
    for product, part in zip(products[-1][:-1].unbind(0), parts[-1][:-1].unbind(0), strict=True):
        starts.append(torch.addcmul(part, product, starts[-1]))
    first = torch.stack(starts).unsqueeze(1)
    states = torch.addcmul(torch.stack(parts, 1), torch.stack(products, 1), first)
    return states.flatten(0, 1)[:steps]
