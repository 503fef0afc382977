"""Does the horizon before training foretell which cell solves which task?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: ln of the credit that float32 rounds away, and of 1/e
SILENT, SHORT = math.log(2.0**-23), -1.0


@dataclass(frozen=True)
class Foretold:
    """How well credit at the lag tells who solves the task.

    Attributes:
        pairs: of a cell and a task.
        solved: of these, by at least half of the runs.
        auc: chance that a pair that was solved had more credit than one that was not; nan where all
            are of one kind.
        rank: Spearman's rank correlation of credit and the share of runs that solved the task.
        silent: share of right answers of "solved, if credit at the lag is above rounding".
        short: the same with 1/e as the bound.
        most: share of right answers of always giving the more frequent one.
        unreached: of the pairs whose credit drowns before the lag, the share that was not solved.
        reached: of the others, the share that was solved.
    """

    pairs: int
    solved: int
    auc: float
    rank: float
    silent: float
    short: float
    most: float
    unreached: float
    reached: float


def judge_pairs(credit: Sequence[float], share: Sequence[float]) -> Foretold:
    """Hold credit (ln, at the lag, before training) against the share of runs that solved it.

    Args:
        credit: one per pair.
        share: of the runs, one per pair.

    Returns:
        How well one tells the other.
    """
    won = [s >= 0.5 for s in share]
    good = [c for c, w in zip(credit, won, strict=True) if w]
    bad = [c for c, w in zip(credit, won, strict=True) if not w]
    auc = math.nan
    if good and bad:
        more = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
        auc = more / (len(good) * len(bad))

    def right(bound: float) -> float:
        return sum((c >= bound) == w for c, w in zip(credit, won, strict=True)) / len(won)

    def part(wins: list[bool]) -> float:
        return sum(wins) / len(wins) if wins else math.nan

    pairs = list(zip(credit, won, strict=True))
    return Foretold(
        len(won), sum(won), auc, correlation(ranks(credit), ranks(share)),
        right(SILENT), right(SHORT), max(sum(won), len(won) - sum(won)) / len(won),
        part([not w for c, w in pairs if c < SILENT]), part([w for c, w in pairs if c >= SILENT]),
    )  # fmt: skip


def ranks(values: Sequence[float]) -> list[float]:
    """From 1, equal values share theirs."""
    order = sorted(values)
    first = {v: i for i, v in reversed(list(enumerate(order)))}
    count = {v: order.count(v) for v in first}
    return [first[v] + (count[v] + 1) / 2 for v in values]


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's; nan where one does not vary."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    xx, yy = sum((a - mx) ** 2 for a in x), sum((b - my) ** 2 for b in y)
    if xx == 0 or yy == 0:
        return math.nan
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / math.sqrt(xx * yy)
