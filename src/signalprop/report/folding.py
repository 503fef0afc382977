"""Repeated steps found in a sequence, and the names of ranges of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

#: the longest pattern of steps that is recognised as repeated
PERIOD = 16
#: from so many alike units on, a stretch counts as repeated
REPEATS = 3


class Step(Protocol):
    """What can be folded."""

    @property
    def name(self) -> str:
        """Its path, with dots."""
        ...

    @property
    def like(self) -> tuple[object, ...]:
        """Equal for steps that are alike."""
        ...


S = TypeVar("S", bound=Step)


def stretches(steps: Sequence[S]) -> Iterator[list[Sequence[S]]]:
    """Cuts the steps into stretches of alike units; a unit is one or more steps."""
    at = 0
    while at < len(steps):
        period, repeats = 1, 1
        for size in range(1, min(PERIOD, (len(steps) - at) // 2) + 1):
            found = _repeats(steps, at, size)
            # a longer pattern has to cover more, else two of a kind would count as one
            if found >= REPEATS and size * found > period * repeats:
                period, repeats = size, found
        shift = _shift(steps, at, period) if repeats > 1 else 0
        for step in steps[at : at + shift]:
            yield [[step]]
        at += shift
        repeats = _repeats(steps, at, period) if shift else repeats
        end = at + period * repeats
        yield [steps[i : i + period] for i in range(at, end, period)]
        at = end


def _repeats(steps: Sequence[Step], at: int, size: int) -> int:
    count = 1
    while _alike(steps, at, at + count * size, size):
        count += 1
    return count


def _shift(steps: Sequence[Step], at: int, period: int) -> int:
    """Where units begin: a repeated `relu, add` is `add, relu` where that makes a module."""
    best, depth = 0, -1.0
    for shift in range(period):
        count = _repeats(steps, at + shift, period) if at + shift + period <= len(steps) else 1
        if count < REPEATS:
            continue
        starts = [at + shift + i * period for i in range(count)]
        mean = sum(len(shared([s.name for s in steps[i : i + period]])) for i in starts) / count
        if mean > depth:
            best, depth = shift, mean
    return best


def _alike(steps: Sequence[Step], a: int, b: int, size: int) -> bool:
    if b + size > len(steps):
        return False
    return all(steps[a + i].like == steps[b + i].like for i in range(size))


def shared(names: Sequence[str]) -> list[str]:
    """The parts of a path that all names begin with."""
    common = names[0].split(".")
    for name in names[1:]:
        parts = name.split(".")
        same = 0
        while same < min(len(common), len(parts)) and common[same] == parts[same]:
            same += 1
        common = common[:same]
    return common


def reach(first: str, last: str) -> str:
    """`h.1 to 10`: what both names begin with is said once."""
    start, end = first.split(" to ")[0], last.split(" to ")[-1]
    if start == end:
        return start
    same = shared([start, end])
    rest = end.split(".")[len(same) :] if same and len(same) < len(end.split(".")) else [end]
    return f"{start} to {'.'.join(rest)}"
