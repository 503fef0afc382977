"""Whether `sp.cure` repairs a sick program: at least as good as the published fix, less 2 points.

`sp.cure` sees the training data only. What it chooses is then trained here from the start, with the
program's own number of updates and the seeds of the trials, and measured on the test data; a
schedule of the learning rate is left out. The fix is trained with the same seeds.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from benchmarks.broken_programs import compile as compiled
from benchmarks.broken_programs.program import Program
from torch import nn

import signalprop as sp
from signalprop.capture import batch as batches
from signalprop.cures.catalogue import CATALOGUE
from signalprop.cures.training import Recipe, Training, applied
from signalprop.cures.trials.data import Data
from signalprop.cures.trials.leg import Runner
from signalprop.cures.trials.result import Trials

#: how far below the fix a repaired program may stay, as a share of 1
MARGIN = 0.02
#: seeds of a proof, and of one where `sp.cure` asks for more
SEEDS, MORE = 3, 9
#: updates of a trial at most, of networks that read at least so many numbers and of smaller ones
UPDATES, LARGE, WHOLE = 400, 500, 6000


def judge(program: Program, seed: int) -> dict[str, Any]:
    """Repair one sick program and train the result.

    Args:
        program: the sick program.
        seed: added to the seeds of the proof.

    Returns:
        Plain data: `metric`, mean over the seeds of the cured program (of the untouched one where
        nothing helps), `metrics` of each, `wanted`, mean of the fixed program (None where there is
        no fix), `name`, `lines`, `seconds`; or `skipped`, why not.
    """
    if program.case.role != "sick":
        return {"skipped": "not sick"}
    before = time.perf_counter()
    try:
        trials = _trials(program, [100 * seed + s for s in range(SEEDS)])
        if trials.unsteady:
            trials = _trials(program, [100 * seed + s for s in range(MORE)])
    except sp.SignalpropError as error:
        return {"metric": None, "error": str(error)}
    seconds = time.perf_counter() - before
    best, seeds = trials.best, [100 * seed + s for s in range(len(trials.seeds))]
    metrics = [_trained(program, trials, s) for s in seeds]
    mean = statistics.fmean(metrics)
    return {
        "metric": mean if math.isfinite(mean) else None,
        "metrics": [m if math.isfinite(m) else None for m in metrics],
        "wanted": _of_the_fix(program, seeds),
        "name": best.name if best else None,
        "lines": list(best.lines) if best else [],
        "found": [f.code for f in trials.before.findings],
        "left": [f.code for f in trials.after.findings] if trials.after else None,
        "seconds": round(seconds, 3),
    }


def _trials(program: Program, seeds: list[int]) -> Trials:
    models = itertools.cycle([program.model(s) for s in seeds])
    large = program.data.x[0].numel() >= LARGE
    return sp.cure(
        lambda: next(models),
        (program.data.x, program.data.y),
        program.loss,
        lambda parameters: _optimizer(program, parameters),
        budget=min(program.steps, UPDATES if large else WHOLE),
        batch_size=program.batch_size,
        seeds=len(seeds),
        engine="serial",
    )


def _of_the_fix(program: Program, seeds: list[int]) -> float | None:
    spec = program.case.correct
    if spec is None:
        return None
    mean = statistics.fmean(Program(program.case, "correct", spec).train(s)[0] for s in seeds)
    return mean if math.isfinite(mean) else None


def _optimizer(program: Program, parameters: Any) -> torch.optim.Optimizer:
    holder = nn.Module()
    holder.held = nn.ParameterList(parameters)
    return compiled.optimizer(program.spec.optimizer, holder, {})[0]


class _Batches(Sequence[Any]):
    """The batches of the program itself, one for every update, drawn as they are asked for."""

    def __init__(self, program: Program, seed: int) -> None:
        self.program, self.rows = program, program._batches(seed)

    def __len__(self) -> int:
        return self.program.steps

    def __getitem__(self, index: Any) -> Any:
        rows = next(self.rows)
        return self.program.data.x[rows], self.program.data.y[rows]


class _Drawn(Data):
    """What a program learns from, in its own order: an unsteady training depends on that."""

    def __init__(self, program: Program, seed: int) -> None:
        x, y = program.data.x, program.data.y
        super().__init__(_Batches(program, seed), ((x[:2], y[:2]),), True, "")  # pyrefly: ignore

    def order(self, seed: int, steps: int) -> list[int]:
        """One after the other."""
        return list(range(steps))


class _Forgets(dict[int, Any]):
    """No batch comes twice."""

    def __setitem__(self, key: int, value: Any) -> None:
        pass


def _trained(program: Program, trials: Trials, seed: int) -> float:
    """The metric on the test data after a whole training."""
    cures = [CATALOGUE[name] for name in (trials.best.cures if trials.best else ())]
    model = program.model(seed)
    made = Training(model, program.loss, Recipe.of(program.start(seed, model).optimizer, model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for cure in cures:
            if cure.changes != "settings":  # settings are lines to paste, the same for every seed
                made = cure.treat(made, program.batch(seed))
        if trials.cured is not None:
            made = replace(trials.cured, model=made.model)
        runner = Runner(made, _Drawn(program, seed), seed=seed, total=program.steps)
        runner.read = _Forgets()
        failed = runner.train(program.steps)
    if failed:
        return -math.inf
    output = _output(made, program)
    value = math.nan
    if program.case.metric == "loss":  # the cured output may be none that the loss can take
        value = float(program.loss(output, program.data.y_test))
    return compiled.metric(program.case.metric, output, program.data.y_test, value)


@torch.no_grad()
def _output(made: Training, program: Program) -> torch.Tensor:
    """What the user sees of the cured network on the test data."""
    made.model.eval()
    parts = []
    for x, y in zip(program.data.x_test.split(500), program.data.y_test.split(500), strict=True):
        read = batches.read((x, y), made.model, made.loss, gradients=False)
        args, kwargs, _ = applied(made.prepare, (read.args, read.kwargs, read.target))
        parts.append(applied(made.readout, made.model(*args, **kwargs)))
    return torch.cat(parts)


def repaired(metric: float | None, wanted: float | None, *, lower_is_better: bool) -> bool | None:
    """Whether a metric reaches that of the fix within `MARGIN`; None where there is no fix.

    Args:
        metric: after the cure; None where it is not finite.
        wanted: of the fixed program, measured here, or as published.
        lower_is_better: for a loss.

    Returns:
        The verdict.
    """
    if wanted is None:
        return None
    if metric is None:
        return False
    return metric <= wanted + MARGIN if lower_is_better else metric >= wanted - MARGIN
