"""Steps that change a batch on its way to the model, or an output on its way to a metric.

A step is applied to every batch (args, kwargs, target) before the model sees it. Steps are classes
of this module, so that they can be sent to another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

#: (args, kwargs, target)
Given = tuple[Any, Any, Any]


@dataclass(frozen=True)
class Shaped:
    """The target reshaped to (n, *rest); or, with `expand`, repeated to it."""

    rest: tuple[int, ...]
    expand: bool = False

    def __call__(self, given: Given) -> Given:
        """Change the target of a batch."""
        args, kwargs, y = given
        if self.expand:
            y = y.reshape(len(y), *(1,) * len(self.rest)) if y.ndim == 1 else y
            return args, kwargs, y.expand(len(y), *self.rest)
        return args, kwargs, y.reshape(-1, *self.rest)


@dataclass(frozen=True)
class Cast:
    """The target in another dtype."""

    dtype: torch.dtype

    def __call__(self, given: Given) -> Given:
        """Change the target of a batch."""
        return given[0], given[1], given[2].to(self.dtype)


@dataclass(frozen=True)
class ClassNumbers:
    """Class numbers made of one-hot targets; `dim` counts the classes."""

    dim: int

    def __call__(self, given: Given) -> Given:
        """Change the target of a batch."""
        return given[0], given[1], given[2].argmax(self.dim)


@dataclass(frozen=True)
class Shifted:
    """Class numbers minus a number, those the loss leaves out apart."""

    by: int
    ignored: int | None = None

    def __call__(self, given: Given) -> Given:
        """Change the target of a batch."""
        args, kwargs, y = given
        new = y - self.by
        return args, kwargs, new if self.ignored is None else torch.where(y == self.ignored, y, new)


@dataclass(frozen=True, eq=False)
class Scaled:
    """(target - shift) / scale, per column."""

    shift: Tensor
    scale: Tensor

    def __call__(self, given: Given) -> Given:
        """Change the target of a batch."""
        args, kwargs, y = given
        y = y if y.is_floating_point() else y.to(self.shift.dtype)
        return args, kwargs, ((y - self.shift.to(y)) / self.scale.to(y)).to(y.dtype)


@dataclass(frozen=True, eq=False)
class Unscaled:
    """What `Scaled` did, undone on the output."""

    shift: Tensor
    scale: Tensor

    def __call__(self, output: Any) -> Any:
        """Change an output."""
        return output * self.scale.to(output) + self.shift.to(output)


@dataclass(frozen=True)
class Replaced:
    """One class number in place of another."""

    old: int
    new: int

    def __call__(self, given: Given) -> Given:
        """Change the target of a batch."""
        return given[0], given[1], given[2].masked_fill(given[2] == self.old, self.new)


@dataclass(frozen=True)
class FirstClass:
    """Columns of -inf before the scores: the largest one's index is then the user's own label."""

    by: int

    def __call__(self, output: Any) -> Any:
        """Change an output."""
        n, rest = output.shape[0], output.shape[2:]
        return torch.cat([output.new_full((n, self.by, *rest), -torch.inf), output], 1)


class Transposed(nn.Module):
    """A loss whose output has its classes last, as a layer on the last dimension makes them."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss with the classes second."""
        return self.loss(output.movedim(-1, 1), target)


@dataclass(frozen=True, eq=False)
class Normalised:
    """(input - mean) / std of some inputs, by position or keyword; both broadcast against it."""

    moments: Mapping[int | str, tuple[Tensor, Tensor]]

    def __call__(self, given: Given) -> Given:
        """Change the inputs of a batch."""
        args, kwargs, y = given

        def changed(key: int | str, x: Any) -> Any:
            if key not in self.moments:
                return x
            mean, std = self.moments[key]
            wide = torch.promote_types(x.dtype, torch.float32)
            there = {"device": x.device, "dtype": wide}
            return ((x.to(wide) - mean.to(**there)) / std.to(**there)).to(x.dtype)

        args = tuple(changed(i, x) for i, x in enumerate(args))
        return args, {k: changed(k, x) for k, x in kwargs.items()}, y


@dataclass(frozen=True, eq=False)
class Cleaned:
    """Samples that are not finite left out, or their gaps filled in with a feature's mean.

    Attributes:
        fill: what stands in for a value that is not finite, by position or keyword of the input.
        drop: leave samples out; where none would be left, and in any case without it, fill in.
        dim: dimension of the samples in the inputs.
    """

    fill: Mapping[int | str, Tensor]
    drop: bool
    dim: int = 0

    def __call__(self, given: Given) -> Given:
        """Change a batch."""
        args, kwargs, y = given
        inputs = dict(enumerate(args)) | kwargs
        keep = finite_targets(y)
        for key in self.fill if self.drop else ():
            good = finite_samples(inputs[key], self.dim)
            keep = good if keep is None else keep.to(good.device) & good
        if keep is not None and not bool(keep.all()) and bool(keep.any()):
            rows = keep.nonzero().squeeze(1)
            args, kwargs = (tree_map(self._cut(rows, len(keep)), x) for x in (args, kwargs))
            y = tree_map(_Cut(rows, len(keep), 0), y)
        return (
            tuple(self._filled(i, x) for i, x in enumerate(args)),
            {k: self._filled(k, x) for k, x in kwargs.items()},
            y,
        )

    def _cut(self, rows: Tensor, n: int) -> _Cut:
        return _Cut(rows, n, self.dim)

    def _filled(self, key: int | str, x: Any) -> Any:
        if key not in self.fill:
            return x
        return torch.where(x.isfinite(), x, self.fill[key].to(x))


@dataclass(frozen=True, eq=False)
class _Cut:
    """Some samples of every tensor that has as many."""

    rows: Tensor
    n: int
    dim: int

    def __call__(self, x: Any) -> Any:
        for dim in (self.dim, 0):
            if isinstance(x, Tensor) and x.ndim > dim and x.shape[dim] == self.n:
                return x.index_select(dim, self.rows.to(x.device))
        return x


def finite_samples(x: Tensor, dim: int) -> Tensor:
    """Which samples are finite everywhere."""
    return x.movedim(dim, 0).reshape(x.shape[dim], -1).isfinite().all(1)


def finite_targets(y: Any) -> Tensor | None:
    """Which samples have a finite target; None where targets are no floating tensor."""
    floating = isinstance(y, Tensor) and y.is_floating_point() and y.ndim > 0
    return finite_samples(y, 0) if floating else None
