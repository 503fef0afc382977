"""Numbers that a training loop logs, by the step that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Arrived = Callable[[NDArray[np.float64]], None]


class Logged:
    """What was logged and is not handed on yet.

    Args:
        first: number of the first step.
        later: has a tensor of a step brought over from its device, and then told.
        warn: says a sentence once.

    Attributes:
        of: by step, numbers by name.
    """

    def __init__(
        self,
        first: int,
        later: Callable[[int, Tensor, Arrived], None],
        warn: Callable[[str], None],
    ) -> None:
        self.of: dict[int, dict[str, float]] = {}
        self._first, self._later, self._warn = first, later, warn
        self._before_update: bool | None = None

    def add(self, now: int, values: Mapping[str, Any]) -> None:
        """Take numbers; nothing is raised.

        Args:
            now: the step that is under way. Numbers belong to it in a loop that has logged before
                its first update, else to the one before.
            values: numbers, or tensors of one element.
        """
        if self._before_update is None:
            self._before_update = now == self._first
        step = now if self._before_update else max(self._first, now - 1)
        numbers: dict[str, float] = {}
        for name, value in values.items():
            try:
                if not isinstance(value, Tensor):
                    numbers[name] = float(value)
                elif value.is_cpu:
                    numbers[name] = float(value.item())
                else:
                    self._bring(step, name, value.detach())
            except Exception:
                self._warn(
                    f"{name}={type(value).__name__} is no number and is not recorded; give a float "
                    "or a tensor of one element"
                )
        self.of.setdefault(step, {}).update(numbers)

    def _bring(self, step: int, name: str, value: Tensor) -> None:
        def arrived(row: NDArray[np.float64]) -> None:
            self.of.setdefault(step, {})[name] = float(row[0])

        if value.numel() != 1:
            raise ValueError
        self._later(step, value.clone(), arrived)
