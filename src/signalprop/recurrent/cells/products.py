"""The recurrent matrix product, which is made once for every step."""

from __future__ import annotations

import torch
from torch import Tensor

#: rows from which on a packed weight pays
ROWS = 9


class Product:
    """x -> x W^T for a W that stays the same over many small products.

    On a CPU oneDNN's product is faster than the usual one where its weight has been packed, once.
    The operations are torch's own but not public, so where they are missing the usual one is taken.

    Args:
        weight: W, (out, in).
        rows: of x.
    """

    def __init__(self, weight: Tensor, rows: int) -> None:
        self.weight = weight.detach()
        self.packed = _packed(self.weight, rows)

    def __call__(self, x: Tensor) -> Tensor:
        """X W^T."""
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return x @ self.weight.t()

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + x W^T, in place."""
        if self.packed is not None:
            return y.add_(torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], ""))
        return y.addmm_(x, self.weight.t())


def _packed(weight: Tensor, rows: int) -> Tensor | None:
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and rows >= ROWS
    if not fits or not torch.backends.mkldnn.is_available():
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    except (AttributeError, RuntimeError):
        return None
