"""Sequences as torch's recurrent layers take them, and as the loops here want them.

Inside, a batch of sequences is (T, B, features), time first; of a packed one the places behind the
end of a sequence are filled with zeros, and `there` (T, B) says where it has entries.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

#: what goes in comes out: a tensor or a packed sequence
S = TypeVar("S", Tensor, PackedSequence)


def opened(
    name: str, input: Tensor | PackedSequence, batch_first: bool
) -> tuple[Tensor, Tensor | None]:
    """(T, B, features) and, of packed sequences, where they have entries.

    Args:
        name: of the layer, for the errors.
        input: (T, B, features), (B, T, features) with `batch_first`, (T, features), or packed.
        batch_first: whether the batch comes before the time.

    Returns:
        The sequences, and (T, B) or None.

    Raises:
        ValueError: neither two nor three dimensions.
        RuntimeError: there is no step.
    """
    there = None
    if isinstance(input, PackedSequence):
        sizes = input.batch_sizes
        there = (torch.arange(int(sizes[0])) < sizes.unsqueeze(1)).to(input.data.device)
        x = padded(input.data, there)
    else:
        if input.dim() not in (2, 3):
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        x = input.unsqueeze(1) if input.dim() == 2 else input
        if batch_first and input.dim() == 3:
            x = x.transpose(0, 1)
    if x.shape[0] == 0:
        raise RuntimeError(f"{name}: Expected sequence length to be larger than 0")
    return x, there


def closed(y: Tensor, there: Tensor | None, like: S, batch_first: bool) -> S:
    """(T, B, features) in the form that the input had."""
    form: Any = y
    if isinstance(like, PackedSequence):
        assert there is not None
        form = like._replace(data=y[there])
    elif like.dim() == 2:
        form = y.squeeze(1)
    elif batch_first:
        form = y.transpose(0, 1)
    return cast(S, form)


def padded(data: Tensor, there: Tensor) -> Tensor:
    """Entries in the order of a packed sequence as (T, B, ...), with zeros where there are none."""
    x = data.new_zeros(*there.shape, *data.shape[1:])
    return x.index_put((there,), data)


def state_in(name: str, given: Tensor, like: Tensor | PackedSequence) -> Tensor:
    """A given state as (layers x directions, B, size), its samples in the order of the input's.

    Args:
        name: of the layer, for the errors.
        given: (layers x directions, B, size), without B beside unbatched input.
        like: the input.

    Returns:
        The state.

    Raises:
        RuntimeError: another number of dimensions.
    """
    unbatched = isinstance(like, Tensor) and like.dim() == 2
    if given.dim() != (2 if unbatched else 3):
        kind = "unbatched 2-D" if unbatched else "batched 3-D"
        raise RuntimeError(
            f"{name}: for {kind} input, the states should also be {2 if unbatched else 3}-D, "
            f"got {given.dim()}-D"
        )
    if isinstance(like, PackedSequence) and like.sorted_indices is not None:
        # of another size, the layer says so; chosen from here, it would not
        fits = given.shape[1] == len(like.sorted_indices)
        return given.index_select(1, like.sorted_indices) if fits else given
    return given.unsqueeze(1) if unbatched else given


def state_out(state: Tensor, like: Tensor | PackedSequence) -> Tensor:
    """The way back from `state_in`."""
    if isinstance(like, PackedSequence):
        order = like.unsorted_indices
        return state if order is None else state.index_select(1, order)
    return state.squeeze(1) if like.dim() == 2 else state


def dropped(x: Tensor, there: Tensor | None, rate: float, training: bool) -> Tensor:
    """Dropout as torch draws it between layers: of packed sequences for their entries alone."""
    if rate == 0.0 or not training:
        return x
    if there is None:
        return F.dropout(x, rate, True)
    return padded(F.dropout(x[there], rate, True), there)


def warn_of_idle_dropout(dropout: float, num_layers: int) -> None:
    """Dropout stands between layers; one layer has no such place."""
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"dropout acts between layers: dropout={dropout} does nothing with num_layers=1",
            stacklevel=3,
        )
