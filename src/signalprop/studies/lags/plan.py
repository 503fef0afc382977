"""What is trained on what, for how many sequences, and how long that takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from signalprop.studies import tasks
from signalprop.studies.frame import Setup
from signalprop.studies.lags import cells, training
from signalprop.studies.lags.training import Job, Outcome
from signalprop.studies.tasks import Task
from signalprop.studies.trained import spoken

#: updates that are timed for the forecast, and sequences of so many steps
TIMED, STEPS = 3, 60


@dataclass(frozen=True)
class Entry:
    """A task of the plan.

    Attributes:
        task: it.
        budget: training sequences at most.
        batch: sequences per update.
        seeds: nets of each cell.
        memory: see `Job`.
        pace: see `Job`.
    """

    task: Task
    budget: int
    batch: int = 32
    seeds: int = 1
    memory: float = 0.99
    pace: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A run.

    Attributes:
        entries: the tasks, short ones first.
        cells: names of the cells.
        steps: over which the carousel is measured.
    """

    entries: tuple[Entry, ...]
    cells: tuple[str, ...]
    steps: int

    def jobs(self) -> list[Job]:
        """All trainings, one seed after the other, so that an interrupted run has some of all."""
        most = max(entry.seeds for entry in self.entries)
        return [
            Job(cell, entry.task.name, seed, entry.budget, entry.batch, entry.memory, entry.pace)
            for seed in range(most)
            for entry in self.entries
            if seed < entry.seeds
            for cell in self.cells
        ]

    def task(self, name: str) -> Task:
        """A task by its name."""
        return next(entry.task for entry in self.entries if entry.task.name == name)


def quick() -> Plan:
    """Short lags, one net of each of five cells."""
    return Plan(
        (
            Entry(tasks.embedded_reber(), 12_000, 8),
            Entry(tasks.temporal_order(50, 2), 16_000),
            Entry(tasks.sequential_digits(permuted=False, limit=2_000), 6_400),
            Entry(tasks.adding(50), 64_000),
        ),
        (cells.TANH, cells.IRNN, cells.OLD, cells.PLAIN, cells.CHRONO),
        400,
    )


def full() -> Plan:
    """The tasks of 1997 in their full length, copying, and digits read pixel by pixel."""
    return Plan(
        (
            Entry(tasks.embedded_reber(), 16_000, 8, 3),
            Entry(tasks.noise_free(100), 12_000, 4, 1, 0.9, 0.3),
            Entry(tasks.two_sequences(100, 3, "3a"), 40_000, 32, 2),
            Entry(tasks.temporal_order(100, 2), 40_000, 32, 3),
            Entry(tasks.adding(100), 96_000, 32, 3),
            Entry(tasks.sequential_digits(permuted=False), 48_000, 32, 1),
            Entry(tasks.sequential_digits(permuted=True), 48_000, 32, 1),
            Entry(tasks.very_long_lags(100, 100), 40_000, 32, 1),
            Entry(tasks.copying(100), 40_000, 32, 1, 0.9, 0.3),
            Entry(tasks.two_sequences(100, 3, "3c"), 64_000, 32, 1),
            Entry(tasks.multiplication(100), 96_000, 32, 1),
            Entry(tasks.temporal_order(100, 3), 96_000, 32, 1),
            Entry(tasks.adding(500), 80_000, 32, 1),
            Entry(tasks.very_long_lags(1_000, 1_000), 40_000, 32, 1),
            Entry(tasks.adding(1_000), 80_000, 32, 1),
        ),
        tuple(cells.CELLS),
        10_000,
    )


def steps_of(task: Task) -> int:
    """Steps of a sequence of the task."""
    return task.sample(1, torch.Generator().manual_seed(0)).mask.shape[1]


def forecast(plan: Plan) -> dict[tuple[str, str], float]:
    """Seconds of every training that spends its whole budget, by cell and task.

    An update takes so long per step that a few updates on short sequences tell.

    Args:
        plan: of the run.

    Returns:
        By cell and task.
    """
    short = tasks.adding(STEPS)
    each: dict[tuple[str, int], float] = {}
    for cell in plan.cells:
        for batch in sorted({entry.batch for entry in plan.entries}):
            generator = torch.Generator().manual_seed(0)
            net = cells.made(short, cells.CELLS[cell], generator, 0)
            took: list[float] = []
            for _ in range(TIMED):
                start = time.perf_counter()
                training.fit(net, Job(cell, short.name, 0, batch, batch), generator)
                took.append(time.perf_counter() - start)
            each[cell, batch] = sorted(took)[TIMED // 2] / STEPS
    return {
        (cell, entry.task.name): each[cell, entry.batch]
        * steps_of(entry.task)
        * entry.budget
        / entry.batch
        for entry in plan.entries
        for cell in plan.cells
    }


def carry_out(setup: Setup, plan: Plan, workers: int) -> Iterator[Outcome]:
    """Train all nets, several at a time; Ctrl-C ends it with what is done.

    Yields:
        What became of each, in the order in which they end.
    """
    seconds = forecast(plan)
    jobs = plan.jobs()
    cost = {job: seconds[job.cell, job.task] for job in jobs}
    total, done = sum(cost.values()), 0.0
    setup.at(0.02, f"{len(jobs)} nets to train, {workers} at a time, about "
             f"{spoken(total / workers)} if none is done early (Ctrl-C ends it and reports what is "
             "done)")  # fmt: skip
    stop = threading.Event()
    start = time.perf_counter()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        left: dict[Future[Outcome | None], Job] = {
            pool.submit(training.run, job, plan.task(job.task), stop): job for job in jobs
        }
        try:
            while left:
                for future in wait(left, return_when=FIRST_COMPLETED).done:
                    job = left.pop(future)
                    outcome = future.result()
                    if outcome is None:
                        continue
                    done += cost[job]
                    gone = time.perf_counter() - start
                    # the forecast is believed at first, the measured time from a quarter on
                    belief = min(4 * done / total, 1.0)
                    whole = (1 - belief) * total / workers + belief * gone * total / done
                    ahead = (1 - done / total) * whole
                    setup.at(0.02 + 0.96 * done / total,
                             f"{told(outcome)}; about {spoken(ahead)} left")  # fmt: skip
                    yield outcome
        except KeyboardInterrupt:
            setup.at(0.99, f"interrupted: reporting {len(jobs) - len(left)} of {len(jobs)} nets")
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def told(outcome: Outcome) -> str:
    """One training in a few words."""
    job = outcome.job
    found = (
        f"solved after {outcome.solved:,} sequences"
        if outcome.solved is not None
        else f"not within {outcome.seen:,} ({outcome.right:.2f} right)"
    )
    return f"{job.task}, {job.cell}, seed {job.seed}: {found}, {outcome.seconds:.0f} s"
