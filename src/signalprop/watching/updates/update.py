"""One update of one optimizer, measured: what it got, and what it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from signalprop.watching.updates.each import Each
from signalprop.watching.updates.parameter import Gradient, Held, Sums, local
from signalprop.watching.updates.together import Together

#: a copy of the weights may take this share of an accelerator's free memory
SHARE = 0.5


class Update:
    """An optimizer's update: measured when it is about to be made, and `after` it.

    Args:
        held: the parameters that it holds.
        earlier: gradients of the step before, by parameter id.
        rooms: memory for copies of the weights, by parameter id; what is missing is added.
        late: whether the optimizer evaluates the loss itself, so that there are gradients only
            afterwards.
        whole: gradients that were yet to be added over the ranks, added, by parameter id.

    Attributes:
        copied: whether there was memory for a copy of the weights, so that the change can be seen.
    """

    def __init__(
        self,
        held: Sequence[Held],
        earlier: Mapping[int, Gradient],
        rooms: dict[int, Tensor],
        *,
        late: bool = False,
        whole: Mapping[int, Tensor] | None = None,
    ) -> None:
        self._whole = whole or {}
        self._held = [one for one in held if late or one.parameter.grad is not None]
        self.copied = _fits([o.parameter for o in self._held if id(o.parameter) not in rooms])
        self._together, self._each = Together(), Each()
        with torch.no_grad():
            for one in self._held:
                p = one.parameter
                weights, before = local(p), earlier.get(id(p))
                made = None if late else self._whole.get(id(p), p.grad)
                gradient = None if made is None else local(made)
                room = _room(id(p), weights, rooms) if self.copied else None
                if (
                    gradient is None
                    or room is None
                    or not self._together.add(one, weights, gradient, before, room)
                ):
                    self._each.begin(one, gradient, before, room)
            self._together.begin()

    def after(self) -> list[Sums]:
        """The optimizer has changed the weights.

        Returns:
            Of every parameter that has a gradient.
        """
        gradients = {
            id(one.parameter): self._whole.get(id(one.parameter), one.parameter.grad)
            for one in self._held
            if one.parameter.grad is not None
        }
        with torch.no_grad():
            found = self._together.end(gradients) + self._each.end(gradients)
        by_parameter = {id(sums.parameter): sums for sums in found}
        held, self._held = self._held, list[Held]()
        return [s for one in held if (s := by_parameter.get(id(one.parameter))) is not None]


def _room(key: int, weights: Tensor, rooms: dict[int, Tensor]) -> Tensor:
    """Memory like some weights'."""
    kept = rooms.get(key)
    if (
        kept is None
        or (kept.shape, kept.dtype, kept.device) != (weights.shape, weights.dtype, weights.device)
    ):  # fmt: skip
        kept = rooms[key] = torch.empty_like(weights, requires_grad=False)
    return kept


def _fits(parameters: list[Tensor]) -> bool:
    """Whether copies fit well into what an accelerator has left."""
    need: dict[torch.device, int] = {}
    for parameter in parameters:
        if parameter.is_cuda:
            weight = local(parameter)
            size = weight.numel() * weight.element_size()
            need[weight.device] = need.get(weight.device, 0) + size
    for device, size in need.items():
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if size > SHARE * free:
            return False
    return True
