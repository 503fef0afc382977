"""The compiled time loops: right, quiet, and done without where they cannot be had."""

from __future__ import annotations

import pytest
import torch
from tests.recurrent.test_deltas import twin
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.recurrent import record
from signalprop.recurrent.cells import gru, lstm, rnn
from signalprop.recurrent.cells.lstm import Steps
from signalprop.recurrent.compiled import loops
from signalprop.recurrent.stepwise import Stepwise

KINDS = ("LSTM", "GRU", "tanh", "relu", "projected")


@pytest.fixture
def compiled(monkeypatch):
    """There is a library, and it is what runs."""
    monkeypatch.delenv("SIGNALPROP_COMPILED", raising=False)
    if loops.LIBRARY.get() is None:
        pytest.skip(f"no compiled loops here: {loops.LIBRARY.status()}")

    def fail(*args):
        raise AssertionError("pure torch has run")

    for cell in (lstm, gru, rnn):
        monkeypatch.setattr(cell, "Steps", fail)


def layer(kind, features, hidden, dtype):
    if kind == "projected":
        return nn.LSTM(features, hidden, proj_size=max(1, hidden - 3)).to(dtype)
    if kind in ("tanh", "relu"):
        return nn.RNN(features, hidden, nonlinearity=kind).to(dtype)
    return getattr(nn, kind)(features, hidden).to(dtype)


def run(model, x, seen):
    """Everything that a step gives: output, states, gradients."""
    x = x.clone().requires_grad_()
    if seen:
        with record(model, "all"):
            output, final = model(x)
    else:
        output, final = model(x)
    finals = final if isinstance(final, tuple) else (final,)
    loss = sum((y * y.detach().cos()).sum() for y in (output, *finals))
    gradients = torch.autograd.grad(loss, [x, *model.parameters()])
    return [y.detach() for y in (output, *finals, *gradients)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "hidden"), [(1, 1), (3, 17), (13, 70), (32, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("compiled")
def test_sizes_that_no_vector_and_no_block_divides(kind, rows, hidden, dtype):
    torch.manual_seed(0)
    hidden += kind == "projected"
    model, x = layer(kind, 5, hidden, dtype), torch.randn(9, rows, 5, dtype=dtype)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    exact = layer(kind, 5, hidden, torch.float64)
    exact.load_state_dict(model.state_dict())
    expected, found = run(exact, x.double(), False), run(model, x, True)
    for a, b in zip(expected, found, strict=True):
        scale = max(1.0, float(a.abs().max()))
        assert (a - b).abs().max() < tolerance * scale


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(("rows", "hidden"), [(40, 80), (7, 300)], ids=["by rows", "by columns"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh", "projected"])
@pytest.mark.usefixtures("compiled")
def test_threads_do_not_change_what_is_found(kind, rows, hidden, threads):
    """Rows or columns are parted, sums are not."""
    torch.manual_seed(0)
    model, x = layer(kind, 5, hidden, torch.float32), torch.randn(6, rows, 5)
    before = torch.get_num_threads()
    found = []
    try:
        for n in (1, threads):
            torch.set_num_threads(n)
            with record(model, "all") as seen:
                model(x)[0].square().sum().backward()
            found.append(next(iter(seen.runs[0][1].seen.values())).h)
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.usefixtures("compiled")
def test_deltas_against_an_unrolled_twin(kind):
    """In float32, the twin in float64."""
    torch.manual_seed(0)
    layer = getattr(nn, kind)(4, 20)
    cell = getattr(nn, f"{kind}Cell")(4, 20).double()
    with torch.no_grad():
        for name, p in cell.named_parameters():
            p.copy_(getattr(layer, f"{name}_l0"))
    x, read = torch.randn(40, 8, 4), torch.randn(40, 8, 20)
    zeros = torch.zeros(8, 20, dtype=torch.float64)
    states = twin(cell, x.double(), zeros, zeros.clone() if kind == "LSTM" else None)
    (torch.stack([h for h, _ in states]) * read.double()).sum().backward()
    with record(layer, "all") as seen:
        output, _ = layer(x)
    (output * read).sum().backward()
    deltas = seen.runs[0][1].seen[0, 0]
    for t, (h, c) in enumerate(states):
        assert (deltas.h[t] - h.grad).abs().max() < 1e-5
        if kind == "LSTM":
            assert (deltas.c[t] - c.grad).abs().max() < 1e-5


@pytest.mark.usefixtures("compiled")
def test_gates_at_both_ends_and_nan():
    """exp neither overflows nor hides what is no number."""
    for dtype in (torch.float32, torch.float64):
        model = nn.LSTM(1, 1).to(dtype)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(1.0)
        x = torch.tensor([-1e30, -200.0, -30.0, 0.0, 30.0, 200.0, 1e30], dtype=dtype)[:, None, None]
        with record(model, "all") as seen:
            found, _ = model(x)
        expected, _ = model(x)
        assert torch.allclose(found, expected, atol=1e-6)
        found.sum().backward()
        assert seen.runs[0][1].seen[0, 0].h.isfinite().all()
        x[3] = float("nan")
        with record(model, "all"):
            assert model(x)[0][3:].isnan().all()


@pytest.mark.usefixtures("compiled")
def test_gradients_that_lie_anywhere():
    """Of a sum (no strides), of a slice, and of a batch that comes first."""
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 8, batch_first=True), torch.randn(4, 6, 3)
    for loss in (
        torch.sum,
        lambda y: y[:, -1, ::2].sum(),
        lambda y: y.transpose(0, 2).square().sum(),
    ):
        loss(model(x)[0]).backward()
        expected = [p.grad for p in model.parameters()]
        model.zero_grad()
        with record(model, "all"):
            loss(model(x)[0]).backward()
        for a, p in zip(expected, model.parameters(), strict=True):
            assert torch.allclose(a, p.grad, atol=1e-5)
        model.zero_grad()


@pytest.mark.usefixtures("compiled")
def test_long_sequences_run_in_spans(monkeypatch):
    monkeypatch.setattr("signalprop.recurrent.cells.bulk.BYTES", 4000)
    monkeypatch.setattr("signalprop.recurrent.cells.bulk.TIMES", 0)
    for kind in KINDS:
        torch.manual_seed(0)
        model, x = layer(kind, 5, 9, torch.float64), torch.randn(50, 4, 5, dtype=torch.float64)
        for a, b in zip(run(model, x, False), run(model, x, True), strict=True):
            assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.usefixtures("compiled")
def test_borders_are_read_from_the_same_loops():
    model, x = nn.LSTM(3, 8), torch.randn(50, 4, 3)
    found = []
    for way in ({"deltas": "all"}, {"chunk": 20}):
        with record(model, **way) as seen:
            model(x)[0].square().sum().backward()
        found.append(seen.axes()[0])
    every, borders = found
    assert borders.steps == (20, 40, 50)
    assert borders.h == pytest.approx([every.h[t - 1] for t in borders.steps], rel=1e-12)
    assert borders.c == pytest.approx([every.c[t - 1] for t in borders.steps], rel=1e-12)


def ran(monkeypatch):
    """Whether pure torch has run, and run well."""
    used = []

    class Counted(Steps):
        def forward(self, *args):
            used.append(True)
            super().forward(*args)

    monkeypatch.setattr(lstm, "Steps", Counted)
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 8), torch.randn(5, 2, 3)
    with record(model, "all"):
        found, _ = model(x)
    assert torch.allclose(found, model(x)[0], atol=1e-6)
    return bool(used)


def test_switched_off(monkeypatch):
    monkeypatch.setenv("SIGNALPROP_COMPILED", "0")
    assert ran(monkeypatch)
    assert loops.LIBRARY.status() == "off (SIGNALPROP_COMPILED=0)"


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.delenv("SIGNALPROP_COMPILED", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ran(monkeypatch)


def test_what_the_loops_cannot_take(monkeypatch):
    monkeypatch.setattr(loops.LIBRARY, "get", lambda: object())
    x = torch.randn(3, 3)
    assert loops.fits(x, x, None, nn.Parameter(x))
    assert not loops.fits(x.bfloat16())
    assert not loops.fits(x, x.double())
    assert not loops.fits(x, x.to("meta"))
    assert not loops.fits(x, x.to_sparse())

    class Own(torch.Tensor):
        pass

    assert not loops.fits(x.as_subclass(Own))


def test_wrong_shapes():
    """Nothing is read beyond a tensor's end."""
    run = Stepwise("lstm")
    w_ih, w_hh = torch.randn(16, 3), torch.randn(16, 4)
    x, right, wrong = torch.randn(5, 2, 3), torch.zeros(2, 4), torch.zeros(1, 4)
    for states, weights in (
        ((wrong, right), (w_ih, w_hh)),
        ((right, wrong), (w_ih, w_hh)),
        ((right, right), (w_ih, w_hh[:8])),
    ):
        with pytest.raises(SignalpropError, match="do not fit each other"):
            run((0, 0), x, states, (*weights, None, None, None), None)
