"""One net on one task, trained until the task's own criterion is met or its sequences are spent."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import nn

from signalprop.studies.lags import cells
from signalprop.studies.tasks import Score, Sequences, Task

#: the norm that gradients are clipped to
CLIP = 1.0
#: sequences in a row that have to look solved before a test is made
LOOK = 256
#: from which share of right sequences on the learning rate has which factor
SLOWER = ((0.98, 0.1), (0.9, 0.3), (0.0, 1.0))
#: test sequences that are read at once
CHUNK = 250

#: torch's random numbers and hooks are of the whole process
_ALONE = threading.Lock()


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        cell: name of the cell.
        task: name of the task.
        seed: of weights and sequences.
        budget: training sequences at most.
        batch: sequences per update.
        memory: Adam's second beta. The longer it is, the longer the large gradients of the
            beginning hide the small ones that are left when all but the long lag is learnt.
        pace: factor of the cell's learning rate.
    """

    cell: str
    task: str
    seed: int
    budget: int
    batch: int
    memory: float = 0.99
    pace: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        job: the training.
        solved: training sequences until the criterion was met; None where it was not.
        seen: training sequences.
        right: share of the last training sequences that were right, or of the test images.
        credit: ln of the credit at the task's lag before training.
        nearest: the same at the lag of the last input needed.
        short: steps until credit had fallen to 1/e before training; inf where it did not.
        silent: the same to float32's rounding.
        after: ln of the credit at the task's lag after training.
        seconds: how long it took.
    """

    job: Job
    solved: int | None
    seen: int
    right: float
    credit: float
    nearest: float
    short: float
    silent: float
    after: float
    seconds: float


def running(task: Task) -> bool:
    """Whether the criterion is about the most recent training sequences."""
    return "training sequences" in task.criterion.text


def run(job: Job, task: Task, stop: threading.Event | None = None) -> Outcome | None:
    """Train it.

    Args:
        job: what to train.
        task: on what.
        stop: when set, training ends at once.

    Returns:
        What became of it; None where it was stopped.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(1_000 + job.seed)
    with _ALONE:
        net = cells.made(task, cells.CELLS[job.cell], generator, job.seed)
        before = cells.reach(net, generator, job.seed)
    solved, seen, right = fit(net, job, generator, stop)
    if stop is not None and stop.is_set():
        return None
    if task.data:
        right = tested(net, 2_000, generator).solved
    after = math.nan
    if all(bool(p.isfinite().all()) for p in net.parameters()):
        with _ALONE:
            after = cells.credit(cells.reach(net, generator, job.seed), task.lag)
    silent = before.reach(torch.finfo(torch.float32).eps)
    return Outcome(
        job, solved, seen, right,
        cells.credit(before, task.lag), cells.credit(before, task.nearest),
        math.inf if before.steps is None else before.steps,
        math.inf if silent is None else silent, after, time.perf_counter() - start,
    )  # fmt: skip


def fit(
    net: cells.Net, job: Job, generator: torch.Generator, stop: threading.Event | None = None
) -> tuple[int | None, int, float]:
    """Adam, gradients clipped; the rate falls as the share of right sequences rises.

    Returns:
        Sequences until the criterion was met, sequences seen, share of the last that were right.
    """
    task, rate = net.task, cells.CELLS[job.cell].rate * job.pace
    trained = [p for p in net.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=rate, betas=(0.9, job.memory), fused=True)
    window = (task.criterion.sequences or LOOK) if running(task) else LOOK
    recent: deque[Score] = deque(maxlen=math.ceil(window / job.batch))
    seen, next_look = 0, 0
    while seen < job.budget:
        if stop is not None and stop.is_set():
            break
        batch = task.sample(job.batch, generator)
        outputs = net.outputs(batch)
        loss = task.objective(outputs, batch)
        if not math.isfinite(loss.item()):
            return None, seen, 0.0
        recent.append(task.evaluate(outputs.detach(), batch))
        if not task.data:
            adam.param_groups[0]["lr"] = rate * slower(mean(recent).solved)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        adam.step()
        seen += job.batch
        if task.data or len(recent) < (recent.maxlen or 0) or seen < next_look:
            continue
        score = mean(recent)
        allowed = task.criterion.wrong / (task.criterion.sequences or 1)
        if running(task):
            if task.criterion.met(score):
                return seen, seen, score.solved
        elif 1 - score.solved <= allowed + 1e-6:
            if passes(net, generator):
                return seen, seen, score.solved
            next_look = seen + 4 * LOOK
    return None, seen, mean(recent).solved if recent else 0.0


def slower(right: float) -> float:
    """Factor of the learning rate: the last few percent need small steps."""
    return next(factor for share, factor in SLOWER if right >= share)


def mean(scores: deque[Score]) -> Score:
    """Of all their sequences."""
    total = sum(s.sequences for s in scores)
    solved = math.fsum(s.solved * s.sequences for s in scores) / total
    error = math.fsum(s.error * s.sequences for s in scores) / total
    return Score(solved, error, total)


@torch.no_grad()
def tested(net: cells.Net, count: int, generator: torch.Generator) -> Score:
    """The score on new sequences; ends where more are wrong than the criterion allows."""
    scores: deque[Score] = deque()
    wrong = 0.0
    for first in range(0, count, CHUNK):
        batch: Sequences = net.task.sample_test(min(CHUNK, count - first), generator)
        scores.append(net.task.evaluate(net.outputs(batch), batch))
        wrong += (1 - scores[-1].solved) * scores[-1].sequences
        if not net.task.data and wrong > net.task.criterion.wrong + 0.5:
            break
    return mean(scores)


def passes(net: cells.Net, generator: torch.Generator) -> bool:
    """Whether the criterion is met on new sequences."""
    count = net.task.criterion.sequences or LOOK
    score = tested(net, count, generator)
    return score.sequences == count and net.task.criterion.met(score)
