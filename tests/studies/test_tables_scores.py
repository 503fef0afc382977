"""Ranks, tests of pairs, AUC over tasks, splits of molecules."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from signalprop.errors import MissingPackageError, SignalpropError
from signalprop.studies.tables import molecules, nested, search
from signalprop.studies.tables.data import Tabular, around, deal
from signalprop.studies.tables.plan import spoken
from signalprop.studies.tables.ranks import mean_ranks, paired
from signalprop.studies.tables.training import Budget, Problem

GRID = search.Grid(8, (3,), (1e-2,), (0.0,), 10, (0.5, 1, 2), (1, 10), (0.5, 1))


def test_mean_ranks():
    scores = np.array([[0.9, 0.8, 0.7], [0.5, 0.5 + 1e-12, 0.6]])
    assert mean_ranks(scores).tolist() == [1.75, 2.25, 2.0]


def test_paired():
    # all six differences of one sign: 2 of 2^6 assignments are as extreme
    assert paired([1, 2, 3, 4, 5, 6], [0.9, 1.8, 2.7, 3.6, 4.5, 5.4]) == pytest.approx(2 / 64)
    assert paired([1, 2], [1, 2 + 1e-12]) == 1.0


def test_auc_of_many_tasks_leaves_unknown_labels_out():
    nan = float("nan")
    outputs = torch.tensor([[0.1, 9.0], [0.4, 1.0], [0.3, 2.0], [0.8, 3.0]])
    targets = torch.tensor([[0, nan], [0, 1], [1, 0], [1, nan]])
    # pairs in order: 3 of 4 in the first task, 0 of 1 in the second
    assert nested.many_tasks(outputs, targets) == pytest.approx((0.75 + 0.0) / 2)
    # a task with one class only has no AUC
    assert nested.many_tasks(outputs, torch.tensor([[0, 1.0]] * 2 + [[1, 1.0]] * 2)) == 0.75
    assert nested.many_tasks(outputs, torch.full((4, 2), nan)) == float("-inf")


def test_masked_loss():
    outputs, targets = torch.randn(2, 5, 3), torch.randint(2, (2, 5, 3)).float()
    targets[torch.rand(2, 5, 3) < 0.4] = float("nan")
    wanted = sum(
        F.binary_cross_entropy_with_logits(o[t.isfinite()], t[t.isfinite()])
        for o, t in zip(outputs, targets, strict=True)
    )
    torch.testing.assert_close(nested.masked(outputs, targets), wanted)


def test_ties_of_accuracy_go_to_the_lower_loss():
    right, sure = torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 0.0]])
    y = torch.tensor([0])
    assert search.sharp(right, y) < search.sharp(sure, y) <= 1
    assert search.accuracy(right, y) == 1


def test_held_back():
    y = torch.arange(70) % 2
    train = torch.arange(0, 70, 2)
    rows = search.held_back(y, train, 0)
    assert sorted(torch.cat([rows.train, rows.validation]).tolist()) == train.tolist()
    assert len(rows.validation) == 5


@pytest.fixture(scope="module")
def table():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 4, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0).long()
    parts = deal(y, 4, 0)
    return Tabular("plane", x, y, (torch.cat(parts[:2]), torch.cat(parts[2:])), around(parts))


@pytest.mark.parametrize("name", ["SELU", "SVM", "random forest"])
def test_methods_learn_a_plane(name, table):
    with torch.random.fork_rng(devices=[]):
        first = search.judged(name, table, GRID, Budget(60, every=20), 0)
        torch.rand(7)  # what was drawn before plays no part
        second = search.judged(name, table, GRID, Budget(60, every=20), 0)
    assert first == second
    assert first.score > 0.8


def test_fixed_test_rows(table):
    fixed = Tabular("fixed", table.x, table.y, table.tuning, table.folds[:1])
    with torch.random.fork_rng(devices=[]):
        assert search.judged("SELU", fixed, GRID, Budget(40, every=20), 0).score > 0.8


def test_grids():
    found = [s for s, _ in search.estimators("random forest", 16, GRID, 0)]
    assert found == [{"features per split": k} for k in (2, 4, 8)]
    machines = list(search.estimators("SVM", 4, GRID, 0))
    assert [(m.C, m.gamma) for _, m in machines] == [(1, 0.5), (1, 0.25), (10, 0.5), (10, 0.25)]


@pytest.mark.parametrize("name", ["ReLU, He", "SVM", "random forest"])
def test_nested(name, table):
    first, second, third, fourth = deal(table.y, 4, 0)
    splits = [
        (torch.cat([first, second]), third, fourth),
        (torch.cat([third, fourth]), first, second),
    ]
    task = Problem(table.x, table.y, 2, search.cross_entropy, nested.one_task)
    with torch.random.fork_rng(devices=[]):
        found = nested.judged(name, "plane", task, splits, GRID, Budget(40, every=20), 0)
    assert len(found) == 2
    assert all(one.test > 0.85 and one.validation > 0.85 for one in found)


def test_forest_for_every_task(table):
    y = torch.stack([table.y.float(), 1 - table.y.float(), torch.ones(160)], 1)
    y[::3, 1] = float("nan")
    task = Problem(table.x, y, 3, nested.masked, nested.many_tasks)
    first, second, third, fourth = deal(table.y, 4, 0)
    splits = [(torch.cat([first, second]), third, fourth)]
    (found,) = nested.judged("random forest", "three", task, splits, GRID, Budget(1), 0)
    assert found.test > 0.85  # the third task has one class only, and counts for nothing


def test_scaffold_split():
    scaffolds = tuple("a" * 30 + "b" * 30 + "c" * 20 + "d" * 8 + "efghijklmnop")
    parts = molecules.scaffold_split(scaffolds)
    assert sorted(torch.cat(parts).tolist()) == list(range(100))
    assert [len(p) for p in parts] == [80, 10, 10]
    named = [{scaffolds[int(i)] for i in p} for p in parts]
    assert not named[0] & named[1]
    assert not (named[0] | named[1]) & named[2]


def test_random_split():
    parts = molecules.random_split(100, 1)
    assert [len(p) for p in parts] == [80, 10, 10]
    assert sorted(torch.cat(parts).tolist()) == list(range(100))


@pytest.fixture
def tox21(tmp_path, monkeypatch):
    (tmp_path / "molecules").mkdir()
    path = tmp_path / "molecules" / "tox21_moleculenet.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("A,B,mol_id,smiles\n0,,T1,c1ccccc1CC\n1,0,T2,CCO\n,1,T3,no molecule\n")
    monkeypatch.setenv("SIGNALPROP_DATA", str(tmp_path))
    return path


def test_tox21(tox21):
    pytest.importorskip("rdkit", reason="RDKit is an optional package")
    found = molecules.tox21()
    assert found.assays == ("A", "B")
    assert found.unread == 1
    assert found.scaffolds == ("c1ccccc1", "")
    assert found.x.shape[0] == 2
    assert found.x.shape[1] > 700
    assert bool(found.x.isfinite().all())
    assert found.y.isnan().tolist() == [[False, True], [False, False]]
    assert len(molecules.tox21(1).x) == 1
    tox21.write_bytes(b"damaged")
    with pytest.raises(SignalpropError, match="tox21_moleculenet"):
        molecules.tox21()


def test_without_rdkit(tox21, monkeypatch):
    # another test may have loaded its parts
    for name in ("rdkit", *(n for n in sys.modules if n.startswith("rdkit."))):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match="RDKit"):
        molecules.tox21()


@pytest.mark.parametrize(("seconds", "said"), [(3, "10 s"), (64, "60 s"), (1500, "25 min")])
def test_spoken(seconds, said):
    assert spoken(seconds) == said
