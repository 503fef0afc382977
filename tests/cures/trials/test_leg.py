"""A leg trains as a user would, can be cut in two, and never raises."""

import copy
import math
from dataclasses import replace

import torch
from tests.cures.trials.support import LOSS, adam, net, table
from torch import nn

from signalprop.cures.training import Recipe, Training
from signalprop.cures.trials.data import read
from signalprop.cures.trials.leg import Runner


def training(model=None, **what):
    model = model or nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.2), nn.Linear(8, 3))
    return replace(Training(model, LOSS, Recipe(adam).explicit(model)), **what)


def runner(made, data, steps=12, seed=3, **what):
    return Runner(made, data, seed=seed, total=steps, **what)


def test_the_same_as_a_plain_loop():
    data = read(table(), batch_size=32)
    model = net(2)
    plain = copy.deepcopy(model)
    runner(training(model), data).run(12)
    optimizer = adam(plain.parameters())
    for i in data.order(3, 12):
        x, y = data.train[i]
        optimizer.zero_grad()
        LOSS(plain(x), y).backward()
        optimizer.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_cut_in_two_it_is_the_same():
    data = read(table(), batch_size=32)
    whole, cut = training(), None
    cut = training(copy.deepcopy(whole.model))
    again = training(copy.deepcopy(whole.model))
    one = runner(whole, data).run(12)
    first = runner(cut, data)
    first.run(5)
    second = runner(again, data)
    second.resume(first.state())
    other = second.run(12)
    assert one.metric == other.metric
    assert one.loss == other.loss
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_random_state_of_the_caller_stays():
    made = runner(training(), read(table(), batch_size=32))
    before = torch.get_rng_state()
    made.run(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_count():
    data = read(table(), batch_size=32)
    model = nn.Linear(16, 3)
    start = copy.deepcopy(model.state_dict())

    def moved(**what):
        model.load_state_dict(start)
        recipe = Recipe(lambda p: torch.optim.SGD(p, lr=1.0)).explicit(model)
        runner(Training(model, LOSS, recipe, **what), data).run(1)
        return float((model.weight.detach() - start["weight"]).norm())

    plain = moved()
    assert moved(clip=1e-3) < 2e-3 < plain
    assert math.isclose(moved(warmup=4), plain / 4, rel_tol=1e-5)
    assert moved(merge=4) != plain


def test_merged_batches_are_one():
    data = read(table(), batch_size=32)
    model, plain = nn.Linear(16, 3), nn.Linear(16, 3)
    plain.load_state_dict(model.state_dict())
    recipe = Recipe(lambda p: torch.optim.SGD(p, lr=0.5)).explicit(model)
    runner(Training(model, LOSS, recipe, merge=2), data).run(1)
    a, b = (data.train[i] for i in data.order(3, 2))
    LOSS(plain(torch.cat([a[0], b[0]])), torch.cat([a[1], b[1]])).backward()
    assert torch.allclose(model.weight, plain.weight - 0.5 * plain.weight.grad, atol=1e-6)


def test_lbfgs():
    data = read(table())
    model = nn.Linear(16, 3)
    recipe = Recipe(lambda p: torch.optim.LBFGS(p, lr=0.5)).explicit(model)
    found = runner(Training(model, LOSS, recipe), data).run(12)
    assert found.metric > 0.8
    assert not found.failed


def test_a_model_that_writes_to_its_input():
    class Wild(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 3)

        def forward(self, x):
            return self.linear(x.mul_(3.0))

    data = read(table(64), batch_size=None)
    kept = data.train[0][0].clone()
    found = runner(training(Wild()), data, steps=40).run(40)
    assert math.isfinite(found.loss)
    assert torch.equal(data.train[0][0], kept)


def test_failures_are_outcomes():
    data = read(table(), batch_size=32)
    shape = runner(training(nn.Linear(5, 3)), data).run(3)
    assert "shapes cannot be multiplied" in shape.failed
    model = nn.Linear(16, 3)
    recipe = Recipe(lambda p: torch.optim.SGD(p, lr=math.inf)).explicit(model)
    wild = runner(Training(model, LOSS, recipe), data).run(12)
    assert "diverged" in wild.failed
    assert wild.metric == -math.inf

    def score(output, target):
        raise ValueError("no such thing")

    scored = runner(training(), data, score=score).run(3)
    assert scored.failed == "no such thing"
