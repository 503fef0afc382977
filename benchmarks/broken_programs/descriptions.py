"""The descriptions of the cases: facts read from cases/*.json, validated when they are loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.broken_programs.fixes import derive
from benchmarks.broken_programs.spec import Spec

Role = Literal["sick", "healthy", "no program"]
Which = Literal["buggy", "correct"]

FOLDER = Path(__file__).parent / "cases"
#: what a case is measured by: share of right classes, share of right bits, 1 - mse / variance of
#: the targets, and the loss itself where nothing can be learned
METRICS = ("accuracy", "bits", "r2", "loss")
ROLES = ("sick", "healthy", "no program")
#: the `correct` of a case that is made from its `buggy`, see `fixes.py`
DERIVED = ("selu", "relu", "batch-norm")


class CaseError(ValueError):
    """A description that cannot be used; the message names the case and the field."""


@dataclass(frozen=True)
class Case:
    """One published program.

    Attributes:
        id: name of the case.
        family: the benchmark it stands in; the file it is described in.
        source: repository, commit, paths, number of the StackOverflow question.
        role: `sick`, `healthy` (a control), or `no program` where the code was never published.
        faults: the published fault classes, in the words of `faults.FAULTS`.
        symptom: how the description's author reads it; not a published label.
        published: figures, fix, and what other tools said of it.
        metric: one of `METRICS`.
        buggy: the program as published; for a healthy case the program itself.
        correct: the program after the published fix.
        correct_from: where the fix comes from.
        target: the published metric after the fix, where there is one.
        assumed: what was not published and is assumed.
        scaled_down: what is run smaller than published.
        notes: what else a reader must know.
    """

    id: str
    family: str
    source: Mapping[str, Any]
    role: Role
    faults: tuple[str, ...]
    symptom: str | None
    published: Mapping[str, Any]
    metric: str
    buggy: Spec | None
    correct: Spec | None
    correct_from: str | None
    target: float | None
    assumed: str | None
    scaled_down: str | None
    notes: str | None

    def programs(self) -> Iterator[tuple[Which, Spec]]:
        """The programs there are, the published one first."""
        if self.buggy is not None:
            yield "buggy", self.buggy
        if self.correct is not None:
            yield "correct", self.correct


def load(folder: Path = FOLDER) -> tuple[Case, ...]:
    """All cases, in the order of the files and in them.

    Args:
        folder: where the files are.

    Returns:
        The cases.

    Raises:
        CaseError: a description is incomplete or contradicts itself.
    """
    cases: list[Case] = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        means = content.get("published_accuracy", {})
        cases += [_case(raw, means) for raw in content["cases"]]
    twice = {c.id for c in cases if sum(d.id == c.id for d in cases) > 1}
    if twice:
        raise CaseError(f"described twice: {', '.join(sorted(twice))}")
    if not cases:
        raise CaseError(f"there are no cases in {folder}")
    return tuple(cases)


def _case(raw: Mapping[str, Any], means: Mapping[str, float]) -> Case:
    from benchmarks.broken_programs.faults import FAULTS

    name = raw.get("id", "a case without an id")

    def need(key: str) -> Any:
        if key not in raw:
            raise CaseError(f"{name}: {key!r} is missing")
        return raw[key]

    role = need("role")
    if role not in ROLES:
        raise CaseError(f"{name}: role {role!r} is none of {', '.join(ROLES)}")
    faults = tuple(need("faults"))
    for fault in faults:
        if fault not in FAULTS:
            raise CaseError(f"{name}: fault {fault!r} is none of {', '.join(FAULTS)}")
    buggy = correct = None
    if role != "no program":
        if need("metric") not in METRICS:
            raise CaseError(f"{name}: metric {raw['metric']!r} is none of {', '.join(METRICS)}")
        if (role == "sick") != bool(faults):
            raise CaseError(f"{name}: a sick case has faults and a healthy one has none")
        buggy = _spec(need("buggy"), need("data"), name)
        fixed = raw.get("correct")
        if isinstance(fixed, str):
            if fixed not in DERIVED:
                raise CaseError(f"{name}: correct {fixed!r} is none of {', '.join(DERIVED)}")
            correct = derive(buggy, fixed)
        elif fixed is not None:
            correct = _spec(fixed, raw["data"], name)
    published = need("published")
    return Case(
        id=name,
        family=need("family"),
        source=need("source"),
        role=role,
        faults=faults,
        symptom=raw.get("symptom"),
        published=published,
        metric=raw.get("metric", "accuracy"),
        buggy=buggy,
        correct=correct,
        correct_from=raw.get("correct_from"),
        target=_target(raw, published, means),
        assumed=raw.get("assumed"),
        scaled_down=raw.get("scaled_down"),
        notes=raw.get("notes"),
    )


def _target(
    raw: Mapping[str, Any], published: Mapping[str, Any], means: Mapping[str, float]
) -> float | None:
    """The published metric of the mended program: of this one, else the mean for its data."""
    if "target" in raw:
        return raw["target"]
    key = "loss" if raw.get("metric") == "loss" else "accuracy"
    for when in ("after", "before") if raw["role"] == "healthy" else ("after",):
        value = (published.get(when) or {}).get(key)
        if value is not None and raw.get("metric") in ("accuracy", "bits", "loss"):
            return float(value)
    return means.get((raw.get("data") or {}).get("name", ""))


def _spec(raw: Mapping[str, Any], data: Mapping[str, Any], name: str) -> Spec:
    missing = [key for key in ("layers", "loss", "optimizer", "fit") if key not in raw]
    if missing:
        raise CaseError(f"{name}: a program without {', '.join(missing)}")
    fit = raw["fit"]
    if "epochs" not in fit:
        raise CaseError(f"{name}: a program without epochs")
    optimizer = dict(raw["optimizer"])
    if "name" not in optimizer:
        raise CaseError(f"{name}: an optimizer without a name")
    return Spec(
        layers=tuple(_unfolded(raw["layers"])),
        loss=raw["loss"],
        optimizer=optimizer,
        batch_size=fit.get("batch_size", 32),
        epochs=fit["epochs"],
        data=raw.get("data", data),
        run=raw.get("run", {}),
    )


def _unfolded(layers: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for layer in layers:
        if "repeat" in layer:
            for _ in range(layer["repeat"]):
                yield from layer["layers"]
        else:
            yield layer
