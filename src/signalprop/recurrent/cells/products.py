"""The recurrent matrix product, which is made once for every step."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

#: rows from which on a packed weight pays
ROWS = 9


class Product:
    """x -> x W^T for a W that stays the same over many small products.

    On a CPU that is not Intel's, oneDNN's product is faster than MKL's where its weight has been
    packed, once; on Intel's own MKL's is, by far for small ones. The packing operations are torch's
    but not public, so where they are missing the usual product is taken.

    Args:
        weight: W, (out, in).
        rows: of x.
    """

    def __init__(self, weight: Tensor, rows: int) -> None:
        weight = weight.detach()
        self.packed = _packed(weight, rows)
        # what is read along its rows is read fastest
        self.turned = weight.t() if self.packed is not None else weight.t().contiguous()

    def __call__(self, x: Tensor, into: Tensor | None = None) -> Tensor:
        """X W^T, written into a tensor where one is given."""
        if self.packed is None:
            return torch.mm(x, self.turned, out=into) if into is not None else x @ self.turned
        made = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return made if into is None else into.copy_(made)

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + x W^T, in place."""
        if self.packed is not None:
            return y.add_(torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], ""))
        return y.addmm_(x, self.turned)


def _packed(weight: Tensor, rows: int) -> Tensor | None:
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and rows >= ROWS
    if not fits or intel() or not torch.backends.mkldnn.is_available():
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    except (AttributeError, RuntimeError):
        return None


def tanh(x: Tensor, into: Tensor) -> Tensor:
    """Tanh; where MKL is slow at it, as 2 sigmoid(2 x) - 1 at a third of the cost."""
    if x.device.type != "cpu" or intel():
        return torch.tanh(x, out=into)
    return torch.mul(x, 2, out=into).sigmoid_().mul_(2).sub_(1)


@cache
def intel() -> bool:
    """Whether the processor is Intel's."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return "Intel" in platform.processor()
