"""One of several processes that train together."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from signalprop.capture.statistics import accumulator
from signalprop.watching.passes.tally import Vector
from signalprop.watching.ranks import parts
from signalprop.watching.ranks.alone import Joint, Layout, Ranks
from signalprop.watching.ranks.control import Control, Parted, attach
from signalprop.watching.ranks.groups import Groups, groups_of
from signalprop.watching.sample import Alarm
from signalprop.watching.transfer import Number

_LOG = logging.getLogger("signalprop")

_NONE = -(1 << 62)


def ranks_of(models: Sequence[torch.nn.Module], *, settings: str = "") -> Ranks:
    """The processes that train these models together.

    Args:
        models: as given to `watch`, wrapped or sharded.
        settings: what else must be the same on all of them.

    Returns:
        All of them as one; a process by itself where there is one, or the others do not watch.
    """
    groups = groups_of(models, settings)
    if groups is None:
        return Ranks()
    control = attach(groups.ranks, groups.data, groups.signature)
    first = groups.ranks[0] == dist.get_rank()
    if isinstance(control, str):
        if first:
            _LOG.warning("%s; what is recorded is of rank %d alone", control, groups.ranks[0])
        return Several(groups, None, writes=first)
    return Several(groups, control, writes=first)


class Several(Ranks):
    """One of several processes.

    Args:
        groups: who they are.
        control: where they meet; None where the others do not watch.
        writes: whether this one records.
    """

    copies = True

    def __init__(self, groups: Groups, control: Control | None, *, writes: bool) -> None:
        self.world, self.writes = len(groups.ranks), writes
        self._groups, self._control = groups, control
        self._asked: Alarm | None = None
        self._asks_closer = False
        self._told_closer = False
        self._said = False
        self._everyone: Any = None

    @property
    def together(self) -> int:
        """How many processes are recorded as one; 1 where the others do not watch."""
        return 1 if self._control is None else self.world

    @property
    def averaged(self) -> float:
        """By how much delta on a rank is larger than with the loss of the global batch."""
        return self._groups.averaged

    def first(self, step: int) -> int:
        """The step at which the first rank begins, which knows the run file."""
        if self._control is None:
            return step
        return self._control.largest([step if self.writes else _NONE])[0]

    def meet(self, layout: Layout) -> Joint:
        """All ranks come together at the end of a sampled step.

        Args:
            layout: what this one has seen.

        Returns:
            What can be added over the ranks.

        Raises:
            Parted: the ranks are together no longer.
        """
        control = self._control
        if control is None:
            return Joint(sites=False, parameters=False)
        stop = "" if self._asked is None or not self.writes else _written(self._asked)
        mine = [layout.step, _number(layout.sites), _number(layout.parameters), layout.copied]
        values = [v for value in mine for v in (int(value), -int(value))]
        values += [len(stop.encode()), int(self._asks_closer)]
        units = [_NONE] * (2 * control.slots)
        number = _number(repr(layout.vectors))
        units[2 * control.slot : 2 * control.slot + 2] = [number, -number]
        found = control.largest([*values, *units])
        same = [found[i] == -found[i + 1] for i in (0, 2, 4)]
        if not same[0]:
            self._control = None
            raise Parted("the ranks have made different numbers of steps")
        size, closer = found[8:10]
        if size:
            text = control.tell(stop or None, size)
            self.told = self._asked if self.writes else _read(text)
        self._told_closer, self._asks_closer = bool(closer), False
        sites = same[1] and all(a == -b for a, b in zip(found[10::2], found[11::2], strict=True))
        if not (sites and same[2]):
            self._say(sites=sites)
        return Joint(sites, same[2], copied=-found[7] > 0)

    def share(self, parameter: Tensor, *, joint: bool) -> float:
        """The weight with which this rank's sums over its part of a parameter enter the whole."""
        if joint:
            return parts.counted(parameter, self.world)
        spread = parts.placements(parameter) or ()
        return float(all(place.is_replicate() for place in spread))

    def totals(self, vectors: Sequence[Vector]) -> list[Vector]:
        """Sums over the ranks that hold other samples of the same units."""
        if self._control is None or not vectors or not self._groups.data:
            return list(vectors)
        device = self._groups.device
        row, _ = _row(
            [v if isinstance(v, Tensor) else torch.from_numpy(v) for v in vectors], device
        )
        for group in self._groups.data:
            self._control.add(row, group)
        if device.type == "cpu" and isinstance(vectors[0], np.ndarray):
            ends = np.cumsum([len(v) for v in vectors])[:-1]
            return list(np.split(row.numpy(), ends))
        return list(row.split([len(v) for v in vectors]))

    def join(
        self, numbers: Sequence[Number], largest: Sequence[Number]
    ) -> tuple[list[Number], NDArray[np.int64] | None]:
        """Sums over the ranks of some numbers, and maxima of others."""
        if self._control is None:
            return [*numbers, *largest], None
        found: list[Number] = []
        orders: list[NDArray[np.int64]] = []
        begin = 0
        for given, most in ((numbers, False), (largest, True)):
            if not given:
                continue
            row, order = _row(given, self._groups.device)
            if most:
                row = row.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
                self._control.most(row, self._all())
            else:
                self._control.add(row, self._all())
            found.append(row)
            orders.append(order + begin)
            begin += len(order)
        return found, np.concatenate(orders) if orders else None

    def whole(self, parameters: Iterable[Tensor]) -> Mapping[int, Tensor]:
        """Gradients that are yet to be added over the ranks, added; by parameter id."""
        odd = [p for p in parameters if parts.unlike(p)] if self._groups.sharded else []
        if not odd or self._control is None:
            return {}
        self._control.largest([0])  # from here on all ranks do the same
        with torch.no_grad():
            return {id(p): parts.like(p) for p in odd}

    def stops(self, alarm: Alarm) -> bool:
        """Whether an alert ends the training now; otherwise all ranks are told first."""
        self._asked = self._asked or alarm
        return self.told is not None

    def closer(self) -> bool:
        """Whether the steps to come may be sampled now; otherwise all ranks are told first."""
        self._asks_closer = True
        return False

    def told_closer(self) -> bool:
        """Whether the steps to come are to be sampled, as all ranks were told; said once."""
        told, self._told_closer = self._told_closer, False
        return told

    def leave(self, why: str) -> None:
        """This rank takes part no longer; the others learn it when they wait for it."""
        control, self._control = self._control, None
        if control is not None:
            try:
                control.leave(why)
            except RuntimeError as error:  # the store is gone, and the others with it
                _LOG.debug("%s", error)

    def _all(self) -> Any:
        """The group of all ranks that can work where the numbers lie."""
        if self._groups.device.type == "cpu":
            return None
        if self._everyone is None:
            if self.world == dist.get_world_size():
                self._everyone = dist.group.WORLD
            else:
                self._everyone = dist.new_group(
                    list(self._groups.ranks), use_local_synchronization=True
                )
        return self._everyone

    def _say(self, *, sites: bool) -> None:
        if not self._said and self.writes:
            self._said = True
            what = "updated other parameters" if sites else "seen other sites"
            _LOG.warning(
                "the ranks have %s in a step; what is recorded of it is of rank %d alone",
                what,
                self._groups.ranks[0],
            )


def _row(numbers: Sequence[Number], device: torch.device) -> tuple[Tensor, NDArray[np.int64]]:
    """Numbers side by side: the floats, then the tensors; and where each of them lies."""
    wide = accumulator(device)
    floats = [n for n in numbers if not isinstance(n, Tensor)]
    tensors = [n.detach().reshape(-1) for n in numbers if isinstance(n, Tensor)]
    host = torch.tensor(floats, dtype=wide, pin_memory=device.type == "cuda")
    if not tensors:
        return host.to(device, non_blocking=True), np.arange(len(floats))
    there = torch.cat(tensors) if all(t.device == device for t in tensors) else None
    if there is None:
        there = torch.cat([t.to(device, wide) for t in tensors])
    row = torch.cat([host.to(device, non_blocking=True), there.to(wide)])
    sizes = [n.numel() if isinstance(n, Tensor) else 0 for n in numbers]
    order: list[int] = []
    at, behind = 0, len(floats)
    for size, n in zip(sizes, numbers, strict=True):
        if isinstance(n, Tensor):
            order += range(behind, behind + size)
            behind += size
        else:
            order.append(at)
            at += 1
    return row, np.asarray(order, np.int64)


def _number(text: str | float) -> int:
    """A whole number of 62 bits that tells a text; a number as it is."""
    if not isinstance(text, str):
        return int(text)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 2


def _written(alarm: Alarm) -> str:
    return json.dumps(asdict(alarm))


def _read(text: str) -> Alarm:
    found: dict[str, Any] = json.loads(text)
    found["sites"], found["cures"] = tuple(found["sites"]), tuple(found["cures"])
    return Alarm(**found)
