"""The tables: detected, named rightly, false alarms, repaired, time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.broken_programs import repair
from benchmarks.broken_programs.descriptions import Case
from benchmarks.broken_programs.faults import named
from rich.console import Console
from rich.table import Table

WHEN = ("start", "early")
#: a program has learned where it closes this part of the gap between a constant and perfection
LEARNED = 0.3
#: how far below the published metric a program may stay and still count as trained well, and where
#: it is run smaller than published
MARGIN, SCALED_MARGIN = 0.05, 0.1


@dataclass(frozen=True)
class Row:
    """One program with one seed.

    Attributes:
        key: `DL-SO-48385830/buggy/0`.
        case: its case.
        which: `buggy` or `correct`.
        result: what `run.one` returned.
    """

    key: str
    case: Case
    which: str
    result: Mapping[str, Any]

    @property
    def sick(self) -> bool:
        """Whether it is broken, by its publication."""
        return self.case.role == "sick" and self.which == "buggy"

    def codes(self, when: str, severity: str = "issue") -> frozenset[str]:
        """Codes of the findings; an error of `diagnose` is none."""
        found = self.result.get("diagnosis", {}).get(when, {}).get("findings", ())
        return frozenset(f["code"] for f in found if f["severity"] == severity)

    def alarmed(self) -> bool:
        """Whether there is an issue before or early in training."""
        return any(self.codes(when) for when in WHEN)

    @property
    def learned(self) -> bool:
        """Whether it is clearly better than the best constant output."""
        metric, constant = self.result.get("metric"), self.result.get("constant")
        if metric is None or constant is None or constant == 1:  # one class: nothing to learn
            return False
        if self.case.metric == "loss":
            return metric <= constant + MARGIN
        return metric >= constant + LEARNED * (1 - constant)

    @property
    def well(self) -> bool:
        """Whether it trains well here: it learns, and reaches what was published."""
        metric, target = self.result.get("metric"), self.case.target
        if not self.learned or metric is None:
            return False
        if target is None:
            return True
        margin = SCALED_MARGIN if self.case.scaled_down else MARGIN
        if self.case.metric == "loss":
            return metric <= target + margin
        return metric >= target - margin


def rows(results: Mapping[str, Mapping[str, Any]], cases: tuple[Case, ...]) -> list[Row]:
    """The results with their cases."""
    by_id = {case.id: case for case in cases}
    found = []
    for key, result in results.items():
        name, which, _ = key.rsplit("/", 2)
        if name in by_id and "metric" in result:
            found.append(Row(key, by_id[name], which, result))
    return found


def summary(found: list[Row]) -> dict[str, tuple[int, int]]:
    """How many of how many, by name.

    Args:
        found: the rows.

    Returns:
        Counts for the sick, the controls, and the published fixes.
    """
    sick = [r for r in found if r.sick]
    controls = [r for r in found if r.case.role == "healthy" and r.which == "buggy"]
    fixes = [r for r in found if r.which == "correct"]
    derived = [r for r in fixes if not (r.case.correct_from or "").startswith("published")]
    published = [r for r in fixes if r not in derived]
    counts: dict[str, tuple[int, int]] = {}

    def count(name: str, of: list[Row], test: Any) -> None:
        counts[name] = sum(bool(test(r)) for r in of), len(of)

    count("sick: detected at the start", sick, lambda r: r.codes("start"))
    count("sick: detected early", sick, lambda r: r.codes("early"))
    count("sick: detected at either", sick, Row.alarmed)
    count(
        "sick: named rightly at the start", sick, lambda r: named(r.case.faults, r.codes("start"))
    )
    count("sick: named rightly early", sick, lambda r: named(r.case.faults, r.codes("early")))
    count(
        "sick: named rightly at either",
        sick,
        lambda r: any(named(r.case.faults, r.codes(when)) for when in WHEN),
    )
    mended = [r for r in sick if mends(r, found)]
    count("sick that the fix makes better here: detected at either", mended, Row.alarmed)
    for name, group in (
        ("controls", controls),
        ("published fixes", published),
        ("AutoTrainer's solutions", derived),
    ):
        well = [r for r in group if r.well]
        count(f"{name}: false alarm at the start, of those that train well", well, _at("start"))
        count(f"{name}: false alarm early, of those that train well", well, _at("early"))
        count(f"{name}: alarm, of those that do not", [r for r in group if not r.well], Row.alarmed)
    cured = [r for r in sick if "metric" in r.result.get("cure", {})]
    known = [v for r in cured if (v := repaired(r)) is not None]
    if known:
        counts["sick: repaired"] = sum(known), len(known)
        some = [v for r in cured if mends(r, found) and (v := repaired(r)) is not None]
        counts["sick that the fix makes better here: repaired"] = sum(some), len(some)
    return counts


def _at(when: str) -> Any:
    return lambda row: row.codes(when)


def mends(row: Row, found: list[Row]) -> bool:
    """Whether the fix is better here than the sick program; where there is none, whether it fails.

    Some published faults do no harm that can be measured, and some published fixes do no good.
    """
    fixed = _fixed(row, found)
    if fixed is None:
        return not row.well
    metric, better = row.result["metric"], fixed.result["metric"]
    if metric is None or better is None:
        return better is not None
    return (metric - better if row.case.metric == "loss" else better - metric) > MARGIN


def _fixed(row: Row, found: list[Row]) -> Row | None:
    """The same case and seed after the fix."""
    key = f"{row.case.id}/correct/{row.key.rsplit('/', 1)[1]}"
    return next((r for r in found if r.key == key), None)


def repaired(row: Row) -> bool | None:
    """Whether the cure of a sick program is as good as its fix, measured here or published."""
    cure = row.result["cure"]
    wanted = row.case.target if cure.get("wanted") is None else cure["wanted"]
    return repair.repaired(cure["metric"], wanted, lower_is_better=row.case.metric == "loss")


def show(
    results: Mapping[str, Mapping[str, Any]], cases: tuple[Case, ...], console: Console
) -> None:
    """Print one line per program and the summary."""
    found = rows(results, cases)
    table = Table(title="Programs")
    for name in ("program", "fault", "metric", "fails", "start", "early", "ms/update", "x"):
        table.add_column(name, overflow="fold")
    for row in sorted(found, key=lambda r: (not r.sick, r.which, r.key)):
        table.add_row(*_cells(row))
    console.print(table)
    total = Table(title="Summary")
    for name in ("what", "of", "share"):
        total.add_column(name)
    for name, (part, of) in summary(found).items():
        total.add_row(name, f"{part}/{of}", f"{part / of:.0%}" if of else "")
    console.print(total)
    costs = [c for r in found if (c := _cost(r)) is not None]
    if costs:
        console.print(f"diagnose costs {statistics.median(costs):.0f} updates in the median")
    none = [case.id for case in cases if case.role == "no program"]
    if none:
        console.print(f"without a published program, not run: {', '.join(none)}")


def _cells(row: Row) -> tuple[str, ...]:
    result = row.result
    metric = result["metric"]
    target = row.case.target
    shown = "nan" if metric is None else f"{metric:.3f}"
    shown += "" if target is None else f" ({target:.3f})"
    fault = ", ".join(row.case.faults) if row.sick else ""
    role = fault or ("fix" if row.which == "correct" else "control")
    cost = _cost(row)
    return (
        row.key,
        role,
        shown,
        "" if row.well else "fails",
        *(_codes(row, when) for when in WHEN),
        f"{1e3 * result['seconds_per_update']:.2f}",
        "" if cost is None else f"{cost:.0f}",
    )


def _codes(row: Row, when: str) -> str:
    found = row.result.get("diagnosis", {}).get(when, {})
    if "error" in found:
        return "error"
    tips = sorted(row.codes(when, "tip"))
    codes = sorted(row.codes(when))
    mark = "*" if row.sick and named(row.case.faults, row.codes(when)) else ""
    return " ".join(codes) + mark + (f" ({' '.join(tips)})" if tips else "")


def _cost(row: Row) -> float | None:
    """Time of one diagnosis in updates."""
    spent = row.result.get("diagnosis", {}).get("start", {}).get("seconds")
    per = row.result.get("seconds_per_update")
    return spent / per if spent and per else None
