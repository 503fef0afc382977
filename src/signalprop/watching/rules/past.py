"""What is remembered of a run, in memory that does not grow with its length.

Samples are joined to blocks of `BLOCK`, by the median of each value, which two outliers of a batch
do not move. A block's values are compared with the *reference*: their median over the run so far,
without the last `DELAY` blocks, from at most `KEPT` blocks spread evenly over it. What a rule sees
must last: for three blocks and a tenth of the run (`Past.lasting`). So the time after which
something is told grows with the run, and the number of chances to be wrong only with its logarithm.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from signalprop.watching.file.schema import RunSite
from signalprop.watching.rules.arrays import column_medians, grown, middle
from signalprop.watching.rules.losses import Losses
from signalprop.watching.rules.overflow import Finite, Skips
from signalprop.watching.rules.ring import Ring
from signalprop.watching.sample import Floats

#: samples in a block
BLOCK = 5
#: blocks before one counts as the past
DELAY = 3
#: blocks of the past that are kept, at most
KEPT = 32
#: steps before which nothing is compared with the past: training has hardly begun
SETTLES = 200

STATISTICS = (
    "delta_rms", "update_ratio", "gradient_norm", "weight_norm", "learning_share", "dead",
    "attention_entropy", "attention_entropy_most", "attention_logit",
)  # fmt: skip
#: what is compared over time, made from the statistics of a block
COMPARED = ("delta", "ratio", "push", "share", "dead", "entropy", "logit")


class Held:
    """Since when a condition holds, per site.

    Attributes:
        since: (sites,), step of the first block of it.
        blocks: (sites,), for how many blocks; a block where it does not hold takes off two.
    """

    def __init__(self) -> None:
        self.since = np.zeros(0, dtype=np.int64)
        self.blocks = np.zeros(0, dtype=np.int64)

    def update(self, mask: NDArray[np.bool_], step: int) -> None:
        """Take the answer of one block."""
        if len(mask) > len(self.blocks):
            more = len(mask) - len(self.blocks)
            self.blocks = np.append(self.blocks, np.zeros(more, dtype=np.int64))
            self.since = np.append(self.since, np.zeros(more, dtype=np.int64))
        self.since[mask & (self.blocks == 0)] = step
        self.blocks += np.where(mask, 1, -2)
        np.maximum(self.blocks, 0, out=self.blocks)


class Past:
    """The memory that rules over time judge by.

    Attributes:
        step: the present one.
        first: the first one.
        samples: how many were seen.
        blocks: how many blocks were closed.
        sites: all known by now.
        scalars: the last value of every scalar.
        known: names of statistics and scalars that were seen.
        ring: the last steps at full resolution.
        losses: the loss.
        skips: updates that were skipped, and the loss scale.
        finite: where the first value that is not finite was seen.
        now: per name of `COMPARED`, and `size`, `rate` and `level`, (sites,) of the last block:
            `delta` ln delta_rms; `push` ln(|g||w|) and `ratio` ln(|dw|/|w|), both against the
            median layer of the model; `share` learning share; `entropy` as a share of the largest
            one; `logit` ln of the largest; `size` |w|; `rate` |dw|/|w|; `level` ln|g|.
        before: the same of the reference; empty while there is none.
        path: (sites,), sum of |dw|/|w| over all steps so far: the way the weights have gone.
        trend: blocks' first step, ln|g| and ln(|g||w|) of the median layer, at most 64 blocks.
    """

    def __init__(self) -> None:
        self.step, self.first, self.samples, self.blocks = 0, -1, 0, 0
        self.sites: tuple[RunSite, ...] = ()
        self.scalars: dict[str, float] = {}
        self.known: set[str] = set()
        self.ring = Ring()
        self.losses = Losses()
        self.skips = Skips()
        self.finite = Finite()
        self.now: dict[str, Floats] = {}
        self.before: dict[str, Floats] = {}
        self.path = np.zeros(0)
        self.trend: list[tuple[int, float, float]] = []
        self.models: list[NDArray[np.intp]] = []
        self.block_start = 0
        self._raw = np.full((BLOCK, len(STATISTICS), 0), np.nan)
        self._late: deque[Floats] = deque()
        self._kept = np.full((KEPT, len(COMPARED), 0), np.nan)
        self._count, self._stride, self._offered, self._trend_stride = 0, 1, 0, 1
        self._held: dict[str, Held] = {}
        self._last_sample = -1

    # ---------------------------------------------------------------- taking in

    def add_sites(self, sites: tuple[RunSite, ...]) -> None:
        """Make sites known: all so far, and new ones after them."""
        if len(sites) <= len(self.sites):
            return
        self.sites = tuple(sites)
        count = len(sites)
        self.ring.width = count
        self._raw = grown(self._raw, count, np.nan)
        self._kept = grown(self._kept, count, np.nan)
        self.path = np.append(self.path, np.zeros(count - len(self.path)))
        names = np.array([site.model for site in sites])
        self.models = [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]

    def sample(self, step: int, values: Mapping[str, Floats]) -> bool:
        """Take a sampled step.

        Args:
            step: its number.
            values: per statistic, (sites,).

        Returns:
            Whether it closed a block.
        """
        row, count = self.samples % BLOCK, len(self.sites)
        if row == 0:
            self.block_start = step
        self.samples += 1
        raw = self._raw[row]
        raw.fill(np.nan)
        for place, name in enumerate(STATISTICS):
            value = values.get(name)
            if value is not None:
                raw[place, : len(value)] = value
        if row == 0:
            self.known.update(values)
        ratio = raw[1, :count]
        between = max(step - self._last_sample, 1) if self._last_sample >= 0 else 1
        self.path += np.where(np.isfinite(ratio), ratio, 0.0) * between
        self._last_sample = step
        if row < BLOCK - 1:
            return False
        self._close(count)
        return True

    def _close(self, count: int) -> None:
        """Make a block of the samples, and the past of the block that is old enough."""
        median = dict(zip(STATISTICS, column_medians(self._raw[:, :, :count]), strict=True))
        self.blocks += 1
        rate, size = median["update_ratio"], median["weight_norm"]
        with np.errstate(divide="ignore", invalid="ignore"):
            level = np.log(median["gradient_norm"])
            push = level + np.log(size)
            made = {
                "delta": np.log(median["delta_rms"]),
                "ratio": np.log(rate),
                "push": push.copy(),
                "share": median["learning_share"],
                "dead": median["dead"],
                "entropy": median["attention_entropy"] / median["attention_entropy_most"],
                "logit": np.log(median["attention_logit"]),
            }
        for name in ("ratio", "push"):
            for model in self.models:
                made[name][model] -= middle(made[name][model])
        self.now = {**made, "size": size, "rate": rate, "level": level}
        self._trend(middle(level), middle(push))
        stack = np.stack([made[name] for name in COMPARED])
        stack[np.isposinf(stack)] = np.nan
        self._late.append(stack)
        if len(self._late) > DELAY:
            self._remember(self._late.popleft())

    def _remember(self, old: Floats) -> None:
        """Keep every so manieth block, twice as far apart whenever the room is full."""
        self._offered += 1
        if (self._offered - 1) % self._stride:
            return
        if self._count == KEPT:
            half = KEPT // 2
            self._kept[:half] = self._kept[::2].copy()
            self._count, self._stride = half, 2 * self._stride
            if (self._offered - 1) % self._stride:
                return
        self._kept[self._count, :, : old.shape[1]] = old
        self._kept[self._count, :, old.shape[1] :] = np.nan
        self._count += 1
        reference = column_medians(self._kept[: self._count, :, : len(self.sites)])
        self.before = dict(zip(COMPARED, reference, strict=True))

    def _trend(self, level: float, push: float) -> None:
        if (self.blocks - 1) % self._trend_stride:
            return
        self.trend.append((self.block_start, level, push))
        if len(self.trend) >= 64:
            self.trend = self.trend[::2]
            self._trend_stride *= 2

    # ---------------------------------------------------------------- answering

    @property
    def comparable(self) -> bool:
        """Whether there is a past to compare with."""
        return self._count >= 2 and self.step - self.first >= SETTLES

    def shift(self, name: str) -> Floats:
        """How far a value of `COMPARED` lies above its reference, per site; nan if not known."""
        with np.errstate(invalid="ignore"):
            return self.now[name] - self.old(name)

    def old(self, name: str) -> Floats:
        """The reference of a value, per site; nan where there is none."""
        before, now = self.before.get(name), self.now[name]
        old = np.full(len(now), np.nan)
        if before is not None:
            old[: len(before)] = before
        return old

    def lasting(
        self, key: str, mask: NDArray[np.bool_], *, steps: float = 0, begins: bool = True
    ) -> NDArray[np.bool_]:
        """Where a condition has held for three blocks, a tenth of all blocks, and so many steps.

        Args:
            key: name of the condition, of the rule's own.
            mask: (sites,) or (models,), whether it holds in this block.
            steps: it must have held for.
            begins: whether it may begin now; one that holds already goes on.

        Returns:
            The same shape.
        """
        held = self._held.setdefault(key, Held())
        if not begins:
            known = np.zeros(len(mask), dtype=bool)
            known[: len(held.blocks)] = held.blocks > 0
            mask = mask & known
        held.update(mask, self.block_start)
        enough = held.blocks >= max(3, math.ceil(0.1 * self.blocks))
        return mask & enough & (self.step - held.since >= steps)

    def since(self, key: str, mask: NDArray[np.bool_]) -> int:
        """The step at which a lasting condition set in first."""
        return int(self._held[key].since[mask].min())

    def names(self, picked: NDArray[np.intp] | list[int]) -> list[str]:
        """Names of sites by index."""
        return [self.sites[int(i)].name for i in picked]
