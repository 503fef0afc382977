"""What mean-field theory expects of the rows that are shown, beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from signalprop.report import words
from signalprop.report.ladder import Row
from signalprop.theory.expect import BlockExpectation

Expected = Mapping[str, BlockExpectation]


def of_row(expected: Expected, row: Row) -> float | None:
    """Nats that theory expects over a row, or None where it has no closed form for a part of it."""
    known = [expected[name].expected for name in row.sites if name in expected]
    finite = [nats for nats in known if nats is not None and math.isfinite(nats)]
    return sum(finite) if finite and len(finite) == len(known) else None


def of_rows(expected: Expected, rows: Sequence[Row]) -> list[float | None]:
    """The same of every row."""
    return [of_row(expected, row) for row in rows]


def sentence(expected: Expected) -> str:
    """Theory against measurement in one sentence; empty where theory says nothing."""
    known = [
        (b, b.expected)
        for b in expected.values()
        if b.expected is not None and math.isfinite(b.expected) and math.isfinite(b.measured)
    ]
    if not known:
        return ""
    total = sum(nats for _, nats in known)
    measured = sum(b.measured for b, _ in known)
    block, nats = max(known, key=lambda pair: abs(pair[0].measured - pair[1]))
    off = block.measured - nats
    which = "all" if len(known) == len(expected) else f"{len(known)} of {len(expected)}"
    return (
        f"Mean-field theory expects {words.nats(total, sign=True)} nats over {which} blocks, "
        f"measured {words.nats(measured, sign=True)}; furthest off is "
        f"{words.clean(block.end)}, by {words.nats(off, sign=True)}."
    )
