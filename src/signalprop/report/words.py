"""Numbers and names as people read them: never `nan`, `-inf`, or a name that breaks the line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

#: kinds of operation in the narrow column of the ladder
SHORT_KINDS: dict[str, str] = {
    "input": "input",
    "weights": "weights",
    "slope": "slope",
    "normalisation": "norm",
    "skip": "skip",
    "attention": "attention",
    "pooling": "pooling",
    "other": "other",
}


def number(value: float | None) -> str:
    """A measured size in three significant digits, or in words where it is not one."""
    if value is None:
        return "none"
    if math.isnan(value):
        return "no number"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == 0:
        return "zero"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def nats(value: float, *, sign: bool = False) -> str:
    """A decay in nats; `to zero` where delta becomes exactly zero."""
    if math.isnan(value):
        return "no number"
    if math.isinf(value):
        return "to zero" if value < 0 else "infinite"
    digits = 1 if abs(value) >= 9.995 else 2
    value = round(value, digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """A share as a percentage that does not round a small one to nothing."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return number(value)
    if value == 0:
        return "0%"
    percent = 100 * value
    if abs(percent) < 0.1:
        return f"{'-' if value < 0 else ''}<0.1%"
    return f"{percent:.1f}%" if abs(percent) < 10 else f"{percent:.0f}%"


def quantity(value: float, unit: str) -> str:
    """A finding's number with its unit: `-38.2 nats`, `97% of units`."""
    if unit.startswith("share") and math.isfinite(value):
        rest = unit.removeprefix("share").strip()
        return f"{share(value)} {rest}".strip()
    if math.isnan(value):
        return "not a number"
    if unit.startswith("nats"):
        return "to exactly zero" if value == -math.inf else f"{nats(value)} {unit}"
    return f"{number(value) if value else 0} {unit}".strip()


def clean(name: str) -> str:
    """A name without control characters, which could rewrite a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def shorten(name: str, width: int, *, dots: str = "…") -> str:
    """A name cut in the middle: what makes it unique stands at its ends."""
    if len(name) <= width:
        return name
    if width <= len(dots) + 1:
        return name[:width]
    room = width - len(dots)
    tail = (room + 1) // 2
    return name[: room - tail] + dots + name[len(name) - tail :]


def listed(items: Iterable[str], limit: int = 3) -> str:
    """The first few items, and how many there are beyond."""
    names = list(items)
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" +{more} more" if more > 0 else "")


def plural(count: int, noun: str) -> str:
    """`1 site`, `12 sites`."""
    many = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count} {noun if count == 1 else many}"


def split_sentence(
    decay: float, split: Mapping[Any, float], first: str, last: str, labels: Mapping[str, str]
) -> str:
    """The decay of the whole spine and its split by kind, largest part first.

    Args:
        decay: the whole, in nats.
        split: its parts by kind; they add up to the whole.
        first: name of the spine site at the input end.
        last: name of the spine site at the output end.
        labels: how the kinds are called.

    Returns:
        For example `lost 38.2 nats from 30 back to 1: activation slope -27.1, weights -11.1`.
    """
    where = f"from {last} back to {first}"
    if math.isnan(decay):
        return f"the error signal is not a number somewhere {where}, so there is no sum"
    parts = sorted(split.items(), key=lambda item: (not math.isinf(item[1]), -abs(item[1])))
    shown = [(kind, v) for kind, v in parts if not abs(v) < 0.005] or parts[:1]
    by_kind = ", ".join(f"{labels.get(kind, kind)} {nats(v, sign=True)}" for kind, v in shown)
    if math.isinf(decay):
        head = "all of the error signal lost" if decay < 0 else "the error signal is infinite"
    elif abs(decay) < 0.005:
        head = "kept, 0.00 nats"
    else:
        head = f"{'lost' if decay < 0 else 'gained'} {nats(abs(decay))} nats"
    return f"{head} {where}" + (f": {by_kind}" if by_kind else "")
