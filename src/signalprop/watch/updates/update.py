"""One update of one optimizer, measured: what it got, and what it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from signalprop.capture.statistics import Scalar
from signalprop.watch.sums import dot, square_sum

#: a copy of the weights may take this share of an accelerator's free memory
SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Held:
    """A parameter that an optimizer is about to change.

    Attributes:
        site: index of its site.
        parameter: the parameter.
    """

    site: int
    parameter: Tensor


@dataclass(eq=False)
class Gradient:
    """A gradient of an earlier step, and what tells whether its memory still holds it.

    Attributes:
        value: the gradient.
        version: of its memory, when it was kept.
    """

    value: Tensor
    version: int
    _square: Scalar | None = None

    @staticmethod
    def keep(gradient: Tensor, *, copy: bool, square: Scalar | None = None) -> Gradient:
        """Keep a gradient.

        Args:
            gradient: of a parameter.
            copy: whether its memory will be used again.
            square: sum of its squares, if that is known.

        Returns:
            What is kept.
        """
        kept = local(gradient.detach())
        if kept.is_sparse:
            kept = kept.to_dense()
        elif copy:
            kept = kept.clone()
        return Gradient(kept, kept._version, square)

    @property
    def square(self) -> Scalar:
        """Sum of its squares."""
        return square_sum(self.value) if self._square is None else self._square

    @property
    def intact(self) -> bool:
        """Whether it has not been written to since."""
        return self.value._version == self.version


@dataclass(eq=False)
class Sums:
    """Sums over one parameter's own elements, those on this rank.

    Attributes:
        site: index of its site.
        parameter: the parameter.
        weight: sum of w^2.
        gradient: sum of g^2.
        change: sum of dw^2; None where no copy could be made.
        decrease: sum of -g dw; None likewise.
        before: sum of g'^2, of the step before; None where it is not known.
        product: sum of g g'; None likewise.
    """

    site: int
    parameter: Tensor
    weight: Scalar
    gradient: Scalar
    change: Scalar | None = None
    decrease: Scalar | None = None
    before: Scalar | None = None
    product: Scalar | None = None


class Update:
    """An optimizer's update: measured when it is about to be made, and `after` it.

    One parameter after the other, so that what is asked of it finds it in the processor's cache.

    Args:
        held: the parameters that it holds.
        earlier: gradients of the step before, by parameter id.
        late: whether the optimizer evaluates the loss itself, so that there are gradients only
            afterwards.
        buffers: memory for copies of the weights, by parameter id; what is missing is added.

    Attributes:
        copied: whether there was memory for a copy of the weights, so that the change can be seen.
    """

    def __init__(
        self,
        held: Sequence[Held],
        earlier: Mapping[int, Gradient],
        buffers: dict[int, Tensor],
        *,
        late: bool = False,
    ) -> None:
        held = [one for one in held if late or one.parameter.grad is not None]
        new = [local(one.parameter) for one in held if id(one.parameter) not in buffers]
        self.copied = _fits(new)
        self._begun: list[tuple[Held, Tensor | None, Sums | None]] = []
        with torch.no_grad():
            for one in held:
                sums = None if late else _measured(one, earlier.get(id(one.parameter)))
                copy = _copy(one.parameter, buffers) if self.copied else None
                self._begun.append((one, copy, sums))

    def after(self) -> list[Sums]:
        """The optimizer has changed the weights.

        Returns:
            Of every parameter that has a gradient.
        """
        begun, self._begun = self._begun, []
        found = []
        with torch.no_grad():
            for one, copy, sums in begun:
                p = one.parameter
                if p.grad is None:
                    if sums is not None:
                        found.append(sums)
                    continue
                sums = sums or _measured(one, None)
                found.append(sums)
                if copy is not None:
                    # w_old - w in the copy's place: its product with g is the loss's decrease
                    copy.sub_(local(p.detach()))
                    sums.change = square_sum(copy)
                    sums.decrease = dot(_gradient(p), copy)
        return found


def _copy(p: Tensor, buffers: dict[int, Tensor]) -> Tensor:
    weights = local(p.detach())
    kept = buffers.get(id(p))
    if kept is None or (kept.shape, kept.dtype, kept.device) != (
        weights.shape,
        weights.dtype,
        weights.device,
    ):
        kept = buffers[id(p)] = torch.empty_like(weights)
    return kept.copy_(weights)


def _measured(one: Held, earlier: Gradient | None) -> Sums:
    gradient = _gradient(one.parameter)
    made = Sums(
        one.site,
        one.parameter,
        square_sum(local(one.parameter.detach())),
        square_sum(gradient),
    )
    if earlier is not None and earlier.intact and earlier.value.shape == gradient.shape:
        made.before, made.product = earlier.square, dot(gradient, earlier.value)
    return made


def local(x: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank."""
    part = getattr(x, "to_local", None)
    return x if part is None else part()


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    gradient = local(p.grad.detach())
    return gradient.to_dense() if gradient.is_sparse else gradient


def _fits(weights: list[Tensor]) -> bool:
    """Whether copies fit well into what an accelerator has left."""
    need: dict[torch.device, int] = {}
    for weight in weights:
        if weight.device.type == "cuda":
            size = weight.numel() * weight.element_size()
            need[weight.device] = need.get(weight.device, 0) + size
    for device, size in need.items():
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if size > SHARE * free:
            return False
    return True
