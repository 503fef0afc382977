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

    def added(self, x: Tensor, y: Tensor, into: Tensor | None = None) -> Tensor:
        """Y + x W^T, written into a tensor; None: into y."""
        into = y if into is None else into
        if self.packed is None:
            return torch.addmm(y, x, self.turned, out=into)
        made = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return torch.add(y, made, out=into)


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


def sigmoids(x: Tensor, part: Tensor, minus: Tensor) -> None:
    """Sigmoid in place, tanh of a part.

    The rows of a part lie apart: MKL's tanh is called for each, on all threads, whose start takes
    longer than a row. As 2 sigmoid(2 x) - 1 the part goes along with the rest, unless its digits
    are too few for that.

    Args:
        x: dense.
        part: some columns of it.
        minus: -1, of no dimension.
    """
    if x.dtype in (torch.float32, torch.float64):
        part.mul_(2)
        x.sigmoid_()
        torch.add(minus, part, alpha=2, out=part)
    else:
        made = part.tanh()
        x.sigmoid_()
        part.copy_(made)


@cache
def intel() -> bool:
    """Whether the processor is Intel's."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return "Intel" in platform.processor()
