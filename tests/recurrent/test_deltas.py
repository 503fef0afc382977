"""Deltas over time against an unrolled float64 twin, which keeps every state as a tensor."""

import math

import pytest
import torch
from torch import nn

from signalprop.recurrent import record

T, B, H = 23, 3, 6


def twin(cell, x, h, c=None):
    """Every h_t and c_t, with gradients of their own."""
    states = []
    for step in x:
        if c is None:
            h = cell(step, h)
        else:
            h, c = cell(step, (h, c))
            c.retain_grad()
        h.retain_grad()
        states.append((h, c))
    return states


def of(layer, kind):
    cell = getattr(nn, f"{kind}Cell")(4, H).double()
    with torch.no_grad():
        for name, p in cell.named_parameters():
            p.copy_(getattr(layer, f"{name}_l0"))
    return cell


def rms(x):
    return float(x.square().mean().sqrt())


def losses():
    read = torch.randn(T, B, H, dtype=torch.float64)
    yield "all outputs", lambda o: (o * read).sum()
    yield "the last one", lambda o: (o[-1] * read[0]).sum()


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("way", [{"deltas": "all"}, {"chunk": 1}, {"chunk": 5}])
def test_every_step(kind, way):
    torch.manual_seed(0)
    layer = getattr(nn, kind)(4, H).double()
    x = torch.randn(T, B, 4, dtype=torch.float64)
    for _, loss in losses():
        zeros = torch.zeros(B, H, dtype=torch.float64)
        states = twin(of(layer, kind), x, zeros, zeros.clone() if kind == "LSTM" else None)
        loss(torch.stack([h for h, _ in states])).backward()
        with record(layer, **way) as seen:
            output, _ = layer(x)
        loss(output).backward()
        (axis,) = seen.axes()
        assert axis.length == T
        chunk = way.get("chunk", 1)
        assert set(axis.steps) == {*range(chunk, T + 1, chunk), T}
        for i, t in enumerate(axis.steps):
            h, c = states[t - 1]
            assert axis.h[i] == pytest.approx(rms(h.grad), rel=1e-9)
            if kind == "LSTM":
                assert axis.c[i] == pytest.approx(rms(c.grad), rel=1e-9)
        assert bool(axis.c) == (kind == "LSTM")


def test_projection():
    """dL/dc goes through W_hr."""
    layer = nn.LSTM(4, H, proj_size=2).double()
    x = torch.randn(T, B, 4, dtype=torch.float64)
    found = []
    for way in ({"deltas": "all"}, {"chunk": 4}):
        with record(layer, **way) as seen:
            layer(x)[0].square().sum().backward()
        found.append(seen.axes()[0])
    every, borders = found
    for i, t in enumerate(borders.steps):
        assert borders.h[i] == pytest.approx(every.h[t - 1], rel=1e-9)
        assert borders.c[i] == pytest.approx(every.c[t - 1], rel=1e-9)


def test_packed_sequences_count_those_that_are_still_going():
    layer = nn.LSTM(4, H, bidirectional=True).double()
    x, lengths = torch.randn(9, 3, 4, dtype=torch.float64), [9, 6, 2]
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
    found = []
    for way in ({"deltas": "all"}, {"chunk": 2}):
        with record(layer, **way) as seen:
            layer(packed)[0].data.square().sum().backward()
        found.append(seen.axes())
    alone = []
    for b, n in enumerate(lengths):
        with record(layer, "all") as seen:
            layer(x[:n, b : b + 1])[0].square().sum().backward()
        alone.append(seen.axes())
    for k in range(2):
        every, borders = found[0][k], found[1][k]
        for t in range(1, 10):
            going = [a[k].h[t - 1] ** 2 for a, n in zip(alone, lengths, strict=True) if t <= n]
            assert every.h[t - 1] == pytest.approx(math.sqrt(sum(going) / len(going)), rel=1e-9)
        assert borders.h[0] == pytest.approx(every.h[1], rel=1e-9)  # all three are going


def test_layers_directions_and_calls_have_names():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.GRU(4, 4, 2, bidirectional=True)
            self.second = nn.LSTM(8, 4)

        def forward(self, x):
            y, _ = self.first(x)
            z, _ = self.second(y)
            return self.second(torch.cat([z, z], -1))[0]

    net = Net()
    with record(net, "all") as seen:
        net(torch.randn(5, 2, 4)).sum().backward()
    names = [(a.site, a.layer, a.reverse, a.op) for a in seen.axes()]
    assert names == [
        ("first", 0, False, "gru"), ("first", 0, True, "gru"), ("first", 1, False, "gru"),
        ("first", 1, True, "gru"), ("second", 0, False, "lstm"), ("second#2", 0, False, "lstm"),
    ]  # fmt: skip
    assert [g.name for g in seen.axes()[0].gates] == ["reset", "update"]
    assert [g.name for g in seen.axes()[-1].gates] == ["input", "forget", "output"]


def test_gates():
    layer = nn.LSTM(4, H).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.bias_hh_l0[H : 2 * H] = 3.0
        layer.bias_hh_l0[3 * H :] = -20.0
    with record(layer, "all") as seen:
        layer(torch.randn(T, B, 4, dtype=torch.float64))[0].sum().backward()
    gates = {g.name: g for g in seen.axes()[0].gates}
    kept = 1 / (1 + math.exp(-3))
    assert gates["forget"].mean == pytest.approx(kept, rel=1e-6)
    assert gates["forget"].remembers == pytest.approx(-1 / math.log(kept), rel=1e-5)
    assert gates["input"].mean == pytest.approx(0.5)
    assert gates["input"].saturated == 0
    assert gates["output"].saturated == 1
    assert gates["input"].remembers is None


@pytest.mark.parametrize("radius", [0.8, 1.1])
def test_a_linear_net_decays_by_its_spectral_radius(radius):
    """ReLU on positive numbers is linear."""
    torch.manual_seed(0)
    layer = nn.RNN(1, 8, nonlinearity="relu", bias=False).double()
    W = torch.rand(8, 8, dtype=torch.float64)
    with torch.no_grad():
        layer.weight_hh_l0.copy_(W * radius / torch.linalg.eigvals(W).abs().max())
        layer.weight_ih_l0.fill_(1.0)
    with record(layer, "all") as seen:
        layer(torch.rand(200, 2, 1, dtype=torch.float64))[0][-1].sum().backward()
    assert seen.axes()[0].rates[50] == pytest.approx(math.log(radius), rel=1e-6)


def test_nothing_is_left_behind():
    layer = nn.LSTM(4, H)
    before = {**layer.__dict__}

    def fails():
        with record(layer):
            layer(torch.randn(5, 2, 4))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert layer.__dict__ == before
    assert not layer._forward_hooks
    from torch.nn.modules import module

    assert not module._global_forward_hooks
    assert not module._global_forward_pre_hooks
