"""The blocks between two sites as a few rows: alike ones are folded into one with a range."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from signalprop.jacobian.spectra import BlockSpectrum, Spectrum
from signalprop.report import words
from signalprop.report.folding import REPEATS, reach, stretches
from signalprop.report.ladder import ROWS, SEGMENTS, SHORT
from signalprop.report.spectra.said import known, middle, middles, sure

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: blocks that alternate, as a linear layer and its activation do, repeat within so many
ALTERNATE = 6


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        label: end of the block, or a range of them.
        blocks: what is folded into it, from the input up.
        every: the folded blocks are every so many-th.
        alike: whether they are of one kind.
    """

    label: str
    blocks: tuple[BlockSpectrum, ...]
    every: int = 1
    alike: bool = True

    @property
    def quantiles(self) -> list[float]:
        """5, 25, 50, 75 and 95% of the known singular values of all its blocks, 0 if lost."""
        if any(block.spectrum.distribution is not None for block in self.blocks):
            each = np.array([_quantiles(block.spectrum) for block in self.blocks])
            return [float(q) for q in np.median(each, axis=0)]
        values = np.concatenate([sure(block.spectrum).ravel() for block in self.blocks])
        return [float(q) for q in np.quantile(values, QUANTILES)]

    @property
    def largest(self) -> tuple[float, ...]:
        """s_1 of every block."""
        return self._each(lambda block: middle(block.spectrum.largest))

    @property
    def mean_square(self) -> tuple[float, ...]:
        """Mean square of every block."""
        return self._each(lambda block: middle(block.spectrum.mean_square))

    @property
    def condition(self) -> tuple[float, ...]:
        """Condition of every block of which it is known."""
        return self._each(lambda block: middle(block.spectrum.condition))

    @property
    def branch(self) -> tuple[float, ...]:
        """s_1(X) of every residual block."""
        return self._each(lambda block: middle(block.branch.largest) if block.branch else None)

    @property
    def whole(self) -> bool:
        """Whether it is known how all singular values are distributed."""
        return all(known(block.spectrum) for block in self.blocks)

    def _each(self, of: Callable[[BlockSpectrum], float | None]) -> tuple[float, ...]:
        return tuple(value for block in self.blocks if (value := of(block)) is not None)


def _quantiles(s: Spectrum) -> np.ndarray:
    if s.distribution is None:
        return np.quantile(sure(s), QUANTILES)
    return np.interp(QUANTILES, s.distribution.shares, middles(s.distribution.quantiles))


@dataclass(frozen=True)
class _Step:
    name: str
    like: tuple[object, ...]
    block: BlockSpectrum


def rows(blocks: Sequence[BlockSpectrum], *, fold: bool = True) -> list[Row]:
    """The rows of a ladder of blocks.

    Args:
        blocks: from the input up.
        fold: whether alike blocks are folded once there are more than a few.

    Returns:
        Rows from the input up.
    """
    if not fold or len(blocks) <= SHORT:
        return [_single(block) for block in blocks]
    result: list[Row] = []
    for units in stretches(_steps(blocks)):
        if len(units) <= REPEATS:
            result += [_single(step.block) for unit in units for step in unit]
            continue
        result += [_single(step.block) for step in units[0]]
        for part in _segments(units[1:-1]):
            result += _positions(part)
        result += [_single(step.block) for step in units[-1]]
    return _without_middle(result) if len(result) > ROWS else result


def centre(values: Sequence[float]) -> float | None:
    """Median of one number of the blocks of a row; None where none has it."""
    return middle(np.array(values)) if values else None


# ---- which blocks are alike ------------------------------------------------------------------


def _steps(blocks: Sequence[BlockSpectrum]) -> list[_Step]:
    looks = [_look(block) for block in blocks]
    steps: list[_Step] = []
    for look, group in itertools.groupby(range(len(blocks)), key=lambda i: looks[i]):
        run = list(group)
        every = _alternation([blocks[i] for i in run])
        steps += [
            _Step(blocks[i].end, (*look, place % every), blocks[i]) for place, i in enumerate(run)
        ]
    return steps


def _look(block: BlockSpectrum) -> tuple[object, ...]:
    s = block.spectrum
    name = re.sub(r"\d+", "#", block.end)
    return name, block.residual, s.rows, s.columns, s.values.shape[1], s.whole


def _alternation(run: Sequence[BlockSpectrum]) -> int:
    """With which period blocks of one name and shape repeat: a linear layer, then its slope."""
    seen = np.array([[_log(middle(b.spectrum.largest)), _spread(b)] for b in run])
    apart = [
        float(np.median(np.abs(seen[p:] - seen[:-p]).sum(axis=1)))
        for p in range(1, ALTERNATE + 1)
        if len(run) > REPEATS * p
    ]
    # a trend is no alternation: along it, blocks further apart differ more
    return next((p for p, gap in enumerate(apart, start=1) if gap < 0.4 * apart[0]), 1)


def _spread(block: BlockSpectrum) -> float:
    low, high = np.quantile(sure(block.spectrum), (0.25, 0.95))
    return _log(float(high)) - _log(float(low))


def _log(value: float | None) -> float:
    return math.log(value) if value is not None and 0 < value < math.inf else -50.0


# ---- folding ---------------------------------------------------------------------------------


def _single(block: BlockSpectrum) -> Row:
    return Row(words.clean(block.end), (block,))


def _positions(units: Sequence[Sequence[_Step]]) -> list[Row]:
    """One row for every block of a repeated unit."""
    period = len(units[0])
    result = []
    for steps in zip(*units, strict=True):
        first, last = words.clean(steps[0].name), words.clean(steps[-1].name)
        result.append(Row(reach(first, last), tuple(step.block for step in steps), period))
    return result


def _segments(units: list[Sequence[_Step]]) -> list[list[Sequence[_Step]]]:
    """One row where the spectrum hardly changes, more where its course should be seen."""
    logs = [
        [_log(middle(step.block.spectrum.largest)) / math.log(10) for step in unit]
        for unit in units
    ]
    decades = float(np.ptp(np.array(logs), axis=0).max())
    count = max(1, min(SEGMENTS, math.ceil(2 * decades), len(units) // 2))
    cuts = [round(i * len(units) / count) for i in range(count + 1)]
    return [units[a:b] for a, b in itertools.pairwise(cuts)]


def _without_middle(found: list[Row]) -> list[Row]:
    keep = ROWS // 2
    hidden = found[keep:-keep]
    blocks = tuple(block for row in hidden for block in row.blocks)
    label = reach(hidden[0].label, hidden[-1].label)
    return [*found[:keep], Row(label, blocks, alike=False), *found[-keep:]]
