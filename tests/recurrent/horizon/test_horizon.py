"""The result, the rest of the world, and bad input."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from tests.recurrent.horizon.common import Cells, curves
from tests.references.state import Snapshot
from torch import nn

from signalprop.errors import ModelError, SignalpropError
from signalprop.nets.recurrent import LSTM
from signalprop.recurrent.horizon.measure import horizon


def test_result_as_plain_data():
    net = nn.LSTM(2, 4)
    found = horizon(net, torch.randn(20, 3, 2), batch_dim=1, exponents=2, spectra=True)
    assert (found.model, found.samples) == ("LSTM", 3)
    assert found.gains[0].values is not None
    assert found.gains[0].values.shape == (16, 3, 8)
    frame = found.frame()
    assert list(frame.index) == [""]
    assert frame.loc["", "longest"] == 19
    told = json.loads(json.dumps(found.to_dict()))
    assert told["curves"][0]["rate"] == pytest.approx(found.curves[0].rate)
    assert len(told["exponents"][0]["values"]) == 2


def test_the_same_seed_gives_the_same_and_samples_are_spread():
    net, x = nn.GRU(2, 4), torch.randn(20, 40, 2)
    a, b, c = (horizon(net, x, batch_dim=1, seed=s) for s in (0, 0, 1))
    assert a.to_dict() == b.to_dict()
    assert a.curves[0].credit != c.curves[0].credit
    assert a.samples == 8
    assert a.gains[0].samples == 4
    assert horizon(net, x, batch_dim=1, samples=None).samples == 40


class Everything(nn.Module):
    def __init__(self, fails=False):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.rnn = nn.LSTM(2, 4, 2, dropout=0.3)
        self.mine = LSTM(4, 4, 2, peepholes=True, dropout=0.3)
        self.cell, self.mix = nn.GRUCell(4, 4), nn.GRUCell(4, 4)
        self.fails, self.seen = fails, []
        self.cell.weight_hh.requires_grad_(False)

    def forward(self, x):
        self.seen.append(len(x))
        x = self.norm(x.flatten(0, 1)).view_as(x)
        x = self.mine(self.rnn(x)[0])[0]
        h = k = x.new_zeros(len(x[0]), 4)
        for one in x:
            h = self.cell(F.dropout(one, 0.2), h)
            k = 0.5 * k + 0.5 * self.mix(h, k)
        if self.fails:
            raise ValueError("no")
        return k


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_untouched(fails):
    net, x = Everything(fails), torch.randn(8, 3, 2)
    net(x).sum().backward() if not fails else None
    before = Snapshot(net, x)
    if fails:
        with pytest.raises(ModelError, match="raised ValueError: no"):
            horizon(net, x, batch_dim=1)
    else:
        assert len(horizon(net, x, batch_dim=1).curves) == 6
    assert before.changed() == []


def test_a_model_that_writes_to_its_own_weights_is_put_back():
    class Writes(nn.GRU):
        def forward(self, x, hx=None):
            self.weight_hh_l0.data.mul_(0.5)
            return super().forward(x, hx)

    net, x = Writes(2, 4), torch.randn(8, 3, 2)
    before = Snapshot(net, x)
    assert horizon(net, x, batch_dim=1).curves
    assert before.changed() == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    (curve,) = curves(nn.GRU(2, 4).to(dtype), torch.randn(20, 3, 2, dtype=dtype), batch_dim=1)
    assert curve.floor == torch.finfo(dtype).eps
    assert 0 < curve.credit[-1] < 1


def test_frozen_layers_have_a_horizon():
    net = Cells(nn.GRUCell(2, 4).requires_grad_(False), lambda h: h * 0.9)
    (curve,) = curves(net, torch.randn(20, 3, 2), batch_dim=1)
    assert 0 < curve.credit[5] < 1
    assert not any(p.requires_grad for p in net.parameters())


def refused(match, model, x, **options):
    with pytest.raises(SignalpropError, match=match) as caught:
        horizon(model, x, **options)
    assert "\n" not in str(caught.value)


def test_bad_input_is_one_sentence():
    rnn, x = nn.RNN(2, 3), torch.randn(9, 4, 2)
    refused("nothing in Linear recurs", nn.Linear(2, 3), torch.randn(4, 2))
    refused("one step", rnn, x[:1])
    refused("steps=10", rnn, x, steps=[2, 10])
    refused("steps count from 2", rnn, x, steps=[1])
    refused("errors=0", rnn, x, errors=0)
    refused("exponents=-1", rnn, x, exponents=-1)
    refused("the model raised", rnn, torch.randn(9, 4, 5))
    with torch.no_grad():
        rnn.weight_hh_l0[0, 0] = math.nan
    refused("not finite at step 9", rnn, x)


def test_a_shared_activation_and_a_residual_stack_are_no_loops():
    act, block = nn.ReLU(), nn.Linear(4, 4)
    refused("nothing in", nn.Sequential(*[block, act] * 6), torch.randn(3, 4))
