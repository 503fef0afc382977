"""lstm: the constant error carousel, and the tasks with long time lags of 1997.

First the carousel itself: credit over hundreds of steps in the cell of 1997, in cells with a forget
gate, and in a tanh RNN. Then every cell is trained on every task, from the embedded Reber grammar
to adding over 1,000 steps, until the criterion of the paper is met or its sequences are spent, and
stands beside what was published. Before training the horizon of every net is measured on the task's
own sequences: does it tell who will solve what?

Nets are trained two at a time. A full run says how long it takes before it starts; Ctrl-C ends it
and reports what is done.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from dataclasses import asdict

from signalprop.studies.frame import Measured, Measurement, Series, Setup, Study, Table
from signalprop.studies.lags import carousel, cells, plan, verdicts
from signalprop.studies.lags.foretold import Foretold, judge_pairs
from signalprop.studies.lags.training import CLIP, Outcome
from signalprop.studies.tables.study import one_thread
from signalprop.studies.tasks import Task

#: nets that are trained at a time, where there are as many cores
WORKERS = 2

Row = tuple[str | float | int, ...]
Runs = dict[tuple[str, str], list[Outcome]]


def measure(setup: Setup) -> Measured:
    """Run it."""
    with one_thread():
        return run(setup, plan.quick() if setup.quick else plan.full())


def run(setup: Setup, the: plan.Plan) -> Measured:
    """Run it at these sizes."""
    setup.at(0.0, f"credit over {the.steps:,} steps, then how long the rest takes")
    carried = carousel.measure(the.steps, setup.seed)
    workers = max(1, min(WORKERS, os.cpu_count() or 1))
    runs: Runs = defaultdict(list)
    place = {job: at for at, job in enumerate(the.jobs())}
    ended = plan.carry_out(setup, the, workers)
    # which ends first is chance; what is reported is not to depend on it
    for one in sorted(ended, key=lambda outcome: place[outcome.job]):
        runs[one.job.cell, one.job.task].append(one)
    numbers = [
        Measurement("steps", carried[cells.PLAIN].steps, "steps", None, "the longest lag"),
        Measurement("steps of 1997", carried[cells.OLD].steps, "steps", None, cells.OLD),
    ]
    for name, one in carried.items():
        numbers += [
            Measurement(f"{name}: change", one.change, "", None, "share of credit", tabled=True),
            Measurement(f"{name}: rate", one.rate, "nats per step", tabled=True),
        ]
    judged = [entry.task for entry in the.entries if not entry.task.data]
    done = {task for _, task in runs}
    for entry in the.entries:
        if entry.task.name not in done or entry.task.data:
            continue
        numbers.append(Measurement(f"{entry.task.name}: lag", entry.task.lag, "steps", tabled=True))
        numbers.append(Measurement(f"{entry.task.name}: budget", entry.budget, "sequences",
                                   tabled=True))  # fmt: skip
        if (best := published(entry.task)) is not None:
            numbers.append(Measurement(f"{entry.task.name}: published", best, "sequences",
                                       tabled=True))  # fmt: skip
    numbers += [m for pair, some in runs.items() for m in of_pair(pair, some)]
    told = held(runs, judged)
    numbers += of_foretold(told)
    names = [entry.task.name for entry in the.entries if entry.task.name in done]
    tables = (
        carousel_table(carried), results(the, runs, names), beside(the, runs),
        predictions(the, runs, judged), differences(the, sum(map(len, runs.values()))),
    )  # fmt: skip
    data = next((e.task.data for e in the.entries if e.task.data), "")
    settings = {
        "cells": the.cells, "units": {c: cells.CELLS[c].units for c in the.cells},
        "learning rate": {c: cells.CELLS[c].rate for c in the.cells},
        "training": f"Adam, gradients clipped at {CLIP:g}, the rate falls as the net comes close",
        "trained": f"{sum(map(len, runs.values()))} of {len(the.jobs())} nets",
    }  # fmt: skip
    return Measured(tuple(numbers), data, settings, tuple(curves(carried, runs, judged)), tables)


def published(task: Task) -> int | None:
    """The fewest training sequences that LSTM is published with."""
    known = [p.sequences for p in task.published if "LSTM" in p.what and p.sequences]
    return min(known, default=None)


def of_pair(pair: tuple[str, str], runs: list[Outcome]) -> list[Measurement]:
    """What one cell reached on one task, over seeds."""
    at = f"{pair[0]} on {pair[1]}"
    solved = sorted(o.solved for o in runs if o.solved is not None)
    numbers = [
        ("solved", len(solved) / len(runs), ""), ("runs", len(runs), ""),
        ("right", mean([o.right for o in runs]), ""),
        ("credit", mean([o.credit for o in runs]), "nats"),
        ("after", mean([o.after for o in runs]), "nats"),
        ("horizon, 1/e", middle([o.short for o in runs]), "steps"),
        ("horizon, float32", middle([o.silent for o in runs]), "steps"),
    ]  # fmt: skip
    if solved and 2 * len(solved) >= len(runs):
        numbers.append(("sequences", middle(solved), "sequences"))
    return [Measurement(f"{at}: {what}", value, unit, tabled=True) for what, value, unit in numbers]


def mean(values: list[float]) -> float:
    """Their mean; -inf where one is."""
    return -math.inf if -math.inf in values else math.fsum(values) / len(values)


def middle(values: list[float] | list[int]) -> float:
    """The median, the lower one of two."""
    return sorted(values)[(len(values) - 1) // 2]


def held(runs: Runs, judged: list[Task]) -> Foretold | None:
    """Credit against what was solved, where there are both."""
    names = {task.name for task in judged}
    pairs = [(mean([o.credit for o in some]), sum(o.solved is not None for o in some) / len(some))
             for (_, task), some in runs.items() if task in names]  # fmt: skip
    return judge_pairs([c for c, _ in pairs], [s for _, s in pairs]) if pairs else None


def of_foretold(told: Foretold | None) -> list[Measurement]:
    """Its numbers."""
    if told is None:
        told = Foretold(0, 0, *[math.nan] * 7)
    names = {
        "pairs": "pairs", "solved": "solved", "auc": "AUC", "rank": "rank correlation",
        "silent": "accuracy, rounding", "short": "accuracy, 1/e",
        "most": "accuracy, always the same", "unreached": "unsolved, drowned",
        "reached": "solved, arrived",
    }  # fmt: skip
    return [Measurement(f"foretold: {names[k]}", value) for k, value in asdict(told).items()]


def carousel_table(carried: dict[str, carousel.Carried]) -> Table:
    """Credit in the cells."""
    rows = tuple((name, c.steps, c.change, c.rate, c.seen.steps or f"> {c.steps}")
                 for name, c in carried.items())  # fmt: skip
    return Table("Credit in the cells before training", ("cell", "steps", "changes by",
                 "nats per step", "steps to 1/e"), rows)  # fmt: skip


def results(the: plan.Plan, runs: Runs, names: list[str]) -> Table:
    """Sequences until the criterion was met."""
    rows = tuple((name, *(cell_of(runs.get((cell, name), [])) for cell in the.cells))
                 for name in names)  # fmt: skip
    return Table("Training sequences until the criterion was met (runs), else share right in the "
                 "end", ("task", *the.cells), rows)  # fmt: skip


def cell_of(runs: list[Outcome]) -> str:
    """A cell of that table."""
    if not runs:
        return "-"
    solved = [o.solved for o in runs if o.solved is not None]
    if not solved:
        return f"no: {mean([o.right for o in runs]):.2f}"
    return f"{middle(solved):,.0f} ({len(solved)} of {len(runs)})"


def beside(the: plan.Plan, runs: Runs) -> Table:
    """The same beside what was published."""
    rows: list[Row] = []
    for entry in the.entries:
        best = published(entry.task)
        own = {cell: [o.solved for o in runs.get((cell, entry.task.name), [])]
               for cell in cells.KINDS}  # fmt: skip
        found = {c: middle([s for s in some if s is not None])
                 for c, some in own.items() if any(s is not None for s in some)}  # fmt: skip
        if best is None or not any(own.values()):
            continue
        first = min(found, key=lambda c: found[c], default="none")
        rows.append((entry.task.name, best, found.get(cells.OLD, "not solved"),
                     found.get(first, "not solved"), first, entry.budget))  # fmt: skip
    return Table("Beside the published figures: training sequences", ("task", "LSTM, published",
                 cells.OLD, "fewest here", "of", "given"), tuple(rows))  # fmt: skip


def predictions(the: plan.Plan, runs: Runs, judged: list[Task]) -> Table:
    """What the horizon foretells."""
    lag = {task.name: task.lag for task in judged}
    rows = [
        (task, cell, lag[task], shown(middle([o.short for o in some])),
         shown(middle([o.silent for o in some])), mean([o.credit for o in some]),
         mean([o.after for o in some]), sum(o.solved is not None for o in some) / len(some))
        for (cell, task), some in runs.items() if task in lag
    ]  # fmt: skip
    order = [entry.task.name for entry in the.entries]
    rows.sort(key=lambda row: (order.index(row[0]), the.cells.index(row[1])))
    return Table("The horizon before training, and who solved what", ("task", "cell", "lag",
                 "to 1/e", "to rounding", "ln credit at the lag", "after training", "solved"),
                 tuple(rows))  # fmt: skip


def shown(steps: float) -> str | float:
    """A horizon as shown."""
    return "all" if math.isinf(steps) else steps


def differences(the: plan.Plan, done: int) -> Table:
    """What is other than in the papers, and what was left out."""
    seeds = max(entry.seeds for entry in the.entries)
    rows = (
        ("training", "Adam, batches of 8 to 32, softmax or linear outputs",
         "gradient descent, one sequence at a time, logistic outputs"),
        ("runs", f"1 to {seeds} of each cell on each task", "10 to 150"),
        ("net", "one layer of about 4,096 recurrent weights", "2 to 8 memory cells"),
        ("LSTM of 1997", "input gate biases -3, output gate biases -1, -2, -3 everywhere",
         "other biases in every experiment"),
        ("embedded Reber", "every training string is new", "256 training strings again and again"),
        ("sequences", "until the criterion is met, at most those given", "to 853,000"),
    )  # fmt: skip
    if done < len(the.jobs()):
        rows = (*rows, ("not run", f"interrupted: {done} of {len(the.jobs())} nets are done", ""))
    return Table("What differs", ("", "here", "the papers"), rows)


def curves(carried: dict[str, carousel.Carried], runs: Runs, judged: list[Task]) -> list[Series]:
    """Figures: credit over the lag, and runs solved over credit."""
    found = [
        Series("||ds_T/ds_t|| before training", name, tuple(map(float, one.seen.lags[1:1_000])),
               one.seen.credit[1:1_000], "T - t, steps", "credit", True)
        for name, one in carried.items()
    ]  # fmt: skip
    names = {task.name for task in judged}
    for cell in dict.fromkeys(cell for cell, _ in runs):
        points = sorted(
            (mean([o.credit for o in some]), mean([o.right for o in some]))
            for (one, task), some in runs.items()
            if one == cell and task in names
        )
        points = [p for p in points if math.isfinite(p[0])]
        if points:
            found.append(Series("Sequences right in the end over the credit at the lag before "
                                "training", cell, tuple(p[0] for p in points),
                                tuple(p[1] for p in points), "ln credit at the task's lag",
                                "share right in the end"))  # fmt: skip
    return found


STUDY = Study(
    name="lstm",
    title="Long short-term memory: the constant error carousel",
    statement="the cell state's addition (constant error carousel), three gates; the gradient goes "
    "through the addition unchanged",
    source="Lecture by Sepp Hochreiter; Hochreiter 1991 (diploma thesis, TU München); Hochreiter & "
    "Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000; chrono: Tallec & Ollivier "
    "2018; IRNN: Le, Jaitly & Hinton 2015",
    function=measure,
    judge=verdicts.judge,
)
