"""The data that a cure is given: one batch, or many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor

from signalprop.capture import batch as batches
from signalprop.capture.sandbox import generators_kept, random_state
from signalprop.errors import BatchError


def is_many(data: Any) -> bool:
    """Whether this is a list of batches, rather than one batch or a loader.

    Args:
        data: as the user gives them.

    Returns:
        True for a list whose first entry is itself a tuple, list or mapping. A tuple is always one
        batch: (x, y) and ((x1, x2), (y1, y2)) could else be taken for two.
    """
    return isinstance(data, list) and bool(data) and isinstance(data[0], (tuple, list, Mapping))


def first_of(data: Any) -> Any:
    """The first batch of a list of batches or of a loader; else the data, which are one batch."""
    return data[0] if is_many(data) else batches.first_of(data)


def batches_of(data: Any, most: int) -> Iterator[Any]:
    """The first few batches of a list or a loader, or the one batch that was given.

    Args:
        data: a batch, a list of batches, or an iterable of them; a loader's own generator is left
            as it was.
        most: how many.

    Yields:
        Batches as the user gives them.

    Raises:
        BatchError: there are none.
    """
    if is_many(data):
        yield from data[:most]
        return
    if is_one(data):
        yield data
        return
    with generators_kept(data), random_state():
        found = list(islice(data, most))
    if not found:
        raise BatchError("the data loader is empty; give one with at least one batch")
    yield from found


def is_one(data: Any) -> bool:
    """Whether this is one batch, rather than a list of batches or a loader."""
    if is_many(data):
        return False
    told = isinstance(data, (Tensor, tuple, list, Mapping)) or not isinstance(data, Iterable)
    # graph libraries have batches that can be iterated over; their tensors are attributes
    return told or batches._is_batch_object(data)
