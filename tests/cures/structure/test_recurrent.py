"""Recurrent layers: what takes their place, and what they remember at the start."""

from __future__ import annotations

import math

import pytest
import torch
from tests.cures.everywhere import on_all_cases, same_elsewhere
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.structure.gated import gru, lstm
from signalprop.cures.structure.recurrent import chrono, forget_bias, identity_recurrent
from signalprop.errors import SignalpropError

LAYERS = [
    {},
    {"num_layers": 2, "dropout": 0.1},
    {"bidirectional": True, "batch_first": True},
    {"bias": False, "nonlinearity": "relu"},
]


@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize(("cure", "gate"), [(lstm, 2), (gru, 2)], ids=["lstm", "gru"])
def test_called_as_before_with_the_weights_as_the_candidates(cure, gate, options):
    rnn = nn.RNN(3, 5, **options)
    cured = cure(rnn)
    x = torch.randn(4, 6, 3)
    out, h = rnn(x)
    new_out, new_h = cured(x)
    assert (new_out.shape, new_h.shape) == (out.shape, h.shape)
    again, state = cured(x, h)
    assert (again.shape, state.shape) == (out.shape, h.shape)
    assert not torch.equal(again, new_out)
    for name, old in rnn.named_parameters():
        rows = cured.get_parameter(name)[gate * 5 : (gate + 1) * 5]
        assert torch.equal(rows, old), name
    for suffix in [n[len("weight_ih") :] for n, _ in rnn.named_parameters() if "weight_ih" in n]:
        total = cured.get_parameter(f"bias_ih{suffix}") + cured.get_parameter(f"bias_hh{suffix}")
        assert torch.equal(total[5:10], torch.ones(5))  # forget gate, or the gate that keeps
    assert cured.dropout == rnn.dropout
    out.sum().backward()
    new_out.sum().backward()


def test_lstm_is_the_recursion_of_the_paper():
    rnn = nn.RNN(3, 5)
    cured = lstm(rnn, forget_bias=2.0)
    x, h0 = torch.randn(7, 2, 3), torch.randn(1, 2, 5)
    w, u, a, b = (p.detach() for p in cured.parameters())
    h, c, outputs = h0[0], h0[0], []
    for step in x:
        i, f, g, o = (step @ w.T + a + h @ u.T + b).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    out, h_n = cured(x, h0)
    torch.testing.assert_close(out, torch.stack(outputs))
    torch.testing.assert_close(h_n[0], h)
    out, (h_n, c_n) = cured(x, (h0, h0))
    torch.testing.assert_close(c_n[0], c)
    assert (a + b)[5:10].tolist() == [2.0] * 5


def test_packed_sequences_go_through():
    packed = pack_padded_sequence(torch.randn(6, 3, 4), torch.tensor([6, 4, 2]))
    for cure in (lstm, gru):
        out, h = cure(nn.RNN(4, 5))(packed)
        assert pad_packed_sequence(out)[0].shape == (6, 3, 5)
        assert h.shape == (1, 3, 5)


def test_gru_of_cells_in_a_loop():
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNNCell(3, 5, nonlinearity="relu"), nn.Linear(5, 2)

        def forward(self, x):
            h = None
            for step in x.unbind(1):
                h = self.cell(step, h)
            return self.head(h)

    model = Loop()
    cured = gru(model)
    assert type(cured.cell) is nn.GRUCell
    assert torch.equal(cured.cell.weight_hh[10:], model.cell.weight_hh)
    cured(torch.randn(4, 6, 3)).sum().backward()
    with pytest.raises(DoesNotApply, match="gru treats it"):
        lstm(model)
    spread = chrono(cured, (torch.randn(4, 100, 3), torch.randint(2, (4,))))
    keep = spread.cell.bias_ih[5:10] + spread.cell.bias_hh[5:10]
    assert (keep >= 0).all()
    assert (keep <= math.log(99)).all()
    assert keep.std() > 0


def test_ties_flags_dtype_mode_and_names_stay():
    rnn = nn.RNN(4, 4)
    other = nn.RNN(4, 4)
    other.weight_hh_l0 = rnn.weight_hh_l0
    rnn.weight_ih_l0.requires_grad_(False)
    model = nn.ModuleDict({"a": rnn, "b": other, "again": rnn}).double().eval()
    other.weight_hh_l0 = rnn.weight_hh_l0
    for cure in (lstm, gru):
        cured = cure(model)
        assert list(cured.state_dict()) == list(model.state_dict())
        assert cured["a"] is cured["again"]
        assert cured["a"].weight_hh_l0 is cured["b"].weight_hh_l0
        assert not cured["a"].weight_ih_l0.requires_grad
        assert cured["b"].weight_ih_l0.requires_grad
        assert cured["a"].weight_ih_l0.dtype == torch.float64
        assert not cured["b"].training
        cured["b"](torch.randn(3, 2, 4).double())[0].sum().backward()


@pytest.mark.parametrize("cure", [lstm, gru])
def test_a_gated_layer_goes_along_with_copies(cure):
    same_elsewhere(cure(nn.RNN(3, 4, batch_first=True)), torch.randn(2, 5, 3))


@pytest.mark.parametrize("cure", [lstm, gru])
def test_a_gated_layer_hands_the_error_signal_farther_back(cure):
    torch.manual_seed(0)
    rnn, x = nn.RNN(4, 32), torch.randn(60, 8, 4, requires_grad=True)
    nats = []
    for layer in (rnn, cure(rnn, **{"forget_bias" if cure is lstm else "keep_bias": 4.0})):
        out, _ = layer(x)
        (delta,) = torch.autograd.grad(out[-1].square().sum(), x)
        nats.append((delta[0].norm() / delta[-1].norm()).log().item())
    assert nats[0] < -15
    assert nats[1] > -8


# initial values


def test_forget_bias():
    model = nn.ModuleList([nn.LSTM(3, 4, num_layers=2, bidirectional=True), nn.LSTMCell(3, 4)])
    cured = forget_bias(model, value=1.5)
    for name, p in cured.named_parameters():
        old = model.get_parameter(name)
        if "bias" in name:
            expected = old.detach().clone()
            expected[4:8] = 1.5 if "ih" in name else 0.0
            assert torch.equal(p, expected)
        else:
            assert torch.equal(p, old)
    with pytest.raises(DoesNotApply, match="already"):
        forget_bias(cured, value=1.5)
    with pytest.raises(DoesNotApply, match="no LSTM"):
        forget_bias(nn.Sequential(nn.LSTM(3, 4, bias=False)))
    with pytest.raises(SignalpropError, match="finite"):
        forget_bias(model, value=math.inf)


class Reads(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(400, 2)

    def forward(self, x):
        out = self.layer(x)[0]
        return self.head(out[:, -1] if self.layer.batch_first else out[-1])


@pytest.mark.parametrize("batch_first", [True, False])
def test_chrono_spreads_the_memory_over_the_sequence(batch_first):
    model = Reads(nn.LSTM(3, 400, batch_first=batch_first))
    steps = 50
    x = torch.randn(*((4, steps, 3) if batch_first else (steps, 4, 3)))
    torch.manual_seed(0)
    cured = chrono(model, (x, torch.randint(2, (4,))))
    bias = (cured.layer.bias_ih_l0 + cured.layer.bias_hh_l0).detach()
    u = bias[400:800].exp()
    assert u.min() >= 1
    assert u.max() <= steps - 1
    # uniform on [1, T - 1]: mean T / 2, deviation (T - 2) / sqrt(12)
    assert u.mean() == pytest.approx(steps / 2, abs=4 * (steps - 2) / 12**0.5 / 20)
    assert torch.equal(bias[:400], -bias[400:800])
    old = (model.layer.bias_ih_l0 + model.layer.bias_hh_l0).detach()
    assert torch.equal(bias[800:], old[800:])
    longer = chrono(model, (x, torch.randint(2, (4,))), longest=1000)
    assert longer.layer.bias_ih_l0[400:800].exp().max() > 500


def test_chrono_of_packed_sequences_and_too_short_ones():
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(3, 64, batch_first=True), nn.Linear(64, 2)

        def forward(self, x):
            packed = pack_padded_sequence(x, torch.tensor([20, 9]), batch_first=True)
            return self.head(self.rnn(packed)[1][-1])

    cured = chrono(Packs(), (torch.randn(2, 20, 3), torch.randint(2, (2,))))
    keep = cured.rnn.bias_ih_l0[64:128]
    assert 5 < keep.exp().max() <= 19.001
    short = Reads(nn.LSTM(3, 400, batch_first=True))
    with pytest.raises(DoesNotApply, match="three steps"):
        chrono(short, (torch.randn(4, 2, 3), torch.randint(2, (4,))))
    with pytest.raises(SignalpropError, match="longest"):
        chrono(short, (torch.randn(4, 9, 3), torch.randint(2, (4,))), longest=2)
    with pytest.raises(DoesNotApply, match="neither"):
        chrono(nn.Linear(3, 2), (torch.randn(4, 3), torch.randint(2, (4,))))


def test_identity_recurrence_passes_the_error_signal_on():
    rnn = nn.RNN(3, 6, num_layers=2, nonlinearity="relu")
    cured = identity_recurrent(rnn, input_std=0.001)
    assert torch.equal(cured.weight_hh_l1, torch.eye(6))
    assert not cured.bias_hh_l0.any()
    assert cured.weight_ih_l0.std() < 0.003
    assert torch.equal(identity_recurrent(rnn).weight_ih_l0, rnn.weight_ih_l0)
    cell = identity_recurrent(nn.RNNCell(3, 6, nonlinearity="relu"))
    state = torch.rand(1, 6)
    assert torch.equal(cell(torch.zeros(1, 3), state), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_orthogonal_recurrence_of_tanh(dtype):
    rnn = nn.RNN(3, 16).to(dtype)
    cured = identity_recurrent(rnn)
    w = cured.weight_hh_l0
    assert w.dtype == dtype
    torch.testing.assert_close((w @ w.T).float(), torch.eye(16), atol=0.03, rtol=0)
    assert not torch.equal(w.float(), torch.eye(16))


def test_refusals():
    for cure in (lstm, gru, identity_recurrent):
        with pytest.raises(DoesNotApply, match=r"no nn\.RNN|neither an nn\.RNN"):
            cure(nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(SignalpropError, match="finite"):
        lstm(nn.RNN(3, 4), forget_bias=math.nan)
    with pytest.raises(SignalpropError, match="above 0"):
        identity_recurrent(nn.RNN(3, 4), input_std=0.0)


EXPECTED = {
    lstm: {"rnn", "rnn-time-first"},
    gru: {"rnn", "rnn-time-first"},
    forget_bias: {"lstm", "lstm-time-first", "lstm-cell-loop", "lstm-packed"},
    chrono: {"lstm", "lstm-cell-loop", "lstm-packed", "gru", "gru-time-first", "tied-weights"},
    identity_recurrent: {"rnn", "rnn-time-first"},
}


@pytest.mark.parametrize("cure", EXPECTED, ids=lambda cure: cure.name)
def test_on_all_cases(cure):
    assert on_all_cases(cure) >= EXPECTED[cure]
