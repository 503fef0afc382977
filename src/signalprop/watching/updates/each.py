"""Updates of parameters of any kind, one after the other.

What is asked of a parameter finds it in the processor's cache, and nothing waits for a device.
"""

from __future__ import annotations

from torch import Tensor

from signalprop.watching.sums import dot, operand, square_sum
from signalprop.watching.updates.parameter import Gradient, Held, Sums, dense, local


class Each:
    """Parameters whose update is awaited, and what is known of them before."""

    def __init__(self) -> None:
        self._begun: list[tuple[Held, Tensor | None, Sums | None]] = []

    def begin(
        self,
        one: Held,
        gradient: Tensor | None,
        earlier: Gradient | None,
        room: Tensor | None,
    ) -> None:
        """Its update is about to be made.

        Args:
            one: the parameter.
            gradient: that it is made from; None where it is made inside the update.
            earlier: gradient of the step before, if it is known.
            room: memory for a copy of the weights, if there is any.
        """
        weights = local(one.parameter).detach()
        copy = None if room is None else room.copy_(weights)
        sums = None if gradient is None else _sums(one, weights, gradient, earlier)
        self._begun.append((one, copy, sums))

    def end(self, gradients: dict[int, Tensor]) -> list[Sums]:
        """The updates have been made.

        Args:
            gradients: those that they were made from, by parameter id.

        Returns:
            Of every parameter that has, or had, a gradient.
        """
        begun, self._begun = self._begun, list[tuple[Held, Tensor | None, Sums | None]]()
        found = []
        for one, copy, sums in begun:
            gradient = gradients.get(id(one.parameter))
            weights = local(one.parameter).detach()
            if gradient is not None:
                if sums is None:
                    sums = _sums(one, weights, gradient, None)
                if copy is not None:
                    changed(sums, copy, weights, gradient)
            if sums is not None:
                found.append(sums)
        return found


def changed(sums: Sums, copy: Tensor, weights: Tensor, gradient: Tensor) -> None:
    """Note what an update has changed.

    Args:
        sums: to be completed.
        copy: the weights before; its memory is used.
        weights: as they are now.
        gradient: that the update was made from.
    """
    # w_old - w in the copy's place: its product with g is the loss's decrease
    change = operand(copy.sub_(weights))
    sums.change, sums.decrease = square_sum(change), dot(operand(dense(gradient)), change)


def _sums(one: Held, weights: Tensor, gradient: Tensor, earlier: Gradient | None) -> Sums:
    made = operand(dense(gradient))
    sums = Sums(one.site, one.parameter, square_sum(operand(weights)), square_sum(made))
    if earlier is not None and earlier.intact:
        before = operand(earlier.value)
        if before.shape == made.shape:
            sums.before = square_sum(before) if earlier.square is None else earlier.square
            sums.product = dot(made, before)
    return sums
