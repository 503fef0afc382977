"""One process that trains alone: what is asked of the ranks, and what one of them answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from signalprop.watching.passes.tally import Vector
from signalprop.watching.sample import Alarm
from signalprop.watching.transfer import Number


@dataclass(frozen=True)
class Layout:
    """What the ranks must agree on before their numbers can be added.

    Attributes:
        step: number of the step.
        sites: what tells the sites that were seen.
        parameters: what tells the parameters that were updated.
        vectors: sizes of what has one number per unit.
        copied: whether the updates could be measured.
    """

    step: int
    sites: str
    parameters: str
    vectors: tuple[int, ...]
    copied: bool


@dataclass(frozen=True)
class Joint:
    """What of a step is of all ranks; the rest is this rank's own.

    Attributes:
        sites: what the passes have shown.
        parameters: weights, gradients and updates.
        copied: whether the updates were measured on every rank.
    """

    sites: bool = True
    parameters: bool = True
    copied: bool = True


class Ranks:
    """One process that trains alone.

    Attributes:
        world: processes that train together.
        writes: whether this one records.
        copies: whether the memory of a gradient is used again for the next one.
        told: the alert for which all ranks end the training.
    """

    world = 1
    writes = True
    copies = False
    told: Alarm | None = None

    @property
    def together(self) -> int:
        """How many processes are recorded as one."""
        return 1

    @property
    def averaged(self) -> float:
        """By how much delta on a rank is larger than with the loss of the global batch."""
        return 1.0

    def first(self, step: int) -> int:
        """The step at which all begin."""
        return step

    def meet(self, layout: Layout) -> Joint:
        """All ranks come together at the end of a sampled step."""
        del layout
        return Joint()

    def share(self, parameter: Tensor, *, joint: bool) -> float:
        """The weight with which this rank's sums over its part of a parameter enter the whole.

        Args:
            parameter: of the model.
            joint: whether they are added over the ranks.

        Returns:
            The weight; 0 where the part is not the whole, and is not added to others.
        """
        del parameter, joint
        return 1.0

    def totals(self, vectors: Sequence[Vector]) -> list[Vector]:
        """Sums over the ranks that hold other samples of the same units."""
        return list(vectors)

    def join(
        self, numbers: Sequence[Number], largest: Sequence[Number]
    ) -> tuple[list[Number], NDArray[np.int64] | None]:
        """Sums over the ranks of some numbers, and maxima of others.

        Args:
            numbers: to be added.
            largest: whose maximum is wanted.

        Returns:
            All of them; where each of them lies in the row that they make, None for in order.
        """
        return [*numbers, *largest], None

    def whole(self, parameters: Iterable[Tensor]) -> Mapping[int, Tensor]:
        """Gradients that are yet to be added over the ranks, added; by parameter id."""
        del parameters
        return {}

    def stops(self, alarm: Alarm) -> bool:
        """Whether an alert ends the training now; otherwise all ranks are told first."""
        del alarm
        return True

    def closer(self) -> bool:
        """Whether the steps to come may be sampled now; otherwise all ranks are told first."""
        return True

    def told_closer(self) -> bool:
        """Whether the steps to come are to be sampled, as all ranks were told; said once."""
        return False

    def leave(self, why: str) -> None:
        """This rank takes part no longer."""
