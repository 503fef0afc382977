"""What the constructors of this room refuse, said in one sentence."""

from __future__ import annotations

import math


def whole(name: str, value: int, least: int = 1) -> int:
    """`value`, if it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} has to be a whole number of at least {least}, not {value!r}")
    return value


def number(name: str, value: float) -> float:
    """`value` as a float, if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} has to be a finite number, not {value!r}")
    return float(value)


def within(name: str, value: float, low: float, high: float) -> float:
    """`value` as a float, if it lies strictly between the two."""
    if not low < number(name, value) < high:
        raise ValueError(f"{name} has to lie between {low:g} and {high:g}, not at {value!r}")
    return float(value)


def rate(name: str, value: float) -> float:
    """`value` as a float, if it is a share of units that may be dropped: 0 <= value < 1."""
    if not 0.0 <= number(name, value) < 1.0:
        raise ValueError(f"{name} has to be at least 0 and below 1, not {value!r}")
    return float(value)


def odd(name: str, value: int) -> int:
    """`value`, if it is an odd kernel size, which keeps the image's size without shifting it."""
    if whole(name, value) % 2 == 0:
        raise ValueError(f"{name} has to be odd, so that the output keeps the size, not {value}")
    return value
