"""What a network has at its start, and after some updates."""

from dataclasses import replace

import pytest
import torch
from tests.cures.trials.support import LOSS, adam, net, table
from torch import nn

from signalprop.cures.training import Recipe, Training
from signalprop.cures.trials import findings
from signalprop.cures.trials.data import read
from signalprop.diagnosis.finding import Diagnosis, Finding


def healthy(rate=1e-3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = Recipe.of(lambda p: torch.optim.SGD(p, lr=rate), model)
    return Training(model, nn.functional.cross_entropy, optimizer)


def easy(size, n=256):
    torch.manual_seed(1)
    x = torch.randn(n, 8)
    return read((x, (x[:, 0] > 0).long()), batch_size=size)


def test_small_batches_are_joined(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        findings, "diagnose", lambda model, batch, *a, **k: sizes.append(len(batch[0]))
    )
    findings.diagnosed(healthy(), easy(1), 0)
    findings.diagnosed(healthy(), easy(20), 0)
    findings.diagnosed(healthy(), easy(64), 0)
    assert sizes == [32, 40, 64]
    normed = healthy()
    normed.model.insert(1, nn.BatchNorm1d(32))
    findings.diagnosed(normed, easy(4), 0)
    assert sizes[-1] == 4


def test_batches_of_different_forms_are_not_joined():
    batch = {"x": torch.randn(4, 3), "n": 5}
    data = read([batch, {"x": torch.randn(4, 3), "n": 6}])
    assert data.sample() is data.train[0]
    data = read([(torch.randn(4, n), torch.randn(4)) for n in (3, 5)])
    assert data.sample() is data.train[0]
    data = read([{"x": torch.randn(4, 3), "y": torch.randn(4)}] * 3)
    assert data.sample()["x"].shape == (12, 3)


def stub(*codes, severity="issue"):
    found = [Finding(c, c, severity, (), 1.0, "", 0.0, "", ()) for c in codes]
    return replace(_bare(), findings=tuple(found))


def _bare():
    return findings.diagnosed(healthy(), easy(64), 0)


def test_a_healthy_one_is_looked_at_again_and_a_sick_one_is_not(monkeypatch):
    calls = []
    before, later = stub("SP114", severity="tip"), stub("SP110", "SP114")

    def early(*args):
        calls.append(args[-1])
        return later, (1.0, 0.5)

    monkeypatch.setattr(findings, "early", early)
    found = findings.falls_sick(healthy(), easy(64), 0, before, 40)
    assert [f.code for f in found.findings] == ["SP114", "SP110"]
    assert "after 40 updates" in found.note
    assert "SP110" in found.note
    assert findings.falls_sick(healthy(), easy(64), 0, stub("SP101"), 40).note == ""
    assert calls == [40]


def test_the_network_is_not_touched_and_dead_units_show():
    training = healthy(rate=300.0)  # kills every unit
    kept = [p.clone() for p in training.model.parameters()]
    data, random = easy(32), torch.get_rng_state()
    found, _ = findings.early(training, data, 0, 20)
    assert isinstance(found, Diagnosis)
    assert found.findings
    assert all(torch.equal(a, b) for a, b in zip(kept, training.model.parameters(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    later, curve = findings.early(healthy(), easy(32), 0, 20)
    assert later.healthy
    assert curve[-1] < curve[0]


def test_from_the_network_of_the_other_tests():
    model = net()
    training = Training(model, LOSS, Recipe.of(adam, model))
    data = read(table(), batch_size=64)
    before = findings.diagnosed(training, data, 0)
    assert findings.falls_sick(training, data, 0, before, 5) == findings.Found(before.findings)


@pytest.mark.parametrize(("curve", "idle"), [((1.0, 1.2, 2.0), True), ((1.0, 0.9, 0.8), False)])
def test_where_nothing_is_found_the_loss_must_fall(monkeypatch, curve, idle):
    monkeypatch.setattr(findings, "early", lambda *_: (None, curve))
    found = findings.falls_sick(healthy(), easy(64), 0, stub(), 40)
    assert found.idle == idle
    assert ("40 updates take the loss from 1 to 2" in found.note) == idle
    assert not findings.falls_sick(healthy(), easy(64), 0, stub("SP101"), 40).idle
