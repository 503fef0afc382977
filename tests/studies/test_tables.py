"""selu-tables: what is run where, what it says, and verdicts that follow from the numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from signalprop.studies.frame import Setup
from signalprop.studies.tables import data, molecules, nested, study, verdicts
from signalprop.studies.tables.models import NETWORKS
from signalprop.studies.tables.plan import FULL, QUICK
from signalprop.studies.tables.search import METHODS, Grid
from signalprop.studies.tables.training import Budget

GRID = Grid(8, (3,), (1e-2,), (0.0,), 5, (1,), (1,), (1,))
TINY = dataclasses.replace(
    QUICK, grid=GRID, budget=Budget(10, batch=16, every=10), nested=GRID,
    nested_budget=Budget(10, batch=16, every=10), repeats=2, molecules=300, folds=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def run(told):
    """A tiny run on two bundled tables, and on what looks like HTRU2 and Tox21."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        few = data.bundled()[:2]
        x = torch.randn(300, 8)
        y = (x[:, 0] + 0.3 * torch.randn(300) > 0.5).long()
        labels = torch.stack([y.float(), 1 - y.float()], 1)
        labels[::5, 0] = float("nan")
        patch.setattr(data, "bundled", lambda seed=0: few)
        there = {"HTRU_2.csv.gz", "tox21_moleculenet.csv.gz"}
        patch.setattr(data, "folder", lambda *parts: parts if parts[-1] in there else None)
        patch.setattr(data, "htru2", lambda: (x, y))
        patch.setattr(study, "rdkit", lambda: True)
        made = molecules.Molecules(x, labels, ("a", "b"), tuple("abc" * 100), 0)
        patch.setattr(molecules, "tox21", lambda limit: made)
        return study.run(Setup(True, 0, lambda *words: told.append(words)), TINY)


@pytest.fixture(scope="module")
def numbers(run):
    return {m.name: m.value for m in run.measurements}


def test_what_was_run(run, numbers, told):
    assert told[0][0] == 0.0
    assert told[0][1].startswith("this takes about ")
    assert told[0][1].endswith("2 tables, HTRU2, Tox21")
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert all("left" in doing for _, doing in told[1:])
    titles = [t.title.split(":")[0] for t in run.tables]
    assert titles[0] == "Tables"
    assert titles[2:] == ["HTRU2", "Tox21, random splits", "What differs"]
    assert ("not run", "UCI-121: no uci121/*.tar.* in the folder SIGNALPROP_DATA names", "") in (
        run.tables[-1].rows
    )
    assert "iris" in run.data
    for name in METHODS:
        assert 0 <= numbers[f"iris: {name}"] <= 1
        assert 1 <= numbers[f"tables, {name}: mean rank"] <= len(METHODS)
    mean = sum(numbers[f"tables, {name}: mean rank"] for name in METHODS) / len(METHODS)
    assert mean == pytest.approx((len(METHODS) + 1) / 2)
    assert len(numbers) == len(run.measurements)


def test_claims(numbers):
    claims = verdicts.judge(numbers)
    assert len(claims) == 6
    assert "not UCI-121" in claims[0].text
    assert "cannot give a p below 0.5" in claims[0].because
    assert [bool(c.correct) for c in claims] == [c.verdict != "holds" for c in claims]
    alone = {k: v for k, v in numbers.items() if not k.startswith(("HTRU2", "Tox21"))}
    assert len(verdicts.judge(alone)) == 2


def ranked(own, others, p):
    changed = {"tables, SELU: mean rank among networks": own}
    for name in METHODS[1:]:
        changed[f"tables, {name}: p against SELU"] = p
        if name in NETWORKS:
            changed[f"tables, {name}: mean rank among networks"] = others
    return changed


RANDOM = "Tox21, random splits"
HTRU2 = {"HTRU2, SELU: AUC": 1.1}


@pytest.mark.parametrize(
    ("changed", "at", "verdict"),
    [
        (ranked(1.0, 4.0, 0.01), 0, "holds"),
        (ranked(1.0, 4.0, 0.2), 0, "holds in part"),
        (ranked(4.0, 3.0, 0.2), 0, "does not hold as printed"),
        (ranked(1.0, 4.0, 0.01) | {"tables, residual: mean rank among networks": 0.5}, 0,
         "does not hold as printed"),
        ({"tables, SELU: mean rank": 0.1}, 1, "holds"),
        ({"tables, SELU: mean rank": 9.0}, 1, "does not hold as printed"),
        ({"tables, SELU: mean rank": 5.0, "tables, SVM: mean rank": 4.0,
          "tables, random forest: mean rank": 6.0}, 1, "holds in part"),
        ({"HTRU2, SELU: AUC": 0.9705}, 2, "holds"),
        ({"HTRU2, SELU: AUC": 0.9695}, 2, "does not hold as printed"),
        (HTRU2 | {f"HTRU2, {n}: p against SELU": 0.01 for n in METHODS}, 3, "holds"),
        (HTRU2 | {f"HTRU2, {n}: p against SELU": 0.1 for n in METHODS}, 3, "holds in part"),
        ({f"{RANDOM}, SELU: AUC": 0.84}, 4, "holds"),
        ({f"{RANDOM}, SELU: AUC": 0.80}, 4, "does not hold as printed"),
        # behind one by chance, surely ahead of another
        ({f"{RANDOM}, {n}: p against SELU": 0.5 for n in METHODS}
         | {f"{RANDOM}, highway: AUC": 2.0, f"{RANDOM}, residual: AUC": 0.0,
            f"{RANDOM}, residual: p against SELU": 0.01}, 5, "holds in part"),
        ({f"{RANDOM}, {n}: p against SELU": 0.5 for n in METHODS}
         | {f"{RANDOM}, highway: AUC": 2.0}, 5, "does not hold as printed"),
        ({f"{RANDOM}, highway: AUC": 2.0, f"{RANDOM}, highway: p against SELU": 0.01}, 5,
         "does not hold as printed"),
    ],
)  # fmt: skip
def test_doctored_numbers_change_the_verdict(changed, at, verdict, numbers):
    claims = verdicts.judge(numbers | changed)
    assert claims[at].verdict == verdict
    assert bool(claims[at].correct) == (verdict != "holds")


def test_scaffolds_are_mentioned_where_they_were_run(numbers):
    more = {"Tox21, scaffold split, SELU: AUC": 0.712}
    assert "With scaffolds kept apart: 0.7120." in verdicts.judge(numbers | more)[4].because


def test_same_seed_same_numbers():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    task = study.auc.Problem(x, torch.arange(300) % 2, 2, study.auc.cross_entropy, nested.one_task)
    splits = [tuple(torch.arange(300).split(100))]
    with torch.random.fork_rng(devices=[]):
        first, second, other = (
            nested.judged("ReLU, He", "waves", task, splits, GRID, TINY.budget, seed)
            for seed in (3, 3, 4)
        )
    assert first == second
    assert first != other


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt), study.one_thread():
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before


def test_what_is_not_run_is_said(monkeypatch):
    there = {"tox21_moleculenet.csv.gz"}
    monkeypatch.setattr(data, "folder", lambda *p: p if p[-1] in there else None)
    monkeypatch.setattr(study, "rdkit", lambda: False)
    quick, full = (study.at_hand(plan, 0) for plan in (QUICK, FULL))
    assert [m.split(":")[0] for m in quick.missing] == ["UCI-121", "HTRU2", "Tox21"]
    assert "the quick run leaves it out" in quick.missing[2]
    assert "needs RDKit" in full.missing[2]
    assert not full.toxicity
    monkeypatch.setattr(study, "rdkit", lambda: True)
    assert study.at_hand(FULL, 0).toxicity
