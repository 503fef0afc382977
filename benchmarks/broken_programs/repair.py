"""Whether `sp.cure` repairs a sick program: at least as good as the published fix, less 2 points.

Judged in this benchmark's own training, not in the one the cures were chosen by: the cured model
is trained with the program's data, updates and seed.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from benchmarks.broken_programs.program import Program

import signalprop as sp

#: how far below the fix a repaired program may stay, as a share of 1
MARGIN = 0.02


def judge(program: Program, seed: int) -> dict[str, Any]:
    """Repair one sick program and train the result.

    Args:
        program: the sick program.
        seed: draws the weights and the order of the samples.

    Returns:
        Plain data: `metric` after the cure, `line` to be added, `seconds`; or `skipped`, why not.
    """
    if program.case.role != "sick":
        return {"skipped": "not sick"}
    cure = getattr(sp, "cure", None)
    if cure is None:
        return {"skipped": "this signalprop has no cure"}
    session = program.start(seed)
    before = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        data = [program.batch(seed + i) for i in range(8)]
        budget = min(program.steps, 300)
        trials = cure(session.model, data, program.loss, session.optimizer, budget=budget)
    seconds = time.perf_counter() - before
    best = trials.best
    metric = float(best.metric) if best is not None else math.nan
    return {
        "metric": metric if math.isfinite(metric) else None,
        "name": getattr(best, "name", None),
        "seconds": round(seconds, 3),
    }


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
