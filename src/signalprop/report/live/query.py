"""What a page may ask, and within which bounds: nothing that it sends is taken as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from signalprop.errors import SignalpropError

#: a step may have so many digits
DIGITS = 15
#: columns of a picture, and characters of a site's name in it
COLUMNS, LABEL = (8, 2000), (6, 80)
#: sites that are drawn as lines, runs in a picture
SITES, RUNS = 16, 16

_T = TypeVar("_T", bound=str)


@dataclass(frozen=True)
class Query:
    """A question of the page.

    Attributes:
        runs: indices of the runs.
        statistic: its name; None for the one that is shown first.
        start: the first step; None for the beginning.
        stop: the step to end before; None for the end.
        columns: at most so many.
        of: what is shown of joined steps: `mean`, `low`, `high`.
        scale: `value` or `change`.
        across: runs side by side.
        label: characters of a site's name.
        sites: indices of chosen sites, in the first of the runs.
        number: of a window.
    """

    runs: tuple[int, ...]
    statistic: str | None = None
    start: int | None = None
    stop: int | None = None
    columns: int = 300
    of: str = "mean"
    scale: str = "value"
    across: int = 1
    label: int = 28
    sites: tuple[int, ...] = ()
    number: int = 0


def parse(given: Mapping[str, str], runs: int) -> Query:
    """Understand a question.

    Args:
        given: its parameters.
        runs: how many runs there are.

    Returns:
        The question.

    Raises:
        SignalpropError: a parameter is unknown, or beyond its bounds.
    """
    names = set(Query.__dataclass_fields__)
    for name in given:
        if name not in names:
            raise SignalpropError("there is no such parameter")
    start, stop = _step(given, "start"), _step(given, "stop")
    if start is not None and stop is not None and stop <= start:
        raise SignalpropError("stop must lie behind start")
    statistic = given.get("statistic")
    if statistic is not None and len(statistic) > 200:
        raise SignalpropError("there is no such statistic")
    return Query(
        runs=_numbers(given, "runs", runs, RUNS) or tuple(range(min(runs, RUNS))),
        statistic=statistic,
        start=start,
        stop=stop,
        columns=_number(given, "columns", 300, *COLUMNS),
        of=_one_of(given, "of", ("mean", "low", "high")),
        scale=_one_of(given, "scale", ("value", "change")),
        across=_number(given, "across", 1, 1, 4),
        label=_number(given, "label", 28, *LABEL),
        sites=_numbers(given, "sites", 1 << 20, SITES),
        number=_number(given, "number", 0, 0, 1 << 20),
    )


def _step(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= DIGITS):
        raise SignalpropError(f"{name} must be a whole number of at most {DIGITS} digits")
    return int(text)


def _number(given: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 8 and low <= int(text) <= high):
        raise SignalpropError(f"{name} must be a whole number from {low} to {high}")
    return int(text)


def _numbers(given: Mapping[str, str], name: str, below: int, most: int) -> tuple[int, ...]:
    text = given.get(name, "")
    if not text:
        return ()
    parts = text.split(",") if len(text) < 400 else []
    good = all(p.isascii() and p.isdigit() and len(p) <= 8 and int(p) < below for p in parts)
    if not parts or len(parts) > most or not good:
        raise SignalpropError(f"{name} must be at most {most} numbers below {below}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _one_of(given: Mapping[str, str], name: str, known: Sequence[_T]) -> _T:
    text = given.get(name, known[0])
    for one in known:
        if one == text:
            return one
    raise SignalpropError(f"{name} must be one of {', '.join(known)}")
