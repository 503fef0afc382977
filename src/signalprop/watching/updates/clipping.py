"""What clipping multiplied the gradient by, told from one parameter: all get the same factor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from signalprop.capture.statistics import Scalar
from signalprop.compiled.sums import PLAIN
from signalprop.watching.ranks.alone import Ranks
from signalprop.watching.sums import square_sum
from signalprop.watching.transfer import Number


class Clipping:
    """Sees one parameter's gradient when the backward pass has made it, and at the update.

    Args:
        parameters: those that the optimizers hold.
        ranks: with several of them the gradient is not yet whole when it is made, so nothing is
            told.
        failed: called with an exception of ours, which must not reach the training.
    """

    def __init__(
        self, parameters: Sequence[Tensor], ranks: Ranks, failed: Callable[[Exception], None]
    ) -> None:
        self._failed = failed
        self._made: Scalar | None = None
        self._version = -1
        self._factor: Number | None = None
        matrices = [p for p in parameters if p.requires_grad and p.is_leaf and p.ndim > 1]
        self._chosen = matrices[-1] if matrices else None
        self._handle: Any = None
        if self._chosen is not None and ranks.world == 1:
            self._handle = self._chosen.register_post_accumulate_grad_hook(self._see)

    def _see(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        try:
            if gradient is not None and _is_plain(gradient):
                self._made, self._version = square_sum(gradient), gradient._version
        except Exception as error:
            self._failed(error)

    def at_update(self, scale: Number) -> None:
        """The optimizer is about to step.

        Args:
            scale: what the loss was multiplied by, and the gradient has been divided by.
        """
        p = self._chosen
        if self._made is None or p is None or p.grad is None or not _is_plain(p.grad):
            return
        if p.grad._version == self._version:
            self._factor = 1.0
            return
        now, made = square_sum(p.grad), self._made
        if isinstance(now, Tensor) or isinstance(made, Tensor):
            self._factor = (now / made) ** 0.5 * scale
        elif made > 0 and math.isfinite(made):
            self._factor = math.sqrt(now / made) * scale

    def close(self) -> Number | None:
        """Take the hook off.

        Returns:
            The factor; None where it is not known.
        """
        if self._handle is not None:
            self._handle.remove()
        return self._factor


def _is_plain(gradient: Tensor) -> bool:
    return type(gradient) in PLAIN and gradient.layout is torch.strided
