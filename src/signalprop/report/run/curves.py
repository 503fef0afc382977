"""Numbers of a run over its steps, one each: the loss, the learning rate, a user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from signalprop.watching.file.reader import Run
from signalprop.watching.file.scalars import Curve

#: shown first, where they are recorded, in this order
FIRST = ("loss", "learning_rate", "gradient_norm")
#: what only says something when it changes
QUIET = ("clipped", "loss_scale", "skipped")
#: points of a curve
POINTS = 2000


@dataclass(frozen=True, eq=False)
class Curves:
    """The scalars of a run.

    Attributes:
        name: of the run.
        scalars: by name, steps and values.
    """

    name: str
    scalars: Mapping[str, Curve]

    @property
    def loss(self) -> str | None:
        """The curve that is shown above the heat map: the loss, or the first whose name says so."""
        if "loss" in self.scalars:
            return "loss"
        return next((name for name in self.scalars if "loss" in name.lower()
                     and name != "loss_scale"), None)  # fmt: skip


def curves(
    run: Run,
    *,
    start: int | None = None,
    stop: int | None = None,
    columns: int = POINTS,
) -> Curves:
    """Read the scalars of a stretch.

    Args:
        run: open.
        start: the first step; None for the beginning.
        stop: the step to end before; None for the end.
        columns: at most so many points of each.

    Returns:
        They, thinned where they are many: of every few neighbours the lowest and the highest.
    """
    known = run.scalars(start, stop, 2 * columns)
    made = {name: thinned(*known[name], columns) for name in ordered(known)}
    return Curves(run.path.name, made)


def ordered(names: Mapping[str, object] | Sequence[str]) -> list[str]:
    """The loss first, what is the trainer's own affair last."""
    front = [name for name in FIRST if name in names]
    back = [name for name in QUIET if name in names]
    return front + [name for name in names if name not in front and name not in back] + back


def thinned(steps: NDArray[np.int64], values: NDArray[np.float64], most: int) -> Curve:
    """Of every few neighbours the lowest and the highest, so that no spike is lost.

    Args:
        steps: (points,).
        values: (points,); nan and infinity count as the highest.
        most: points that are kept, at most.

    Returns:
        Steps and values.
    """
    if len(steps) <= most:
        return steps, values
    width = -(-len(steps) // max(1, most // 2))
    whole = len(steps) // width * width
    heights = np.where(np.isnan(values), math.inf, values)
    blocks = heights[:whole].reshape(-1, width)
    begin = np.arange(0, whole, width)
    ends = np.array([0, len(steps) - 1])
    at = np.concatenate([begin + blocks.argmin(axis=1), begin + blocks.argmax(axis=1), ends])
    at = np.unique(at)
    return steps[at], values[at]
