"""What is written down of one layer in one direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Deltas:
    """Deltas and gates of one layer in one direction, step by step.

    Attributes:
        steps: those whose deltas are kept, counted from 0; None keeps all T.
        gated: whether gates are kept.
        h: dL/dh_t, (T, B, P); None before the backward pass.
        c: dL/dc_t, (T, B, H); None of cells without one.
        gates: activations of the gates, (T, B, gates x H), in torch's order.
        mask: (T, B, 1), False where a sequence has ended; None where all are whole.
    """

    steps: Sequence[int] | None = None
    gated: bool = True
    h: Tensor | None = None
    c: Tensor | None = None
    gates: Tensor | None = None
    mask: Tensor | None = None

    def forward(self, gates: Tensor | None, mask: Tensor | None) -> None:
        """What the way forward has shown."""
        self.gates, self.mask = gates if self.gated else None, mask

    def backward(self, h: Tensor, c: Tensor | None = None) -> None:
        """What the way back has shown, of all steps."""
        self.h, self.c = self._kept(h), None if c is None else self._kept(c)

    def _kept(self, x: Tensor) -> Tensor:
        return x if self.steps is None else x[list(self.steps)]
