"""Where ranks come together: who is there, whether all agree, and who has left.

All of it goes over the host (the store of torch.distributed and a group of its own with gloo), so
that no accelerator is waited for, and so that a rank that is missing is an exception, not the end
of the process.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: seconds that `watch` waits for the other ranks to call it
ATTACH = 60.0
#: seconds that a sampled step waits for the others
PATIENCE = 300.0
#: seconds after which the store is asked whether somebody has left, then and again
_FIRST, _AGAIN = 0.25, 1.0
#: seconds that the last words of a rank that has left may take
_GRACE = 3.0


class Parted(Exception):  # noqa: N818 - no error of the program: the ranks are together no longer
    """The ranks no longer measure together."""


class Control:
    """The meeting point of some ranks.

    Args:
        ranks: numbers in the default group.
        group: of gloo, over these ranks.
        store: of their own.
        slots: number of the part of the model that each rank holds.
    """

    def __init__(self, ranks: Sequence[int], group: Any, store: Any, slots: Sequence[int]) -> None:
        self.ranks, self.group = tuple(ranks), group
        self.slots, self.slot = max(slots) + 1, slots[ranks.index(dist.get_rank())]
        self._store = store

    def largest(self, values: Sequence[int]) -> list[int]:
        """Maxima over the ranks.

        Args:
            values: whole numbers, as many on every rank.

        Returns:
            One per value.
        """
        row = torch.tensor(values, dtype=torch.int64)
        self.wait(dist.all_reduce(row, dist.ReduceOp.MAX, group=self.group, async_op=True))
        return [int(v) for v in row.tolist()]

    def tell(self, text: str | None, size: int) -> str:
        """What the first rank has to say.

        Args:
            text: on the first rank.
            size: its length in bytes, on all.

        Returns:
            The text.
        """
        given = text.encode() if text is not None else bytes(size)
        row = torch.frombuffer(bytearray(given), dtype=torch.uint8)
        self.wait(dist.broadcast(row, self.ranks[0], group=self.group, async_op=True))
        return bytes(row.numpy().tobytes()).decode()

    def add(self, row: Tensor, group: Any = None) -> None:
        """Add a row over the ranks, in place; on an accelerator nothing is waited for.

        Args:
            row: on the CPU or on the model's device.
            group: over which; this one's by default.
        """
        group = self.group if group is None else group
        work = dist.all_reduce(row, group=group, async_op=True)
        self.wait(work, host=row.device.type == "cpu")

    def most(self, row: Tensor, group: Any = None) -> None:
        """Maxima over the ranks, in place, likewise."""
        group = self.group if group is None else group
        work = dist.all_reduce(row, dist.ReduceOp.MAX, group=group, async_op=True)
        self.wait(work, host=row.device.type == "cpu")

    def leave(self, why: str) -> None:
        """Say that this rank takes part no longer."""
        self._store.set("left", f"rank {dist.get_rank()} {why}")

    def wait(self, work: Any, *, host: bool = True) -> None:
        """Wait for a collective as long as all ranks are there.

        Args:
            work: of the collective.
            host: whether it runs on the host.

        Raises:
            Parted: a rank has left, or does not come.
        """
        if not host:
            work.wait()  # the device's stream waits
            return
        begun, step, left = time.monotonic(), _FIRST, ""
        while True:
            try:
                work.wait(datetime.timedelta(seconds=step))
                return
            except RuntimeError as error:
                if work.is_completed() and "timed out" not in str(error).lower():
                    raise Parted(f"a rank is gone: {_first_line(error)}") from error
            if work.is_completed():
                return
            waited = time.monotonic() - begun
            if left and waited > _GRACE:
                raise Parted(left)
            if waited > PATIENCE:
                raise Parted(f"another rank did not come within {PATIENCE:g} s")
            left = left or self._gone()
            step = _AGAIN

    def _gone(self) -> str:
        try:
            return self._store.get("left").decode() if self._store.check(["left"]) else ""
        except RuntimeError as error:
            return f"the store of torch.distributed is gone: {_first_line(error)}"


def attach(ranks: Sequence[int], data: Sequence[Any], signature: str) -> Control | str:
    """Wait until all ranks are watched, and make their meeting point; collective, yet never hangs.

    Every rank leaves a note in the store, which the first one takes and answers; whoever has waited
    too long takes its own note back, so that nobody believes what others do not.

    Args:
        ranks: that train together.
        data: the groups over which the samples are spread.
        signature: what all must have in common.

    Returns:
        The meeting point; or why there is none, in a clause.
    """
    if not dist.is_gloo_available():
        return "this build of torch has no gloo"
    me = dist.get_rank()
    base: Any = dist.distributed_c10d._get_default_store()
    job = hashlib.blake2b(repr(tuple(ranks)).encode(), digest_size=6).hexdigest()
    store: Any = dist.PrefixStore(f"signalprop/{job}", base)
    note = {"signature": signature, "data": [dist.get_process_group_ranks(g) for g in data]}
    found = _decide(store, ranks, note) if me == ranks[0] else _hear(store, ranks[0], note)
    if isinstance(found, str):
        return found
    session, slots = found
    everyone = len(ranks) == dist.get_world_size()
    group = dist.new_group(
        None if everyone else list(ranks),
        timeout=datetime.timedelta(seconds=2 * PATIENCE),
        backend="gloo",
        use_local_synchronization=not everyone,
    )
    return Control(ranks, group, dist.PrefixStore(f"session/{session}", store), slots)


def _decide(store: Any, ranks: Sequence[int], note: dict[str, Any]) -> tuple[int, list[int]] | str:
    """The first rank: take all notes, and answer them."""
    until, why = time.monotonic() + ATTACH, ""
    notes, answers = {ranks[0]: note}, list[str]()
    for rank in ranks[1:]:
        taken = _take(store, rank, until)
        if taken is None:
            why = f"rank {rank} has not called sp.watch within {ATTACH:g} s; call it on all ranks"
            break
        notes[rank] = json.loads(store.get(f"note/{rank}/{taken}"))
        answers.append(f"answer/{rank}/{taken}")
    if not why and len({one["signature"] for one in notes.values()}) > 1:
        why = "the ranks watch other models, or with other arguments; call sp.watch alike on all"
    found = why or (int(store.add("sessions", 1)), _slots(notes, ranks))
    for answer in answers:
        store.set(answer, json.dumps(found))
    return found


def _take(store: Any, rank: int, until: float) -> int | None:
    """Number of the next note of a rank that it has not taken back; None where none comes."""
    while True:
        number = store.add(f"taken/{rank}", 0) + 1
        if not _wait(store, f"note/{rank}/{number}", until):
            return None
        store.add(f"taken/{rank}", 1)
        if store.add(f"hand/{rank}/{number}", 1) == 1:
            return number


def _hear(store: Any, first: int, note: dict[str, Any]) -> tuple[int, list[int]] | str:
    """Another rank: leave a note, and hear what the first has decided."""
    me = dist.get_rank()
    number = store.add(f"notes/{me}", 1)
    store.set(f"note/{me}/{number}", json.dumps(note))
    answer = f"answer/{me}/{number}"
    if not _wait(store, answer, time.monotonic() + ATTACH):
        mine = store.add(f"hand/{me}/{number}", 1) == 1
        if mine or not _wait(store, answer, time.monotonic() + ATTACH + _GRACE):
            return f"rank {first} has not called sp.watch within {ATTACH:g} s; call it on all ranks"
    found = json.loads(store.get(answer))
    return found if isinstance(found, str) else (found[0], found[1])


def _wait(store: Any, key: str, until: float) -> bool:
    left = max(0.01, until - time.monotonic())
    try:
        store.wait([key], datetime.timedelta(seconds=left))
    except RuntimeError:
        return bool(store.check([key]))
    return True


def _slots(notes: dict[int, Any], ranks: Sequence[int]) -> list[int]:
    """Ranks with other samples of the same part of the model get the same number."""
    part = {rank: rank for rank in ranks}
    groups = {tuple(group) for note in notes.values() for group in note["data"]}
    before: dict[int, int] = {}
    while part != before:
        before = dict(part)
        for group in groups:
            least = min(part[rank] for rank in group)
            part.update(dict.fromkeys(group, least))
    known = sorted(set(part.values()))
    return [known.index(part[rank]) for rank in ranks]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
