"""How large the quick and the full run are, and how long they take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch

from signalprop.studies.frame import Setup
from signalprop.studies.tables.models import NETWORKS, SELU
from signalprop.studies.tables.search import Grid, accuracy, cross_entropy
from signalprop.studies.tables.training import Budget, Problem, Rows, fit


@dataclass(frozen=True)
class Plan:
    """Sizes of a run.

    Attributes:
        rows: fewest and most rows of the UCI sets.
        sets: so many of them at most, the smallest.
        grid: settings tried on UCI.
        budget: training of every network there.
        nested: settings tried on HTRU2 and Tox21.
        nested_budget: training of every network there.
        folds: of the ten folds of HTRU2, how many are tested.
        molecules: of Tox21, at most; None for all. With 0 it is not run: of a part of them nothing
            could be said about the published value.
        repeats: random splits of Tox21, and seeds of the scaffold split.
    """

    rows: tuple[int, int]
    sets: int | None
    grid: Grid
    budget: Budget
    nested: Grid
    nested_budget: Budget
    folds: int
    molecules: int | None
    repeats: int


FULL = Plan(
    rows=(1000, 5000), sets=None,
    grid=Grid(64, (3, 9), (1e-3, 1e-2), (0.0, 0.05), 200, (0.5, 1, 2), (1, 10, 100), (0.25, 1, 4)),
    budget=Budget(600),
    nested=Grid(64, (3, 9), (1e-3, 1e-2), (0.0, 0.05), 100, (1,), (1, 10), (1,)),
    nested_budget=Budget(400),
    folds=10, molecules=None, repeats=3,
)  # fmt: skip
QUICK = Plan(
    rows=(1000, 5000), sets=5,
    grid=Grid(32, (3, 9), (1e-3, 1e-2), (0.0,), 50, (1,), (1, 10), (1,)),
    budget=Budget(150, every=30, patience=3),
    nested=Grid(32, (3,), (1e-3, 1e-2), (0.0,), 50, (1,), (1,), (1,)),
    nested_budget=Budget(400, every=50, patience=3),
    folds=3, molecules=0, repeats=1,
)  # fmt: skip
#: the quick run without UCI-121: it shows that everything works, and is no evidence
STAND_IN = replace(
    QUICK, grid=replace(QUICK.grid, depths=(3,)), budget=Budget(75, every=25, patience=3)
)


@dataclass
class Clock:
    """Says how far the run is, out of measured and expected times.

    Attributes:
        setup: who is told.
        speed: of this machine against the one the expected times are of.
        expected: seconds of all parts there.
        done: seconds of those that are done.
        start: when it started.
    """

    setup: Setup
    speed: float
    expected: float
    done: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def begin(self, doing: str) -> None:
        """Say how long it will take, before anything is done."""
        self.setup.at(0.0, f"this takes about {spoken(self.expected / self.speed)}: {doing}")

    def at(self, doing: str) -> None:
        """Say what is done next, and how long the rest takes."""
        gone = time.perf_counter() - self.start
        share = min(self.done / self.expected, 0.99)
        # the expected times are believed at first, the measured ones from a quarter on
        belief = min(4 * share, 1.0)
        whole = (1 - belief) * self.expected / self.speed + belief * gone / max(share, 1e-9)
        self.setup.at(share, f"{doing}; about {spoken((1 - share) * whole)} left")

    def add(self, seconds: float) -> None:
        """So many of the expected seconds are done."""
        self.done += seconds


def spoken(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{max(round(seconds, -1), 10):.0f} s"
    return f"{seconds / 60:.0f} min"


#: seconds that `probe` takes on the machine of the expected times
PROBE = 0.12


def probe() -> float:
    """How fast this machine trains, against that of the expected times."""
    x, y = torch.randn(400, 20), torch.arange(400) % 5
    task = Problem(x, y, 5, cross_entropy, accuracy)
    rows = [Rows(torch.arange(300), torch.arange(300, 400))] * 4

    def train(steps: int) -> float:
        start = time.perf_counter()
        fit(lambda: NETWORKS[SELU](20, 64, 9, 5, 0.05), task, rows, [1e-3] * 4, Budget(steps))
        return time.perf_counter() - start

    train(2)  # what torch does once
    return PROBE / train(15)


def network_seconds(grid: Grid, budget: Budget, models: int) -> float:
    """Seconds for all six networks, `models` of each, on the machine of the expected times."""
    depth = sum(grid.depths) / len(grid.depths)
    return len(NETWORKS) * models * budget.steps * (0.4 + 0.16 * depth) * 1e-3
