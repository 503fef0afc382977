"""A parameter that is updated: what is kept of it, and the sums over its elements."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from signalprop.capture.statistics import Scalar
from signalprop.compiled.sums import PLAIN


@dataclass(eq=False, slots=True)
class Held:
    """A parameter that an optimizer is about to change.

    Attributes:
        site: index of its site.
        parameter: the parameter.
    """

    site: int
    parameter: Tensor


@dataclass(eq=False, slots=True)
class Gradient:
    """A gradient of an earlier step, and what tells whether its memory still holds it.

    Attributes:
        value: the gradient, the part of it that lies on this rank.
        version: of its memory, when it was kept.
        square: sum of its squares, if it is known.
    """

    value: Tensor
    version: int
    square: Scalar | None = None

    @staticmethod
    def keep(gradient: Tensor, *, copy: bool, square: Scalar | None = None) -> Gradient:
        """Keep a gradient.

        Args:
            gradient: of a parameter.
            copy: whether its memory will be used again.
            square: sum of its squares, if it is known.

        Returns:
            What is kept.
        """
        kept = local(gradient.detach() if gradient.requires_grad else gradient)
        if kept.is_sparse:
            kept = kept.to_dense()
        elif copy:
            kept = kept.clone()
        return Gradient(kept, kept._version, square)

    @property
    def intact(self) -> bool:
        """Whether it has not been written to since."""
        return self.value._version == self.version


@dataclass(eq=False, slots=True)
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


def local(x: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank."""
    if type(x) in PLAIN:
        return x
    part = getattr(x, "to_local", None)
    return x if part is None else part()


def dense(gradient: Tensor) -> Tensor:
    """A gradient's part on this rank, its zeros written out."""
    gradient = local(gradient)
    return gradient.to_dense() if gradient.is_sparse else gradient
