"""The last steps at full resolution: what is kept of the way into a spike."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from signalprop.watching.sample import Floats

#: steps that are kept
LENGTH = 256


class Ring:
    """Step, loss and the gradient probes of the last `LENGTH` steps.

    Args:
        sites: how many there are by now.

    Attributes:
        width: how many sites there are by now.
    """

    def __init__(self, sites: int = 0) -> None:
        self.width = sites
        # put together only when it is looked at: something is put in at every step
        self._steps: deque[tuple[int, float, Floats | None]] = deque(maxlen=LENGTH)

    def put(self, step: int, loss: float, gradients: Floats | None) -> None:
        """Keep one step, in place of the oldest.

        Args:
            step: its number.
            loss: nan where it is not known.
            gradients: (sites,), of the sites known by then; kept as it is, not copied.
        """
        self._steps.append((step, loss, gradients))

    def window(self) -> tuple[NDArray[np.int64], Floats, Floats]:
        """The steps that are kept, oldest first.

        Returns:
            Steps (steps,), gradient probes (steps, sites), nan where they are not known, and loss
            (steps,).
        """
        known = [len(row) for _, _, row in self._steps if row is not None]
        gradients = np.full((len(self._steps), max([self.width, *known])), np.nan)
        for at, (_, _, row) in enumerate(self._steps):
            if row is not None:
                gradients[at, : len(row)] = row
        steps = np.array([step for step, _, _ in self._steps], np.int64)
        return steps, gradients, np.array([loss for _, loss, _ in self._steps], np.float64)
