"""What is made for many steps at once: products of the input, and gradients of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

#: bytes of a span's error signals, which a cache holds; at least so many times the weight's, which
#: may be packed anew for every span
BYTES, TIMES = 8 << 20, 8


def spans(gates: Tensor, weight: Tensor) -> list[tuple[int, int]]:
    """Parts of a sequence whose error signals are held at a time.

    Args:
        gates: (T, B, F), of all steps.
        weight: the recurrent one.

    Returns:
        First step of each, and the one after its last, in order.
    """
    size, steps = gates.element_size(), len(gates)
    parts = -(-gates.numel() * size // max(BYTES, TIMES * weight.numel() * size))
    if gates.dtype not in (torch.float32, torch.float64):
        parts = 1  # a sum of sums would lose digits
    parts = min(max(parts, 1), steps)
    return [(steps * k // parts, steps * (k + 1) // parts) for k in range(parts)]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, into: Tensor) -> None:
    """Write W x + b into a dense tensor.

    Args:
        x: (T, B, I).
        weight: (F, I).
        bias: (F,), or None.
        into: (T, B, F).
    """
    rows, flat = x.reshape(-1, x.shape[-1]), into.view(-1, into.shape[-1])
    if bias is None:
        torch.mm(rows, weight.t(), out=flat)
    else:
        torch.addmm(bias, rows, weight.t(), out=flat)


class Sums:
    """Gradients of z = W x + b from dL/dz, summed over spans.

    Args:
        x: (T, B, I).
        weight: (F, I).
        wanted: whether the gradients of x, W and b are.

    Attributes:
        x: gradient of x, or None; the same for `weight` and `bias`.
    """

    def __init__(self, x: Tensor, weight: Tensor, wanted: Sequence[bool]) -> None:
        self._given, self._weight = x, weight
        dense = torch.contiguous_format
        self.x = torch.empty_like(x, memory_format=dense) if wanted[0] else None
        self.weight = torch.zeros_like(weight, memory_format=dense) if wanted[1] else None
        self.bias = weight.new_zeros(len(weight)) if wanted[2] else None

    def add(self, begin: int, end: int, error: Tensor, first: int = 0) -> None:
        """Add the steps of a span.

        Args:
            begin: first step.
            end: the step after the last.
            error: dL/dz of these steps, (end - begin, B, at most F).
            first: row of W that the first column of `error` belongs to.
        """
        flat = error.flatten(0, 1)
        rows = slice(first, first + flat.shape[1])
        if self.x is not None:
            torch.mm(flat, self._weight[rows], out=self.x[begin:end].flatten(0, 1))
        if self.weight is not None:
            x = self._given[begin:end].reshape(-1, self._given.shape[-1])
            self.weight[rows].addmm_(flat.t(), x)
        if self.bias is not None:
            self.bias[rows] += flat.sum(0)


def backwards(gates: Tensor, weight: Tensor) -> Iterator[tuple[int, int]]:
    """`spans`, the last one first."""
    return reversed(spans(gates, weight))
