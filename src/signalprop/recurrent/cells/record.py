"""What is written down of one layer in one direction."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Deltas:
    """Deltas and gates of one layer in one direction, step by step.

    Attributes:
        h: dL/dh_t, (T, B, P); None before the backward pass.
        c: dL/dc_t, (T, B, H); None of cells without one.
        gates: activations of the gates, (T, B, gates x H), in torch's order.
        mask: (T, B, 1), False where a sequence has ended; None where all are whole.
    """

    h: Tensor | None = None
    c: Tensor | None = None
    gates: Tensor | None = None
    mask: Tensor | None = field(default=None)
