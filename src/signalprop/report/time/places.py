"""How layers and directions are called, and which of them are alike enough to be one row."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from signalprop.report import words
from signalprop.report.folding import REPEATS, Step, reach, stretches

#: up to so many are all shown
FEW = 8
#: rows in all; beyond, the middle is one row
ROWS = 16


@dataclass(frozen=True)
class Place:
    """Where a line is: module, layer and direction, as they are called in torch's weights.

    Attributes:
        site: path of the module.
        layer: `l0`, `l1`, ...; empty where there is one.
        way: `reverse`; empty where it runs forward.
    """

    site: str
    layer: str
    way: str

    @property
    def label(self) -> str:
        """All in one, e.g. `encoder l1 reverse`."""
        return " ".join(part for part in (self.site, self.layer, self.way) if part)


class Placed(Step, Protocol):
    """What has a place, and can be folded."""

    @property
    def place(self) -> Place:
        """Where it is."""
        ...


P = TypeVar("P", bound=Placed)


@dataclass(frozen=True)
class Group(Generic[P]):
    """What one row holds.

    Attributes:
        label: a place, or a range of them.
        members: what is folded into it.
        alike: whether they are of one kind.
    """

    label: str
    members: tuple[P, ...]
    alike: bool = True


def placed(where: Iterable[tuple[str, int, bool]]) -> list[Place]:
    """How places are called: no more than tells them apart.

    Args:
        where: site, layer, and whether it runs backwards.

    Returns:
        One name each.
    """
    known = list(where)
    deep = {module(site) for site, layer, _ in known if layer}
    return [
        Place(
            words.clean(site) or "the model",
            f"l{layer}" if module(site) in deep else "",
            "reverse" if reverse else "",
        )
        for site, layer, reverse in known
    ]


def groups(found: Sequence[P], *, fold: bool = True) -> list[Group[P]]:
    """What is shown in one row each.

    Args:
        found: in their order.
        fold: whether alike ones are folded once there are more than a few.

    Returns:
        Groups in the same order.
    """
    if not fold or len(found) <= FEW:
        return [_single(one) for one in found]
    result: list[Group[P]] = []
    for units in stretches(found):
        if len(units) <= REPEATS:
            result += [_single(one) for unit in units for one in unit]
            continue
        result += [_single(one) for one in units[0]]
        result += [_group(column) for column in zip(*units[1:-1], strict=True)]
        result += [_single(one) for one in units[-1]]
    return _without_middle(result) if len(result) > ROWS else result


def middle(values: Sequence[float]) -> float:
    """Median of what is a number; nan where nothing is."""
    known = [v for v in values if not math.isnan(v)]
    return statistics.median(known) if known else math.nan


def module(site: str) -> str:
    """The module of a call, `path` of `path#2`."""
    return re.sub(r"#\d+$", "", site)


def _single(one: P) -> Group[P]:
    return Group(one.place.label, (one,))


def _group(found: Sequence[P]) -> Group[P]:
    return Group(_range(found[0].place, found[-1].place), tuple(found))


def _range(a: Place, b: Place) -> str:
    """`rnn l1 to l10 reverse`: what both have in common is said once."""
    if a == b:
        return a.label
    site = a.site if a.site == b.site else reach(a.site, b.site)
    layer = a.layer if a.layer == b.layer else f"{a.layer} to {b.layer}"
    return Place(site, layer, a.way if a.way == b.way else "").label


def _without_middle(found: list[Group[P]]) -> list[Group[P]]:
    keep = ROWS // 2
    hidden = tuple(itertools.chain.from_iterable(group.members for group in found[keep:-keep]))
    middle_ = Group(_range(hidden[0].place, hidden[-1].place), hidden, alike=False)
    return [*found[:keep], middle_, *found[-keep:]]
