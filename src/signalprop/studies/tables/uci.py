"""UCI-121: accuracy of eight methods on every table, their mean ranks, and tests of pairs."""

from __future__ import annotations

import numpy as np

from signalprop.studies.frame import Measurement, Series, Table
from signalprop.studies.plain import Found
from signalprop.studies.tables.data import Tabular
from signalprop.studies.tables.models import NETWORKS, SELU
from signalprop.studies.tables.plan import Clock, Plan, network_seconds
from signalprop.studies.tables.ranks import mean_ranks, paired
from signalprop.studies.tables.search import METHODS, SVM, Grid, judged

#: the paper's mean ranks on its 46 sets of at least 1000 rows, of 24 methods
PUBLISHED = {SELU: 5.8, SVM: 6.1, "random forest": 6.6}

#: the methods as heads of narrow columns
SHORT = ("SELU", "He", "BN", "LN", "HW", "res", "SVM", "RF")
ACCURACY = (
    "Accuracy on the test rows, % (He, BN, LN: ReLU with He's weights, BatchNorm, "
    "LayerNorm; HW: highway; res: residual; RF: random forest)"
)


def seconds(plan: Plan, tables: list[Tabular]) -> float:
    """Expected seconds of all tables."""
    return sum(one(plan, table) for table in tables)


def one(plan: Plan, table: Tabular) -> float:
    """Expected seconds of one table: networks, forests, SVMs."""
    grid, rows = plan.grid, len(table.y) / 1000
    forests = (len(grid.shares) + 4) * grid.trees * 1e-3 * (0.5 + rows)
    machines = (len(grid.costs) * len(grid.gammas) + 4) * 0.02 * rows**2
    return network_seconds(grid, plan.budget, grid.networks + 4) + forests + machines


def measure(clock: Clock, plan: Plan, tables: list[Tabular], seed: int) -> Found:
    """All methods on all tables."""
    numbers: list[Measurement] = []
    rows: list[tuple[str | float | int, ...]] = []
    scores: list[list[float]] = []
    layers: list[float] = []
    for i, table in enumerate(tables):
        part = one(plan, table) / len(METHODS)
        reached: list[float] = []
        for name in METHODS:
            clock.at(f"table {i + 1} of {len(tables)}, {table.name}: {name}")
            found = judged(name, table, plan.grid, plan.budget, seed)
            reached.append(found.score)
            if name == SELU:
                layers.append(found.settings["layers"])
            note = f"{len(table.y):,} rows; {said(found.settings)}"
            numbers.append(
                Measurement(f"{table.name}: {name}", found.score, "", None, note, tabled=True)
            )
            clock.add(part)
        scores.append(reached)
        rows.append((table.name, *(round(100 * score, 1) for score in reached)))
    return summary(numbers, rows, scores, layers, plan.grid)


def said(settings: dict[str, float]) -> str:
    """Settings in one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in settings.items())


def summary(
    numbers: list[Measurement], rows: list[tuple[str | float | int, ...]],
    scores: list[list[float]], layers: list[float], grid: Grid,
) -> Found:  # fmt: skip
    """Mean ranks, Wilcoxon tests and the number of hidden layers chosen for SELU."""
    table = np.array(scores)
    ranks, among = mean_ranks(table), mean_ranks(table[:, : len(NETWORKS)])
    numbers = [Measurement("tables: number", len(scores), tabled=True), *numbers]
    for j, name in enumerate(METHODS):
        mine = [
            ("mean rank", float(ranks[j]), None),
            ("mean accuracy", float(table[:, j].mean()), None),
        ]
        if name in NETWORKS:
            mine.append(("mean rank among networks", float(among[j]), None))
        if name != SELU:
            difference = table[:, 0] - table[:, j]
            mine += [
                ("p against SELU", paired(table[:, 0], table[:, j]), None),
                ("SELU is ahead on", float((difference > 1e-9).sum()), None),
                ("SELU is behind on", float((difference < -1e-9).sum()), None),
            ]
        numbers += [
            Measurement(f"tables, {name}: {what}", value, "", expected, tabled=True)
            for what, value, expected in mine
        ]
    deep = max(grid.depths)
    numbers.append(
        Measurement("tables, SELU: where the deepest net was chosen",
                    float(sum(depth == deep for depth in layers)), "", None,
                    f"{deep} hidden layers; the paper's winners had 10.8 on average")
    )  # fmt: skip
    order = np.argsort(ranks)
    series = Series(
        "Mean rank over tables (1 is best)", "of eight methods",
        tuple(float(k + 1) for k in range(len(order))), tuple(float(ranks[k]) for k in order),
        "place: " + ", ".join(f"{k + 1} {METHODS[i]}" for k, i in enumerate(order)), "mean rank",
    )  # fmt: skip
    rows.append(("mean rank", *ranks.round(2).tolist()))
    shown = Table(ACCURACY, ("table", *SHORT), tuple(rows))
    return numbers, [series], shown


def comparison(values: dict[str, float]) -> Table:
    """SELU against every other method."""
    rows = []
    for name in METHODS:
        at = f"tables, {name}"
        own = values.get(f"{at}: mean rank among networks", "")
        pair = ("", "", "") if name == SELU else (
            values[f"{at}: SELU is ahead on"], values[f"{at}: SELU is behind on"],
            values[f"{at}: p against SELU"],
        )  # fmt: skip
        rows.append((name, values[f"{at}: mean rank"], own, values[f"{at}: mean accuracy"], *pair))
    columns = ("method", "mean rank", "among networks", "mean accuracy", "SELU ahead",
               "SELU behind", "p (Wilcoxon)")  # fmt: skip
    return Table("Tables: SELU against the others", columns, tuple(rows))
