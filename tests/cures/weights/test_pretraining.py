"""Pre-training learns from the inputs, and keeps everything else."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from tests.cases import CASES
from tests.cures.everywhere import still_runs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.weights.pretraining import pretrain
from signalprop.diagnosis.engine import DEFAULT_RULES
from signalprop.errors import SignalpropError


def net():
    return nn.Sequential(
        nn.Linear(12, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 3)
    )


def data(n=120):
    hidden = torch.randn(n, 3)
    return torch.sigmoid(3 * hidden @ torch.randn(3, 12)), torch.randint(3, (n,))


def rebuilt(layer, x):
    """Mean squared error of what a layer's own weights, transposed, make of its outputs."""
    h = torch.sigmoid(layer(x)).detach()
    bias = torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([bias], lr=0.1)
    for _ in range(300):
        loss = (torch.sigmoid(h @ layer.weight.detach() + bias) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_it_treats_what_the_rules_say():
    assert set(pretrain.treats) == {
        f.rule.code for f in DEFAULT_RULES if "pretrain" in f.rule.cures
    }


@pytest.mark.parametrize("method", ["autoencoder", "rbm"])
def test_layers_learn_their_inputs_and_the_head_stays(method):
    torch.manual_seed(0)
    model, (x, y) = net(), data()
    before = copy.deepcopy(model.state_dict())
    new = pretrain(model, (x, y), method=method, epochs=100, batch_size=20)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(new[4].weight, model[4].weight)
    assert not torch.equal(new[2].weight, model[2].weight)
    assert rebuilt(new[0], x) < 0.9 * rebuilt(model[0], x)


def test_a_loader_and_a_batch_are_the_same_samples():
    model, (x, y) = net(), data(60)
    results = []
    for given in ((x, y), x, DataLoader(TensorDataset(x, y), batch_size=25)):
        torch.manual_seed(5)
        results.append(pretrain(model, given, epochs=2)[0].weight)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_in_place_with_modes_and_refusals():
    model = net().eval()
    assert pretrain(model, data(20), epochs=1, inplace=True) is model
    assert not model.training
    for bad in ({"method": "magic"}, {"epochs": 0}, {"batch_size": 0}):
        with pytest.raises(SignalpropError):
            pretrain(model, data(20), **bad)
    with pytest.raises(DoesNotApply):
        pretrain(nn.Sequential(nn.Conv2d(1, 1, 1)), torch.randn(2, 1, 3, 3))
    with pytest.raises(DoesNotApply, match="tokens"):
        pretrain(nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4)), torch.randint(4, (3,)))


def test_every_case_runs_after_it_or_is_refused_in_a_sentence():
    done, said = 0, []
    for case in CASES[::4]:
        model, batch, loss = case.build()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                new = pretrain(model, batch, epochs=1)
            except SignalpropError as error:
                said.append(str(error))
                continue
            if case.health != "odd":
                still_runs(case, new, batch, loss)
                done += 1
    assert done > 5
    assert all(len(sentence) > 15 for sentence in said)


def test_it_lets_a_deep_sigmoid_net_learn_something():
    torch.manual_seed(1)
    x, _ = data(200)
    y = (x[:, 0] > x[:, 1]).long()
    losses = []
    for model in (net(), pretrain(net(), (x, y))):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
