"""Real trainings: the healthy ones raise nothing, the sick ones are told, with the place."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.watching.rules.samples import codes
from tests.watching.rules.training import (
    Transformer,
    blobs,
    copying,
    mlp,
    next_token,
    residual,
    train,
)
from torch import nn


def linears(model):
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _same():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


HEALTHY = {
    "adam": lambda: (mlp(width=24), lambda p: torch.optim.Adam(p, 2e-3)),
    "batch normalisation, no decay": lambda: (
        mlp(width=24, depth=3, norm=nn.BatchNorm1d),
        lambda p: torch.optim.SGD(p, 0.3, momentum=0.9),
    ),
    "branches from zero": lambda: (
        residual(width=24, depth=3, zero=True),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy(name):
    model, optimizer = HEALTHY[name]()
    optimizer = optimizer(model.parameters())
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    seen = train(model, optimizer, blobs(), F.cross_entropy, 400, schedule=cosine)
    assert seen.alarms == []
    assert seen.judge._past.losses.level[0] < 1.6  # it did learn


def test_healthy_transformer():
    model = Transformer(width=16, depth=1)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    assert train(model, optimizer, copying(), next_token, 250).alarms == []


def sick(model, rate, at, do, steps=500, kind=torch.optim.Adam):
    def before(step):
        if step == at:
            with torch.no_grad():
                do(model)

    optimizer = kind(model.parameters(), rate)
    return train(model, optimizer, blobs(), F.cross_entropy, steps, before=before).alarms


def test_a_branch_dies():
    found = sick(
        residual(width=24, depth=3), 2e-3, 300, lambda m: linears(m)[3].bias.fill_(-30), 460
    )
    alarms = {alarm.code: alarm for alarm in found}
    assert alarms["SP403"].sites == ("2.relu",)
    assert alarms["SP403"].since == 300


def test_a_layer_leaps():
    found = sick(mlp(width=24), 2e-3, 400, lambda m: linears(m)[3].weight.mul_(10), 420)
    (alarm,) = found
    assert alarm.code == "SP405"
    assert alarm.since == 400


def test_a_weight_becomes_nan_between_samples():
    (alarm,) = sick(
        mlp(width=24), 2e-3, 203, lambda m: linears(m)[2].weight[0, 0].fill_(math.nan), 600
    )
    assert (alarm.code, alarm.step) == ("SP411", 203)


def test_a_weight_becomes_nan_at_a_sample():
    (alarm,) = sick(
        mlp(width=24), 2e-3, 200, lambda m: linears(m)[2].weight[0, 0].fill_(math.nan), 300
    )
    assert (alarm.step, alarm.sites) == (200, ("4",))


def test_a_network_born_deaf():
    model = mlp(width=16, depth=10, activation=nn.Sigmoid)
    found = sick(model, 0.02, -1, None, 1100, torch.optim.SGD)
    assert "SP406" in codes(found)
    assert "first third" in next(a for a in found if a.code == "SP406").explanation
