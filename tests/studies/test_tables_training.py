"""Stacks of networks do what the networks would do one by one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from signalprop.studies.tables.models import NETWORKS
from signalprop.studies.tables.search import accuracy, cross_entropy, sharp
from signalprop.studies.tables.training import Budget, Problem, Rows, Stack, fit


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def task():
    x = torch.randn(120, 5)
    return Problem(x, (x[:, 0] * x[:, 1] > 0).long(), 2, cross_entropy, sharp)


def weights(net):
    return [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == 8]


@pytest.mark.parametrize("name", NETWORKS)
def test_same_size(name):
    net = NETWORKS[name](5, 8, 5, 3, 0.1)
    gates = 4 if name == "highway" else 0
    assert len(weights(net)) == 5 + gates
    assert net(torch.randn(4, 5)).shape == (4, 3)
    assert any(isinstance(m, nn.Dropout | nn.AlphaDropout) for m in net.modules())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_stack_is_its_networks(name, training):
    made = []

    def make():
        made.append(NETWORKS[name](5, 8, 3, 3, 0.0))
        return made[-1]

    stack = Stack(make, 3)
    alone = [copy.deepcopy(net).train(training) for net in made]
    stack.base.train(training)
    x = torch.randn(3, 16, 5)
    for _ in range(2):  # BatchNorm's running statistics, too
        together = stack(x)
        for out, net, inputs in zip(together, alone, x, strict=True):
            torch.testing.assert_close(out, net(inputs), rtol=1e-4, atol=1e-5)
    for key, value in stack.buffers.items():
        for one, net in zip(value, alone, strict=True):
            torch.testing.assert_close(one, dict(net.named_buffers())[key])


def test_networks_do_not_see_each_other():
    stack = Stack(lambda: NETWORKS["SELU"](5, 8, 3, 2, 0.0), 2)
    x, y = torch.randn(2, 16, 5), torch.randint(2, (2, 16))
    (first,) = torch.autograd.grad(cross_entropy(stack(x), y), [stack.flat])
    x[1] *= 1e3
    (second,) = torch.autograd.grad(cross_entropy(stack(x), y), [stack.flat])
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_fit_is_adam(task):
    """The twin: one module, torch.optim.Adam, the same rows."""
    rows = Rows(torch.arange(80), torch.arange(80, 120))
    torch.manual_seed(5)
    found = fit(lambda: NETWORKS["SELU"](5, 8, 3, 2, 0.0), task, [rows], [0.01],
                Budget(30, batch=16, every=30))  # fmt: skip
    torch.manual_seed(5)
    net = NETWORKS["SELU"](5, 8, 3, 2, 0.0)
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    x = (task.x - task.x[:80].mean(0)) / task.x[:80].std(0, correction=0)
    for _ in range(30):
        pick = (torch.rand(1, 16) * 80).long()[0]
        adam.zero_grad()
        F.cross_entropy(net(x[pick]), task.y[pick]).backward()
        adam.step()
    wanted = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(found.stack.flat[0].detach(), wanted, rtol=1e-3, atol=1e-4)
    assert found.steps == [30]


def test_what_is_kept_is_the_best(task):
    """Two networks that are best at their first and their second look, BatchNorm included."""
    rows = [Rows(torch.arange(60), torch.arange(60, 90)), Rows(torch.arange(50), torch.arange(80))]
    seen = []

    def scripted(outputs, targets):
        seen.append(outputs.clone())
        return {0: 3.0, 1: 1.0, 2: 2.0, 3: 2.0}.get(len(seen) - 1, 0.0)

    p = Problem(task.x, task.y, 2, cross_entropy, scripted)
    found = fit(lambda: NETWORKS["ReLU + BatchNorm"](5, 16, 3, 2, 0.1), p, rows, [0.05, 0.01],
                Budget(40, batch=16, every=10))  # fmt: skip
    assert (found.scores, found.steps) == ([3.0, 2.0], [10, 20])
    first, second = found.outputs([r.validation for r in rows])
    torch.testing.assert_close(first, seen[0])
    torch.testing.assert_close(second, seen[3])
    outputs = found.outputs([torch.arange(3), torch.arange(7)])
    assert [tuple(o.shape) for o in outputs] == [(3, 2), (7, 2)]


def test_patience(task):
    rows = Rows(torch.arange(60), torch.arange(60, 90))
    looks = []

    def flat(outputs, targets):
        looks.append(len(targets))
        return 0.5

    still = Problem(task.x, task.y, 2, cross_entropy, flat)
    found = fit(lambda: NETWORKS["SELU"](5, 8, 3, 2, 0.0), still, [rows], [0.01],
                Budget(500, batch=8, every=2, patience=3))  # fmt: skip
    assert found.steps == [2]
    assert looks == [30] * 4


def test_one_that_diverges_harms_no_other(task):
    rows = [Rows(torch.arange(80), torch.arange(80, 120))] * 2
    found = fit(lambda: NETWORKS["ReLU, He"](5, 8, 3, 2, 0.0), task, rows, [0.01, 1e30],
                Budget(20, batch=16, every=10))  # fmt: skip
    assert math.isfinite(found.scores[0])
    assert bool(found.stack.flat[0].isfinite().all())


def test_scaling_is_by_the_training_rows(task):
    x = task.x.clone()
    x[:, 2] = 7.0
    x[100:, 0] = 1e6
    p = Problem(x, task.y, 2, cross_entropy, accuracy, clip=5.0)
    mean, deviation = p.scaler(torch.arange(80))
    assert float(deviation[2]) == 1
    scaled = (x[:80] - mean) / deviation
    torch.testing.assert_close(scaled.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    assert float(scaled[:, 2].abs().max()) == 0
    found = fit(lambda: NETWORKS["SELU"](5, 8, 3, 2, 0.0), p, [Rows(torch.arange(80),
                torch.arange(100, 120))], [0.01], Budget(2, batch=4, every=2))  # fmt: skip
    assert float(found.inputs(torch.arange(120)[None]).max()) == 5.0
    assert float(x[100:, 0].max()) == 1e6  # the table is left as it was
