"""One update of one optimizer, measured: what it got, and what it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from signalprop.capture.statistics import Scalar
from signalprop.watching.sums import PLAIN, Operand, dot, operand, square_sum

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
    _operand: Operand | None = None
    _square: Scalar | None = None

    @staticmethod
    def keep(gradient: Tensor, *, copy: bool, known: Sums | None = None) -> Gradient:
        """Keep a gradient.

        Args:
            gradient: of a parameter.
            copy: whether its memory will be used again.
            known: what was measured of it, if it was.

        Returns:
            What is kept.
        """
        square = None if known is None else known.gradient
        if known is not None and known.made is gradient and not (copy or gradient.requires_grad):
            return Gradient(gradient, gradient._version, known.operand, square)
        kept = local(gradient.detach())
        if kept.is_sparse:
            kept = kept.to_dense()
        elif copy:
            kept = kept.clone()
        return Gradient(kept, kept._version, None, square)

    @property
    def operand(self) -> Operand:
        """Of which sums are taken."""
        return operand(self.value) if self._operand is None else self._operand

    @property
    def square(self) -> Scalar:
        """Sum of its squares."""
        return square_sum(self.operand) if self._square is None else self._square

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
        made: the gradient that was measured, and its operand.
    """

    site: int
    parameter: Tensor
    weight: Scalar
    gradient: Scalar
    change: Scalar | None = None
    decrease: Scalar | None = None
    before: Scalar | None = None
    product: Scalar | None = None
    made: Tensor | None = None
    operand: Operand | None = None


@dataclass(eq=False)
class _Begun:
    """A parameter whose update is awaited: where its weights lie, and their copy."""

    held: Held
    weights: Operand
    place: int
    copy: Operand | None
    sums: Sums | None


class Update:
    """An optimizer's update: measured when it is about to be made, and `after` it.

    One parameter after the other, so that what is asked of it finds it in the processor's cache.

    Args:
        held: the parameters that it holds.
        earlier: gradients of the step before, by parameter id.
        late: whether the optimizer evaluates the loss itself, so that there are gradients only
            afterwards.
        buffers: memory for copies of the weights, by parameter id; what is missing is added.
        whole: gradients that were yet to be added over the ranks, added, by parameter id.

    Attributes:
        copied: whether there was memory for a copy of the weights, so that the change can be seen.
    """

    def __init__(
        self,
        held: Sequence[Held],
        earlier: Mapping[int, Gradient],
        buffers: dict[int, Operand],
        *,
        late: bool = False,
        whole: Mapping[int, Tensor] | None = None,
    ) -> None:
        self._whole = whole or {}
        held = [one for one in held if late or one.parameter.grad is not None]
        self.copied = _fits([one.parameter for one in held if id(one.parameter) not in buffers])
        self._begun: list[_Begun] = []
        with torch.no_grad():
            for one in held:
                p = one.parameter
                weights = operand(local(p))
                copy = _copy(id(p), weights, buffers) if self.copied else None
                sums = None if late else self._measured(one, weights, earlier.get(id(p)))
                self._begun.append(_Begun(one, weights, _address(p), copy, sums))

    def after(self) -> list[Sums]:
        """The optimizer has changed the weights.

        Returns:
            Of every parameter that has a gradient.
        """
        begun, self._begun = self._begun, list[_Begun]()
        found = []
        with torch.no_grad():
            for one in begun:
                p, sums, copy = one.held.parameter, one.sums, one.copy
                if p.grad is None:
                    if sums is not None:
                        found.append(sums)
                    continue
                weights = one.weights if one.place == _address(p) else operand(local(p))
                if sums is None:
                    sums = self._measured(one.held, weights, None)
                found.append(sums)
                if copy is not None:
                    # w_old - w in the copy's place: its product with g is the loss's decrease
                    copy -= weights  # type: ignore[operator] # both of one kind
                    gradient = self._whole.get(id(p), p.grad)
                    known = sums.operand if gradient is sums.made else None
                    sums.change = square_sum(copy)
                    sums.decrease = dot(_operand(gradient) if known is None else known, copy)
        return found

    def _measured(self, one: Held, weights: Operand, earlier: Gradient | None) -> Sums:
        p = one.parameter
        assert p.grad is not None
        made = self._whole.get(id(p), p.grad)
        gradient = _operand(made)
        sums = Sums(one.site, p, square_sum(weights), square_sum(gradient))
        sums.made, sums.operand = made, gradient
        if earlier is not None and earlier.intact and earlier.operand.shape == gradient.shape:
            sums.before, sums.product = earlier.square, dot(gradient, earlier.operand)
        return sums


def _operand(gradient: Tensor) -> Operand:
    gradient = local(gradient)
    return operand(gradient.to_dense() if gradient.is_sparse else gradient)


def _copy(key: int, weights: Operand, buffers: dict[int, Operand]) -> Operand:
    kept = buffers.get(key)
    if isinstance(weights, np.ndarray):
        if not isinstance(kept, np.ndarray) or kept.shape != weights.shape:
            kept = buffers[key] = np.empty_like(weights)
        np.copyto(kept, weights)
        return kept
    if (
        not isinstance(kept, Tensor)
        or (kept.shape, kept.dtype, kept.device)
        != (weights.shape, weights.dtype, weights.device)
    ):  # fmt: skip
        kept = buffers[key] = torch.empty_like(weights)
    return kept.copy_(weights)


def _address(p: Tensor) -> int:
    """Where a plain parameter's memory lies; of others it may be another after every update."""
    return p.data_ptr() if type(p) in PLAIN else -1


def local(x: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank."""
    if type(x) in PLAIN:
        return x
    part = getattr(x, "to_local", None)
    return x if part is None else part()


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
