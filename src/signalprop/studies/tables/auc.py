"""HTRU2 and Tox21: area under the ROC curve of every method on nested splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from signalprop.studies.frame import Measurement, Table
from signalprop.studies.plain import Found
from signalprop.studies.tables.data import deal
from signalprop.studies.tables.models import NETWORKS, SELU
from signalprop.studies.tables.molecules import Molecules, random_split, scaffold_split
from signalprop.studies.tables.nested import Split, judged, many_tasks, masked, one_task
from signalprop.studies.tables.plan import Clock, Plan, network_seconds
from signalprop.studies.tables.ranks import paired
from signalprop.studies.tables.search import FOREST, METHODS, cross_entropy
from signalprop.studies.tables.training import Problem

#: mean AUC that Klambauer et al. 2017 report
PULSARS, TOXICITY = 0.980, 0.845
#: inputs of molecules are cut off here, in standard deviations
CLIP = 5.0


def htru2_seconds(plan: Plan) -> float:
    """Expected seconds of the pulsars."""
    models = plan.folds * plan.nested.networks
    machines = plan.folds * len(plan.nested.costs) * 2.0 + plan.folds * plan.nested.trees * 0.03
    return network_seconds(plan.nested, plan.nested_budget, models) + machines


def tox21_seconds(plan: Plan) -> float:
    """Expected seconds of the molecules, descriptors included."""
    count = 7831 if plan.molecules is None else plan.molecules
    models = (plan.repeats * 2 if count > 2000 else plan.repeats) * plan.nested.networks
    inputs = 0.006 * count + models / plan.nested.networks * plan.nested.trees * count * 4e-5
    return 2.0 * network_seconds(plan.nested, plan.nested_budget, models) + inputs


def table(
    clock: Clock, title: str, task: Problem, splits: Sequence[Split], plan: Plan, seed: int,
    *, methods: Sequence[str], seconds: float,
) -> Found:  # fmt: skip
    """All methods on all splits."""
    numbers: list[Measurement] = []
    rows: list[tuple[str | float | int, ...]] = []
    first: list[float] = []
    for name in methods:
        clock.at(f"{title}: {name}")
        found = judged(name, title, task, splits, plan.nested, plan.nested_budget, seed)
        values = [one.test for one in found]
        first = first or values
        mean, spread = float(np.mean(values)), float(np.std(values, ddof=len(values) > 1))
        p = 1.0 if name == SELU else paired(first, values)
        for what, value in (("AUC", mean), ("spread", spread), ("p against SELU", p)):
            numbers.append(Measurement(f"{title}, {name}: {what}", value, tabled=True))
        rows.append((name, mean, spread, "" if name == SELU else p))
        clock.add(seconds / len(methods))
    columns = ("method", "mean AUC", "standard deviation over splits", "p against SELU (Wilcoxon)")
    return numbers, [], Table(f"{title}: area under the ROC curve", columns, tuple(rows))


def htru2(clock: Clock, plan: Plan, x: torch.Tensor, y: torch.Tensor, seed: int) -> Found:
    """Ten folds: one tests, the next one chooses settings, the other eight learn."""
    parts = deal(y, 10, seed)
    splits: list[Split] = []
    for i in range(plan.folds):
        j = (i + 1) % 10
        rest = torch.cat([part for k, part in enumerate(parts) if k not in (i, j)])
        splits.append((rest, parts[j], parts[i]))
    task = Problem(x, y, 2, cross_entropy, one_task)
    return table(clock, "HTRU2", task, splits, plan, seed, methods=METHODS,
                 seconds=htru2_seconds(plan))  # fmt: skip


def tox21(clock: Clock, plan: Plan, found: Molecules, seed: int) -> list[Found]:
    """Random splits, and one that keeps scaffolds apart, which is harder."""
    task = Problem(found.x, found.y, len(found.assays), masked, many_tasks, CLIP)
    # an SVM per assay would take longer than all the rest
    methods = (*NETWORKS, FOREST)
    drawn = [random_split(len(found.x), seed + i) for i in range(plan.repeats)]
    kinds = {"Tox21, random splits": drawn}
    if plan.molecules is None:
        kinds["Tox21, scaffold split"] = [scaffold_split(found.scaffolds)] * plan.repeats
    return [
        table(clock, title, task, splits, plan, seed, methods=methods,
              seconds=tox21_seconds(plan) / len(kinds))
        for title, splits in kinds.items()
    ]  # fmt: skip
