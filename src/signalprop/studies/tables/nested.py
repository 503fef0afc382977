"""Nested splits: settings and number of updates by validation rows, the score by test rows.

For tables without splits of their own. Every split is (training, validation, test); all networks of
one shape, over splits and learning rates, are one stack, and none is trained again once chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from signalprop.studies.tables.models import NETWORKS
from signalprop.studies.tables.search import Grid, estimators, scaled, seeded
from signalprop.studies.tables.training import Budget, Problem, Rows, fit

#: training, validation and test rows
Split = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Chosen:
    """The best setting for one split.

    Attributes:
        validation: its score there.
        test: its score on the test rows.
        settings: the setting.
    """

    validation: float
    test: float
    settings: dict[str, float]


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; no number where only one class occurs."""
    from sklearn.metrics import roc_auc_score

    seen = np.unique(positive)
    return float(roc_auc_score(positive, scores)) if len(seen) == 2 else float("nan")


def one_task(outputs: Tensor, targets: Tensor) -> float:
    """AUC of two-class outputs."""
    return roc_auc((outputs[:, 1] - outputs[:, 0]).numpy(), targets.numpy())


def many_tasks(outputs: Tensor, targets: Tensor) -> float:
    """Mean AUC over tasks, each over the rows that have a label (the others are NaN)."""
    values = [
        roc_auc(out[known].numpy(), target[known].numpy())
        for out, target in zip(outputs.T, targets.T, strict=True)
        if (known := target.isfinite()).any()
    ]
    return _mean(values)


def masked(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy over the labels that are known, averaged per network and summed."""
    known = targets.isfinite()
    loss = F.binary_cross_entropy_with_logits(outputs, targets.nan_to_num(), reduction="none")
    return ((loss * known).sum((1, 2)) / known.sum((1, 2)).clamp_min(1)).sum()


def networks(
    name: str, title: str, task: Problem, splits: Sequence[Split], grid: Grid, budget: Budget,
    seed: int,
) -> list[Chosen]:  # fmt: skip
    """A network on every split.

    Returns:
        The best setting of each split.
    """
    seeded(seed, title, name)
    best: list[Chosen] = []
    for depth, dropout in grid.shapes:
        each = [(split, rate) for rate in grid.rates for split in splits]
        found = fit(
            lambda depth=depth, dropout=dropout: NETWORKS[name](
                task.x.shape[1], grid.width, depth, task.outputs, dropout
            ),
            task, [Rows(split[0], split[1]) for split, _ in each], [r for _, r in each], budget,
        )  # fmt: skip
        tests = found.score([split[2] for split, _ in each])
        tried = [
            Chosen(score, test, {"layers": depth, "dropout": dropout, "lr": rate})
            for score, test, (_, rate) in zip(found.scores, tests, each, strict=True)
        ]
        rows = [tried[i :: len(splits)] for i in range(len(splits))]
        best = [
            max((*some, *([best[i]] if best else [])), key=lambda one: one.validation)
            for i, some in enumerate(rows)
        ]
    return best


def classical(
    name: str, task: Problem, splits: Sequence[Split], grid: Grid, seed: int
) -> list[Chosen]:
    """Random forest or SVM on every split; with several targets, one model for each."""
    best: list[Chosen] = []
    for i, (train, validation, test) in enumerate(splits):
        tried: list[Chosen] = []
        for settings, model in estimators(name, task.x.shape[1], grid, seed + i):
            scores = _scores(model, task, train, (validation, test))
            tried.append(Chosen(scores[0], scores[1], settings))
        best.append(max(tried, key=lambda one: one.validation))
    return best


def _scores(model: Any, task: Problem, train: Tensor, asked: Sequence[Tensor]) -> list[float]:
    """Mean AUC over the targets, on each of these sets of rows."""
    y = task.y.reshape(len(task.y), -1).double().numpy()
    inputs = [scaled(task, train, rows)[1] for rows in (train, *asked)]
    values: list[list[float]] = []
    for target in y.T:
        known = np.isfinite(target[train])
        if len(np.unique(target[train][known])) < 2:
            continue
        model.fit(inputs[0][known], target[train][known])
        found: list[float] = []
        for rows, x in zip(asked, inputs[1:], strict=True):
            there = np.isfinite(target[rows])
            found.append(roc_auc(_margin(model, x[there]), target[rows][there]))
        values.append(found)
    return [_mean(column) for column in zip(*values, strict=True)]


def _margin(model: Any, x: np.ndarray) -> np.ndarray:
    """What says how positive a row is."""
    if hasattr(model, "predict_proba"):
        return model.predict_proba(x)[:, 1]
    return model.decision_function(x)


def _mean(values: Sequence[float]) -> float:
    """Over the targets for which there is a number."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("-inf")


def judged(
    name: str, title: str, task: Problem, splits: Sequence[Split], grid: Grid, budget: Budget,
    seed: int,
) -> list[Chosen]:  # fmt: skip
    """Any method on every split."""
    if name in NETWORKS:
        return networks(name, title, task, splits, grid, budget, seed)
    return classical(name, task, splits, grid, seed)
