"""The batches of a trial: the same ones, in the same order, for every candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from signalprop.capture.sandbox import generators_kept
from signalprop.cures.program.given import is_one
from signalprop.errors import BatchError

#: bytes of batches that are kept; more of a loader is not read
ROOM = 1 << 29
#: one batch in so many, or one sample in so many, is held out
HELD_OUT = 5
#: fewer samples than this are not divided
FEW = 50
#: samples that a diagnosis is to see
ENOUGH = 32
#: batches that a candidate is judged on, at most
JUDGED = 32


@dataclass(frozen=True)
class Data:
    """Batches as the user gives them.

    Attributes:
        train: what is learned from.
        held_out: what is judged on.
        apart: whether `held_out` holds samples that are not learned from.
        said: where they come from, as a sentence.
    """

    train: tuple[Any, ...]
    held_out: tuple[Any, ...]
    apart: bool
    said: str

    def sample(self, enough: int = ENOUGH) -> Any:
        """The first batch, or the first few as one where it is small and they can be joined."""
        first, rows, spec = self.train[0], list[Any](), None
        for batch in self.train:
            leaves, own = tree_flatten(batch)
            sizes = {len(x) for x in leaves if isinstance(x, Tensor) and x.ndim}
            alike = all(isinstance(x, Tensor) and x.ndim for x in leaves) and len(sizes) == 1
            same = not rows or (own == spec and _shapes(leaves) == _shapes(rows[0]))
            if not (alike and same):
                return first
            rows.append(leaves)
            spec = own
            if sum(len(leaves[0]) for leaves in rows) >= enough:
                break
        if len(rows) == 1 or spec is None:
            return first
        return tree_unflatten([torch.cat(parts) for parts in zip(*rows, strict=True)], spec)

    def order(self, seed: int, steps: int) -> list[int]:
        """Which batch every update takes: all of them, then all in another order, and so on."""
        generator = torch.Generator().manual_seed(seed)
        found: list[int] = []
        while len(found) < steps:
            found += torch.randperm(len(self.train), generator=generator).tolist()
        return found[:steps]


def read(data: Any, held_out: Any = None, *, batch_size: int | None = None, seed: int = 0) -> Data:
    """Take data apart into batches, and hold some out.

    Args:
        data: a DataLoader or another iterable of batches; or one batch, as for `diagnose`.
        held_out: the same, to judge on; None takes every fifth batch, or every fifth sample of one
            batch, where there are enough.
        batch_size: samples of one update, where `data` is one batch; None takes all.
        seed: of the division of one batch.

    Returns:
        The batches.

    Raises:
        BatchError: there are none.
    """
    if is_one(data):
        count = _count(data)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        kept, left = order, order[:0]
        if held_out is None and count >= FEW:
            left, kept = order[: count // HELD_OUT], order[count // HELD_OUT :]
        size = min(batch_size or len(kept), len(kept))
        train = [_rows(data, rows, count) for rows in kept.split(size) if len(rows) == size]
        judged = (
            [_rows(data, rows, count) for rows in left.split(max(size, 256))] if len(left) else []
        )
        what = f"one batch of {count} samples"
    else:
        train, whole = _drawn(data)
        what = f"{len(train)} batches" + ("" if whole else ", the first of the loader")
        judged = list[Any]()
        if held_out is None and len(train) >= HELD_OUT:
            judged = train[HELD_OUT - 1 :: HELD_OUT]
            train = [b for i, b in enumerate(train) if i % HELD_OUT != HELD_OUT - 1]
    if held_out is not None:
        judged = [held_out] if is_one(held_out) else _drawn(held_out)[0]
    apart = bool(judged)
    if not apart:
        said = f"{what}; judged on what is learned from: too few to hold some out"
    elif held_out is not None:
        said = f"{what}; judged on the data held out"
    else:
        said = f"{what}; every fifth is held out and judged on"
    return Data(tuple(train), tuple((judged or train)[:JUDGED]), apart, said)


def _shapes(leaves: list[Any]) -> list[Any]:
    return [(x.shape[1:], x.dtype) for x in leaves]


def _count(batch: Any) -> int:
    """Samples of a batch: the first dimension of its first tensor."""
    first = next((x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.ndim), None)
    if first is None or not len(first):
        raise BatchError("the data hold no samples; give (inputs, targets), or a DataLoader")
    return len(first)


def _rows(batch: Any, rows: Tensor, count: int) -> Any:
    def cut(x: Any) -> Any:
        fits = isinstance(x, Tensor) and x.ndim > 0 and len(x) == count
        return x[rows.to(x.device)] if fits else x

    return tree_map(cut, batch)


def _drawn(data: Any) -> tuple[list[Any], bool]:
    """The batches of a loader, as many as there is room for; and whether that is all."""
    found: list[Any] = []
    room = ROOM
    with generators_kept(data):
        for batch in data:
            found.append(batch)
            room -= sum(x.nbytes for x in tree_leaves(batch) if isinstance(x, Tensor))
            if room < 0:
                return found, False
    if not found:
        raise BatchError("the data loader is empty; give one with at least one batch")
    return found, True
