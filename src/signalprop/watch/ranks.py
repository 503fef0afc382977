"""Several processes that train together: their sums are one, and one of them writes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from signalprop.watch.passes.tally import Vector
from signalprop.watch.transfer import Number


class Ranks:
    """One process that trains alone."""

    world = 1
    writes = True

    def share(self, parameter: Tensor) -> float:
        """The weight with which this rank's sums over its part of a parameter enter the whole."""
        del parameter
        return 1.0

    def total(self, numbers: Sequence[Number]) -> list[Number]:
        """Sums over the ranks."""
        return list(numbers)

    def largest(self, numbers: Sequence[Number]) -> list[Number]:
        """Maxima over the ranks."""
        return list(numbers)

    def totals(self, vectors: Sequence[Vector]) -> list[Vector]:
        """Sums over the ranks that hold other samples of the same units."""
        return list(vectors)


def ranks_of(models: Sequence[torch.nn.Module]) -> Ranks:
    """The processes that train these models together."""
    del models
    return Ranks()
