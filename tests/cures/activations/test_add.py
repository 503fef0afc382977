"""Activations where there are none."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.cures.everywhere import on_all_cases, same_elsewhere
from torch import nn

from signalprop.cures.activations.add import add_activations
from signalprop.cures.cure import DoesNotApply
from signalprop.diagnosis.engine import diagnose

X, Y = torch.randn(64, 12), torch.randint(4, (64,))


def linear():
    return nn.Sequential(
        nn.Linear(12, 512), nn.Dropout(0.0), nn.Linear(512, 256), nn.Linear(256, 4)
    )


def test_behind_every_layer_but_the_last():
    model = linear()
    keys, before = list(model.state_dict()), copy.deepcopy(model.state_dict())
    new = add_activations(model, (X, Y))
    hidden = new[0](X)
    assert (hidden >= 0).all()
    assert (hidden == 0).any()
    assert (new(X) < 0).any()
    assert list(new.state_dict()) == keys
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert float(new[2].weight.detach().var()) == pytest.approx(2 / 512, rel=0.05)
    assert float(new[3].weight.detach().var()) == pytest.approx(1 / 256, rel=0.2)
    assert float(new(X).detach().std()) == pytest.approx(1.0, rel=0.4)
    assert "SP215" not in {f.code for f in diagnose(new, (X, Y), F.cross_entropy).findings}


def test_in_place_and_elsewhere():
    model = linear()
    assert add_activations(model, (X, Y), inplace=True) is model
    same_elsewhere(model, X)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)),
        nn.Sequential(nn.Linear(12, 2), nn.Linear(2, 4)),
        nn.Sequential(nn.Linear(12, 4)),
    ],
)
def test_not_where_one_is_or_none_is_missing(model):
    with pytest.raises(DoesNotApply):
        add_activations(model, (X, Y))


def test_it_lets_a_network_learn_what_is_not_linear():
    torch.manual_seed(0)
    x = torch.randn(512, 2)
    y = ((x[:, 0] * x[:, 1]) > 0).long()
    shares = []
    for cured in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(2, 32), nn.Linear(32, 2))
        model = add_activations(model, (x, y)) if cured else model
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        shares.append(float((model(x).argmax(1) == y).float().mean()))
    assert shares[0] < 0.65
    assert shares[1] > 0.9


def test_on_all_cases():
    on_all_cases(add_activations)
