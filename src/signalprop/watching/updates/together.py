"""Updates of all plain parameters on a CPU in two passes through memory, one before, one after."""

from __future__ import annotations

from torch import Tensor

from signalprop.compiled.sums import Table, functions, is_flat
from signalprop.watching.updates.each import changed
from signalprop.watching.updates.parameter import Gradient, Held, Sums, local


class Together:
    """Parameters whose update is awaited, and what is known of them before."""

    def __init__(self) -> None:
        self._held: list[Held] = []
        self._addresses: list[int] = []
        self._copies: list[Tensor] = []
        self._compared: list[bool] = []
        self._sums: list[Sums] = []
        self._alive: list[Tensor] = []  # as long as their addresses are in use

    def add(
        self, one: Held, weights: Tensor, gradient: Tensor, earlier: Gradient | None, room: Tensor
    ) -> bool:
        """Take a parameter.

        Args:
            one: the parameter.
            weights: the part of it on this rank.
            gradient: of it.
            earlier: gradient of the step before, if it is known.
            room: memory for a copy of the weights.

        Returns:
            Whether it is of the kind that the compiled functions know, and they are there.
        """
        if (
            functions() is None
            or gradient.shape != weights.shape
            or not (is_flat(weights) and is_flat(gradient))
        ):
            return False
        before, compared = 0, False
        if earlier is not None and earlier.intact and earlier.value.shape == gradient.shape:
            value = earlier.value if is_flat(earlier.value) else earlier.value.contiguous()
            if is_flat(value):  # of a rank's empty part the address is 0
                before, compared = value.data_ptr(), True
                self._alive.append(value)
        self._held.append(one)
        self._copies.append(room)
        self._compared.append(compared)
        self._alive += weights, gradient
        self._addresses += weights.data_ptr(), gradient.data_ptr(), before, room.data_ptr()
        return True

    def begin(self) -> None:
        """The updates are about to be made."""
        if not self._held:
            return
        table = Table([room.numel() for room in self._copies], 4, 4)
        table.addresses[:] = self._addresses
        rows = table.before_update().tolist()
        for one, compared, (weight, gradient, before, product) in zip(
            self._held, self._compared, rows, strict=True
        ):
            sums = Sums(one.site, one.parameter, weight, gradient)
            if compared:
                sums.before, sums.product = before, product
            self._sums.append(sums)
        self._addresses.clear()
        self._alive.clear()

    def end(self, gradients: dict[int, Tensor]) -> list[Sums]:
        """The updates have been made.

        Args:
            gradients: those that they were made from, by parameter id.

        Returns:
            Of every parameter.
        """
        seen: list[Sums] = []
        sizes: list[int] = []
        addresses: list[int] = []
        alive: list[Tensor] = []
        for sums, room in zip(self._sums, self._copies, strict=True):
            made = gradients.get(id(sums.parameter))
            if made is None:
                continue
            weights, gradient = local(sums.parameter), local(made)
            if is_flat(weights) and is_flat(gradient) and weights.shape == gradient.shape:
                seen.append(sums)
                sizes.append(room.numel())
                addresses += room.data_ptr(), weights.data_ptr(), gradient.data_ptr()
                alive += weights, gradient
            else:  # the optimizer has put others in their places
                changed(sums, room, weights, gradient)
        if seen:
            table = Table(sizes, 3, 2)
            table.addresses[:] = addresses
            for sums, (change, decrease) in zip(seen, table.after_update().tolist(), strict=True):
                sums.change, sums.decrease = change, decrease
        return self._sums
