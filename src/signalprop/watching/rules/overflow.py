"""What is remembered of numbers that overflow: skipped updates, the first that is not finite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from signalprop.watching.sample import Floats


class Skips:
    """The last updates that GradScaler skipped, and the course of its scale."""

    def __init__(self) -> None:
        self.recent: deque[tuple[int, float]] = deque(maxlen=64)  # step, skipped so far
        self.scale = math.nan
        self.usual = math.nan  # largest scale since the start was over

    def see(self, step: int, first: int, scalars: Mapping[str, float], start: int) -> None:
        """Take the scalars of one step in 32 or so."""
        skipped, scale = scalars.get("skipped"), scalars.get("loss_scale")
        if skipped is not None:
            self.recent.append((step, float(skipped)))
        if scale is not None:
            self.scale = float(scale)
            if step - first >= start and not self.scale <= self.usual:
                self.usual = self.scale


class Finite:
    """Where the first value that is not finite was seen.

    Attributes:
        where: index of the site; None where it is not known.
        what: `activation`, `delta`, `gradient`, `weights` or `loss`; empty while all is finite.
        count: sites where that is not finite; 1 for the loss.
        exact: whether the site is where it began, rather than the one nearest to it.
    """

    def __init__(self) -> None:
        self.where: int | None = None
        self.what = ""
        self.exact = False
        self.count = 1
        self._by_design = np.zeros(0, dtype=bool)

    def see(self, values: Mapping[str, Floats], loss: float, *, scaled: bool) -> bool:
        """Look at a sampled step.

        Activations that are infinite while all else is well are meant (attention scores with -inf
        where they are masked), now and later; gradients that overflow under a loss scale are no
        harm, its scaler skips that update.

        Args:
            values: per statistic, (sites,).
            loss: of the step; 0 where it is not known.
            scaled: whether there is a loss scale.

        Returns:
            Whether something is not finite.
        """
        size = max(map(len, values.values()))
        forward = _infinite(values, "activation_rms", size)
        delta = _infinite(values, "delta_rms", size)
        gradient = _infinite(values, "gradient_norm", size)
        weights = _infinite(values, "weight_norm", size)
        backward = (delta.any() or gradient.any()) and not scaled
        if not (backward or weights.any() or not math.isfinite(loss)):
            if forward.any():
                self._by_design = forward | self._designed(size)
            return False
        for what, found, last in (
            ("weights", weights & ~gradient & ~delta, False),
            ("activation", forward & ~self._designed(size), False),
            ("delta", delta, True),
            ("gradient", gradient, True),
            ("weights", weights, False),
        ):
            if found.any():
                self.what, self.where = what, int(np.flatnonzero(found)[-1 if last else 0])
                self.exact, self.count = True, int(found.sum())
                return True
        self.count = 1
        self.what, self.where, self.exact = "loss", None, True
        return True

    def _designed(self, size: int) -> NDArray[np.bool_]:
        made = np.zeros(size, dtype=bool)
        made[: len(self._by_design)] = self._by_design
        return made

    def probe(self, gradients: Floats | None, loss: float, *, scaled: bool) -> bool:
        """Look at a step of which only gradients and loss are known."""
        lost = loss != loss or loss in (math.inf, -math.inf)
        if gradients is None:
            if lost:
                self.what, self.where, self.exact = "loss", None, False
            return lost
        # at every step: looked for in a list, with none of numpy's calls
        if (lost or not scaled) and math.inf in gradients.tolist():
            infinite = np.isinf(gradients)
            self.what, self.where = "gradient", int(np.flatnonzero(infinite)[-1])
            self.count = int(infinite.sum())
            self.exact = not lost
            return True
        if lost:
            self.what, self.where, self.exact = "loss", None, True
        return lost


def _infinite(values: Mapping[str, Floats], name: str, size: int) -> NDArray[np.bool_]:
    made = np.zeros(size, dtype=bool)
    if name in values:
        made[: len(values[name])] = np.isinf(values[name])
    return made
