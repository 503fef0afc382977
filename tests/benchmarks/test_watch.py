"""The benchmark of watching: what is counted as whose time, and what as an alarm."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import torch.nn.functional as F
from benchmarks import bench_watch, watch_alarms
from benchmarks.bench_watch import Block, Way, cost, unsampled, write
from benchmarks.watch_alarms import Asked, count
from benchmarks.watch_peers.peers import PEERS, VERDICTS
from benchmarks.watchers import Hooks, Norms, Signalprop, Watcher
from tests.cases import by_name
from torch import nn


def small():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return model, (torch.randn(5, 6), torch.randint(3, (5,))), F.cross_entropy, optimizer


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setitem(bench_watch.NETWORKS, "small", small)
    monkeypatch.setattr(bench_watch, "BLOCK", 0.0)
    return "small"


class Slow(Watcher):
    """Works on the clock for as long as the rest of a step, and longer when told to flush."""

    def ended(self, loss):
        for _ in range(3):
            torch.randn(300, 300) @ torch.randn(300, 300)

    def flush(self):
        for _ in range(10):
            self.ended(None)


class Broken(Watcher):
    def backward(self):
        raise RuntimeError("no gradients for me")


class Loud(Watcher):
    """Says that one network is ill, and has a remark about another."""

    def alarms(self):
        width = next(self.model.parameters()).shape[-1]
        return [{"code": "X1", "serious": width == 16, "critical": False, "text": str(width)}]


def test_what_runs_behind_the_training_and_the_flush_are_the_watchers():
    one = Block(steps=10, plain=2.0, watched=2.2, behind=0.4, flush=0.2, close=9.0)
    assert one.ratio == pytest.approx(1.3)
    assert one.flushed == pytest.approx(1.4)


def test_costs(network):
    found = cost(network, {"a": Way(Watcher), "slow": Way(Slow), "broken": Way(Broken)}, 2)
    assert 0.3 < found["a"]["median"] < 3
    assert found["slow"]["median"] > 3
    assert found["slow"]["with flush"] > 1.3 * found["slow"]["median"]
    low, high = found["slow"]["quartiles"]
    assert low <= found["slow"]["median"] <= high
    assert found["broken"] == {"failed": "RuntimeError: no gradients for me"}
    assert found["plain step, ms"] > 0


def test_steps_that_are_not_sampled(network):
    found = unsampled(network, 8)
    assert found["modules"] == 4
    assert 0 < found["us per step"] < 1e5


def test_every_way_watches(network, tmp_path):
    found = cost(network, bench_watch.OURS, 1)
    assert not [name for name, one in found.items() if "failed" in str(one)]


def test_the_references_see_what_they_say(tmp_path):
    torch.manual_seed(0)
    model, (x, y), loss, optimizer = small()
    seen = Hooks(model, optimizer, None, tmp_path)
    value = loss(model(x), y)
    value.backward()
    seen.backward()
    seen.ended(value)
    seen.close()
    assert seen.norms == pytest.approx([float(p.grad.norm()) for p in model.parameters()])
    hidden = model[:2](x).detach()
    expected = [hidden.mean(), hidden.std(), hidden.abs().max(), (hidden == 0).float().mean()]
    assert seen.activations[1] == pytest.approx([float(v) for v in expected], rel=1e-5)
    assert len(seen.activations) == 3
    model(x)
    assert not seen.rows  # its hooks are gone


def test_alarms_are_counted(monkeypatch):
    chosen = tuple(by_name(name) for name in ("mlp-sigmoid-1", "regression-mse", "data-loader"))
    monkeypatch.setattr(watch_alarms, "cases", lambda health: chosen)
    found = count(Asked(Loud, None, 3), "healthy")
    widths = {case.name: next(case.build()[0].parameters()).shape[-1] for case in chosen}
    ill = [name for name, width in widths.items() if width == 16]
    assert found["networks"] == 3
    assert found["with an alarm"] == len(ill)
    assert found["with one above a warning"] == 0
    assert found["with lesser remarks only"] == 3 - len(ill)
    assert sorted(found["which"]) == sorted(ill)
    broken = count(Asked(Broken, None, 3), "sick")
    assert broken["networks"] == 0
    assert len(broken["failed"]) == 3


def test_our_alarms_have_what_is_counted():
    logging.getLogger("signalprop").setLevel(logging.ERROR)
    found = watch_alarms.train(by_name("nan-data"), Signalprop, 1, 3)
    assert found[0]["code"] == "SP411"
    assert found[0]["serious"]
    assert found[0]["step"] == 0


def test_a_network_trains_on_the_data_it_came_with():
    model, data, loss = by_name("changes-its-input").build()
    first, second = (b for b, _ in zip(watch_alarms._batches(data), range(2), strict=False))
    before = [t.clone() for t in first if isinstance(t, torch.Tensor)]
    watch_alarms.plain_loss(model, first, loss)
    again = [t for t in next(watch_alarms._batches(data)) if isinstance(t, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))
    assert second is not first


def test_the_peers_are_named_without_being_there():
    assert set(VERDICTS) < set(PEERS)
    assert all(issubclass(watcher, Watcher) and watcher is not Norms for watcher in PEERS.values())


def test_figures_of_the_same_machine_stay(tmp_path):
    path = tmp_path / "watch.json"
    write(path, {"a": 1, "b": 1})
    write(path, {"b": 2})
    assert json.loads(path.read_text())["figures"] == {"a": 1, "b": 2}
