"""Settings are chosen on one split of a table and judged on others, the same way for every method.

UCI-121, as in Klambauer et al. 2017 and Fernandez-Delgado et al. 2014: settings are chosen by
accuracy on the tuning split; with them every method is trained anew on each fold's training rows
and judged on its test rows. A network's number of updates is chosen too: a part of the training
rows is held back and says when to stop.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from signalprop.studies.tables.data import Tabular, deal
from signalprop.studies.tables.models import NETWORKS
from signalprop.studies.tables.training import Budget, Problem, Rows, fit

FOREST, SVM = "random forest", "SVM"
#: every method, the networks first
METHODS = (*NETWORKS, SVM, FOREST)
#: share of a fold's training rows held back to stop by: one in so many
HELD = 7


@dataclass(frozen=True)
class Grid:
    """The settings that are tried.

    Attributes:
        width: units of every hidden layer.
        depths: numbers of hidden layers, odd.
        rates: learning rates of Adam.
        dropouts: dropout rates.
        trees: of a random forest.
        shares: features a split of a tree looks at, as a multiple of their square root.
        costs: C of the SVM.
        gammas: 1 / gamma of its kernel, as a multiple of the number of features.
    """

    width: int
    depths: tuple[int, ...]
    rates: tuple[float, ...]
    dropouts: tuple[float, ...]
    trees: int
    shares: tuple[float, ...]
    costs: tuple[float, ...]
    gammas: tuple[float, ...]

    @property
    def shapes(self) -> list[tuple[int, float]]:
        """Depths with dropout rates: one stack of networks each."""
        return list(product(self.depths, self.dropouts))

    @property
    def networks(self) -> int:
        """Settings of a network."""
        return len(self.shapes) * len(self.rates)


@dataclass(frozen=True)
class Judged:
    """What one method reached on one table.

    Attributes:
        score: mean over the folds.
        settings: as chosen.
    """

    score: float
    settings: dict[str, float]


def seeded(seed: int, *names: str) -> None:
    """Make torch's numbers those of this table and method, whatever was run before them."""
    torch.default_generator.manual_seed(zlib.crc32("/".join((str(seed), *names)).encode()))


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Summed over networks, averaged over rows."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten()) * len(outputs)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of right answers."""
    return float((outputs.argmax(-1) == targets).double().mean())


def sharp(outputs: Tensor, targets: Tensor) -> float:
    """Accuracy, and between equal accuracies the lower cross-entropy."""
    entropy = float(F.cross_entropy(outputs, targets))
    return accuracy(outputs, targets) - 1e-4 * min(entropy, 10.0)


def problem(table: Tabular) -> Problem:
    """The table as a task of classification."""
    return Problem(table.x, table.y, table.classes, cross_entropy, sharp)


def network(name: str, table: Tabular, grid: Grid, budget: Budget, seed: int) -> Judged:
    """Choose settings of a network on the tuning split and judge them on the folds."""
    seeded(seed, table.name, name)
    task, features, make = problem(table), table.x.shape[1], NETWORKS[name]
    tuning = Rows(*table.tuning)
    tried: list[tuple[float, int, float, float]] = []
    for depth, dropout in grid.shapes:
        rows = [tuning] * len(grid.rates)
        found = fit(
            lambda depth=depth, dropout=dropout: make(
                features, grid.width, depth, task.outputs, dropout
            ),
            task, rows, grid.rates, budget,
        )  # fmt: skip
        tried += [
            (score, depth, dropout, rate)
            for score, rate in zip(found.scores, grid.rates, strict=True)
        ]
    _, depth, dropout, rate = max(tried, key=lambda one: one[0])
    # where the test rows are fixed, four seeds stand for the four folds
    folds = table.folds if len(table.folds) > 1 else table.folds * 4
    rows = [held_back(table.y, train, i) for i, (train, _) in enumerate(folds)]
    found = fit(
        lambda: make(features, grid.width, depth, task.outputs, dropout),
        task, rows, [rate] * len(rows), budget,
    )  # fmt: skip
    tests = [test for _, test in folds]
    hits = [accuracy(o, table.y[t]) for o, t in zip(found.outputs(tests), tests, strict=True)]
    settings = {
        "layers": depth,
        "dropout": dropout,
        "lr": rate,
        "updates": float(np.mean(found.steps)),
    }
    return Judged(float(np.mean(hits)), settings)


def held_back(y: Tensor, train: Tensor, fold: int) -> Rows:
    """Rows to learn from, and one in seven held back to stop by."""
    hands = deal(y[train], HELD, fold)
    return Rows(train[torch.cat(hands[1:])], train[hands[0]])


def estimators(
    name: str, features: int, grid: Grid, seed: int
) -> Iterator[tuple[dict[str, float], Any]]:
    """scikit-learn's models with every setting of the grid.

    Yields:
        The settings, and the model.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import SVC

    if name == FOREST:
        tries = sorted({min(features, max(1, round(s * features**0.5))) for s in grid.shares})
        for looked_at in tries:
            model = RandomForestClassifier(grid.trees, max_features=looked_at, random_state=seed)
            yield {"features per split": looked_at}, model
    else:
        for cost, wide in product(grid.costs, grid.gammas):
            yield (
                {"C": cost, "gamma x features": 1 / wide},
                SVC(C=cost, gamma=1 / (wide * features), random_state=seed),
            )


def scaled(task: Problem, train: Tensor, test: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of both, with mean 0 and variance 1 over the training rows."""
    mean, deviation = task.scaler(train)
    both = [
        ((task.x[rows] - mean) / deviation).clamp(-task.clip, task.clip) for rows in (train, test)
    ]
    return both[0].numpy(), both[1].numpy()


def classical(name: str, table: Tabular, grid: Grid, seed: int) -> Judged:
    """The same for random forest or SVM, which need no rows to stop by."""
    task = problem(table)

    def tested(model: Any, train: Tensor, test: Tensor) -> float:
        x, x_test = scaled(task, train, test)
        with warnings.catch_warnings():
            # some sets have a class of which a split holds no row
            warnings.simplefilter("ignore")
            model.fit(x, table.y[train].numpy())
            return float((model.predict(x_test) == table.y[test].numpy()).mean())

    best: tuple[float, dict[str, float], Any] = (-1.0, {}, None)
    for settings, model in estimators(name, table.x.shape[1], grid, seed):
        found = tested(model, *table.tuning)
        best = max(best, (found, settings, model), key=lambda one: one[0])
    hits = [tested(best[2], train, test) for train, test in table.folds]
    return Judged(float(np.mean(hits)), best[1])


def judged(name: str, table: Tabular, grid: Grid, budget: Budget, seed: int) -> Judged:
    """One method on one table."""
    if name in NETWORKS:
        return network(name, table, grid, budget, seed)
    return classical(name, table, grid, seed)
