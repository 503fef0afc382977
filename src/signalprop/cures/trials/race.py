"""Candidates against each other: legs over all seeds, and losers stopped between them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from signalprop.cures.trials.engine import Engine
from signalprop.cures.trials.leg import Outcome
from signalprop.cures.trials.store import run_leg

#: shares of the updates after which losers are stopped, and the whole
RUNGS = (0.25, 0.5, 1.0)
#: key of the network as it is, which always goes all the way
UNTOUCHED = "untouched"

#: called with legs done, legs in all (as far as is known), and what is running
Tell = Callable[[int, int, str], None]


@dataclass
class Track:
    """How far a candidate has come.

    Attributes:
        key: its name in the store.
        outcomes: of every leg, one for each seed.
        stopped: whether it has been stopped early.
    """

    key: str
    outcomes: list[tuple[Outcome, ...]] = field(default_factory=list)
    stopped: bool = False

    @property
    def metric(self) -> tuple[float, ...]:
        """Of every seed after the last leg."""
        return tuple(o.metric for o in self.outcomes[-1])


def rungs(steps: int) -> list[int]:
    """Updates after which candidates are compared."""
    return sorted({max(1, round(steps * share)) for share in RUNGS})


def race(
    tracks: Sequence[Track],
    seeds: Sequence[int],
    steps: int,
    engine: Engine,
    folder: str,
    tell: Tell,
) -> bool:
    """Run candidates, and stop the losers on the way.

    After a quarter and a half of the updates the better half goes on, and whatever cannot be told
    from it by the spread over the seeds; the untouched network always does.

    Args:
        tracks: candidates; filled in.
        seeds: the seeds.
        steps: updates of a whole training.
        engine: where legs run.
        folder: of the store.
        tell: called after every leg.

    Returns:
        Whether it went to its end; False after an interrupt. What was finished is in the tracks.
    """
    going = [t for t in tracks if not t.stopped]
    done = 0
    for rung in rungs(steps):
        calls = [(folder, t.key, seed, steps, rung) for t in going for seed in seeds]
        found: list[Outcome | None] = [None] * len(calls)
        try:
            for i, outcome in engine.run(run_leg, calls):
                found[i] = outcome
                done += 1
                tell(done, done + found.count(None), f"{calls[i][1]}, seed {calls[i][2]}")
        except KeyboardInterrupt:
            _take(going, found, len(seeds))
            return False
        _take(going, found, len(seeds))
        if rung < steps:
            going = _survivors(going)
    return True


def _take(going: Sequence[Track], found: list[Outcome | None], seeds: int) -> None:
    """Legs of which all seeds are done."""
    for i, track in enumerate(going):
        mine = found[i * seeds : (i + 1) * seeds]
        whole = tuple(o for o in mine if o is not None)
        if len(whole) == seeds:
            track.outcomes.append(whole)


def _survivors(going: Sequence[Track]) -> list[Track]:
    """The better half, and what cannot be told from it."""
    others = [t for t in going if t.key != UNTOUCHED]
    alive = [t for t in others if all(not o.failed for o in t.outcomes[-1])]
    ranked = sorted(alive, key=lambda t: -statistics.fmean(t.metric))
    kept = ranked[: math.ceil(len(ranked) / 2)]
    if kept:
        last = kept[-1]
        kept += [t for t in ranked[len(kept) :] if _near(t, last)]
    for track in others:
        track.stopped = track not in kept
    return [t for t in going if t.key == UNTOUCHED] + kept


def _near(track: Track, last: Track) -> bool:
    """Whether the spread over the seeds is larger than the difference."""
    if len(track.metric) < 2:
        return track.metric == last.metric
    gap = statistics.fmean(last.metric) - statistics.fmean(track.metric)
    spread = math.hypot(statistics.stdev(last.metric), statistics.stdev(track.metric))
    return gap <= spread / math.sqrt(len(track.metric))
