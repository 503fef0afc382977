"""When a statistic and its twin agree."""

from __future__ import annotations

import math

# What a number is compared relative to. A mean is a sum in which signs cancel, so its natural
# scale is the rms; a variance is a difference of squares, so its scale is the mean square; a
# cosine's scale is 1. Everything else is a sum of positive terms: relative to itself.
EXACT = {"zeros", "alive", "finite", "saturated", "dead", "units"}
TOLERANCE = 1e-5


def same(field, ours, theirs, scale):
    if theirs is None or ours is None or field in EXACT:
        return ours == theirs
    if math.isnan(theirs):
        return math.isnan(ours)
    return abs(ours - theirs) <= TOLERANCE * scale


def wrong(ours, theirs):
    """The fields that differ, with both values."""
    size = theirs["rms"]
    scales = {"mean": size, "variance": size**2, "cosine": 1.0, "token_cosine": 1.0}
    return {
        field: (getattr(ours, field), value)
        for field, value in theirs.items()
        if not same(field, getattr(ours, field), value, scales.get(field, abs(value or 0.0)))
    }
