"""A trace with the time axis: the rest of it is as it was."""

import pytest
import torch
import torch.nn.functional as F
from tests.cases import CASES
from torch import nn

import signalprop as sp
from signalprop.capture.observe import observe as plainly
from signalprop.errors import SignalpropError
from signalprop.recurrent.observe import observe, trace


def recurs(case):
    kinds = (nn.RNNBase, nn.RNNCellBase)
    return case.error is None and any(isinstance(m, kinds) for m in case.build()[0].modules())


RECURRENT = [case for case in CASES if recurs(case)]


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTMCell(3, 8), nn.GRUCell(3, 8), nn.Linear(16, 4)

    def forward(self, x):
        h = c = k = x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            h, c = self.lstm(x[:, t], (h, c))
            k = self.gru(x[:, t], k)
        return self.head(torch.cat([h, k], 1))


class Layer(nn.Module):
    def __init__(self, kind="LSTM"):
        super().__init__()
        self.rnn, self.head = getattr(nn, kind)(3, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def batch(steps=30):
    return torch.randn(16, steps, 3), torch.randint(4, (16,))


@pytest.mark.parametrize("case", RECURRENT, ids=lambda c: c.name)
@pytest.mark.parametrize("deltas", ["borders", "all"])
def test_sites_spine_and_decay_are_the_same(case, deltas):
    model, data, loss = case.build()
    torch.manual_seed(3)
    expected = plainly(model, data, loss).trace
    torch.manual_seed(3)
    found = observe(model, data, loss, deltas=deltas).trace
    assert list(found.sites) == list(expected.sites)
    assert found.spine == expected.spine
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    for a, b in zip(found.blocks, expected.blocks, strict=True):
        assert a.decay == pytest.approx(b.decay, abs=1e-3)


def test_there_are_such_cases():
    assert len(RECURRENT) >= 3


def test_a_loop_over_cells_and_the_layer_agree():
    torch.manual_seed(0)
    loop, layer = Loop(), Layer("GRU")
    with torch.no_grad():
        for name, p in loop.gru.named_parameters():
            getattr(layer.rnn, f"{name}_l0").copy_(p)
        layer.head.weight.copy_(loop.head.weight[:, 8:])
        loop.head.weight[:, :8] = 0  # the other one says nothing
        layer.head.bias.copy_(loop.head.bias)
    data = batch()
    of_loop = {a.site: a for a in sp.trace(loop, data, F.cross_entropy).time}
    assert set(of_loop) == {"lstm", "gru"}
    assert of_loop["lstm"].op == "lstm"
    assert len(of_loop["lstm"].c) == 30
    (of_layer,) = sp.trace(layer, data, F.cross_entropy, deltas="all").time
    for a, b in zip(of_loop["gru"].h, of_layer.h, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_a_trace_looks_closely_and_sees_the_gates():
    (axis,) = trace(Layer(), batch(160), F.cross_entropy).time
    assert axis.steps == tuple(range(10, 161, 10))
    assert [g.name for g in axis.gates] == ["input", "forget", "output"]
    (every,) = trace(Layer(), batch(160), F.cross_entropy, deltas="all").time
    assert len(every.h) == 160
    assert len(axis.rates) == 15
    assert all(rate < -0.2 for rate in axis.rates)
    assert axis.h[0] < 1e-23  # whose square no float32 holds


def test_gates_of_both_ways_agree():
    torch.manual_seed(0)
    model, data = Layer("GRU"), batch()
    (a,), (b,) = (trace(model, data, F.cross_entropy, deltas=d).time for d in ("borders", "all"))
    for one, other in zip(a.gates, b.gates, strict=True):
        assert one.mean == pytest.approx(other.mean, rel=1e-4)


def test_networks_without_recurrence_have_no_time_axis():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    assert trace(model, (torch.randn(16, 3), torch.randint(4, (16,))), F.cross_entropy).time == ()


def test_errors_are_those_of_a_trace():
    with pytest.raises(SignalpropError, match="model raised"):
        trace(Layer(), (torch.randn(4, 5, 7), torch.randint(4, (4,))), F.cross_entropy)


def test_a_diagnosis_has_it_and_writes_it_out():
    d = sp.diagnose(Layer(), batch(), F.cross_entropy)
    assert d.trace.time[0].site == "rnn"
    assert d.trace.to_dict()["time"][0]["length"] == 30
