"""The last steps at full resolution: what is kept of the way into a spike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from signalprop.watching.rules.arrays import grown
from signalprop.watching.sample import Floats

#: steps that are kept
LENGTH = 256


class Ring:
    """Step, loss and the gradient probes of the last `LENGTH` steps.

    Args:
        sites: how many there are by now.
    """

    def __init__(self, sites: int = 0) -> None:
        self.steps = np.zeros(LENGTH, dtype=np.int64)
        self.loss = np.full(LENGTH, np.nan)
        self.gradients = np.full((LENGTH, max(sites, 1)), np.nan)
        self.taken = 0
        self.width = sites

    def grow(self, sites: int) -> None:
        """Make room for more sites; their gradients so far are nan."""
        self.gradients = grown(self.gradients, sites, np.nan)
        self.width = max(self.width, sites)

    def put(self, step: int, loss: float, gradients: Floats | None) -> None:
        """Keep one step, in place of the oldest."""
        row = self.taken % LENGTH
        self.steps[row] = step
        self.loss[row] = loss
        if gradients is None:
            self.gradients[row] = np.nan
        elif len(gradients) == self.gradients.shape[1]:
            self.gradients[row] = gradients
        else:
            if len(gradients) > self.width:
                self.grow(len(gradients))
            self.gradients[row, : len(gradients)] = gradients
            self.gradients[row, len(gradients) :] = np.nan
        self.taken += 1

    def window(self) -> tuple[NDArray[np.int64], Floats, Floats]:
        """The steps that are kept, oldest first.

        Returns:
            Steps (steps,), gradient probes (steps, sites) and loss (steps,), copied.
        """
        if self.taken <= LENGTH:
            order = np.arange(self.taken)
        else:
            order = (np.arange(LENGTH) + self.taken) % LENGTH
        return self.steps[order], self.gradients[order, : self.width], self.loss[order]
