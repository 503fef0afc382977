"""How many updates a training gets."""

from __future__ import annotations

import re
import statistics
import time
from dataclasses import replace

from signalprop.capture.sandbox import random_state
from signalprop.cures.surgery import copied
from signalprop.cures.training import Training
from signalprop.cures.trials.data import Data
from signalprop.cures.trials.leg import Runner
from signalprop.errors import SignalpropError

#: updates of a training that a budget of time gives, at least and at most
FEWEST, MOST = 60, 20_000


def step_seconds(training: Training, data: Data, batch_dim: int) -> float:
    """Seconds of one update of the network as it is, on a copy."""
    own = replace(training, model=copied(training.model))
    runner = Runner(own, data, seed=0, total=12, batch_dim=batch_dim)
    started, times = time.perf_counter(), list[float]()
    with random_state():
        for until in range(1, 13):
            begun = time.perf_counter()
            runner.train(until)
            times.append(time.perf_counter() - begun)
            if time.perf_counter() - started > 5:
                break
    return max(statistics.median(times), 1e-5)


def steps_within(limit: float, per_step: float, *, legs: float, workers: int, rounds: int) -> int:
    """Updates of each training that fit into the time; rounds after the first are smaller."""
    whole = limit * workers / (per_step * max(legs, 1) * (1 + 0.5 * (rounds - 1)))
    return int(min(max(whole, FEWEST), MOST))


def seconds_of(budget: str | int) -> float:
    """The seconds of `90s`, `2min` or `1h`; 0 of a number of updates.

    Returns:
        Seconds.

    Raises:
        SignalpropError: it is neither.
    """
    if isinstance(budget, int):
        if budget < 1:
            raise SignalpropError(f"budget={budget} updates; give at least 1, or a time: '2min'")
        return 0.0
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|min|m|h)\s*", budget)
    if found is None or not float(found[1]):
        raise SignalpropError(
            f"budget={budget!r}; give a time (90s, 2min, 1h) or a number of updates"
        )
    return float(found[1]) * {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}[found[2]]
