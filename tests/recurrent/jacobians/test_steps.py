"""Step Jacobians against autograd, one row at a time, in float64."""

import numpy as np
import pytest
import torch
from tests.references import time_twin as twin
from torch import nn

from signalprop.nets.recurrent import LSTM
from signalprop.recurrent.horizon.seen import Seen
from signalprop.recurrent.jacobians.gains import gains_of
from signalprop.recurrent.jacobians.steps import Run, steps_of

T, B, I, H = 70, 3, 2, 4  # more steps than are held at a time


def run_of(net, x) -> Run:
    with Seen(net) as seen:
        net(x)
    return seen.chains[0].runs()[0]


LAYERS = {
    "rnn_tanh": lambda: nn.RNN(I, H),
    "rnn_relu": lambda: nn.RNN(I, H, nonlinearity="relu"),
    "gru": lambda: nn.GRU(I, H),
    "gru, no bias": lambda: nn.GRU(I, H, bias=False),
    "lstm": lambda: nn.LSTM(I, H),
    "lstm, no bias": lambda: nn.LSTM(I, H, bias=False),
    "lstm, projection": lambda: nn.LSTM(I, H, proj_size=3),
}


def check(run, **options):
    steps = steps_of(run, torch.arange(B))
    weights = tuple(w if w is None else w.detach() for w in run.weights)
    found = twin.states(run.place.op, run.x, run.start, weights, **options)
    assert torch.allclose(torch.stack([s[0] for s in found[1:]]), run.outputs, atol=1e-12)
    for t in (1, 2, 33, 64, 65, 70):
        J = steps.matrix(t)
        for b in range(B):
            state = tuple(s[b] for s in found[t - 1])
            exact = twin.jacobian(run.place.op, run.x[t - 1][b], state, weights, **options)
            assert torch.allclose(J[b], exact, atol=1e-11)
        v = torch.randn(2, B, steps.size, dtype=torch.float64)
        assert torch.allclose(steps.forth(t, v), torch.einsum("bij,ebj->ebi", J, v), atol=1e-11)


@pytest.mark.parametrize("kind", LAYERS)
def test_torch_layers(kind):
    net = LAYERS[kind]().double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.7)
    check(run_of(net, torch.randn(T, B, I, dtype=torch.float64)))


@pytest.mark.parametrize("cell", ["modern", "1997"])
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("proj", [0, 3])
def test_lstm_of_this_package(cell, truncated, peepholes, proj):
    net = LSTM(I, H, cell=cell, truncated=truncated, peepholes=peepholes, proj_size=proj).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.7)
    x = torch.randn(T, B, I, dtype=torch.float64)
    with torch.no_grad(), Seen(net) as seen:
        net(x)
    (run,) = seen.runs or seen.chains[0].runs()  # the plain one is torch's own
    peeps = None if run.peeps is None else run.peeps.detach()
    check(run, kind=cell, truncated=truncated, peeps=peeps)


def test_samples_are_chosen():
    run = run_of(nn.GRU(I, H).double(), torch.randn(T, B, I, dtype=torch.float64))
    whole, some = steps_of(run, torch.arange(B)), steps_of(run, torch.tensor([2, 0]))
    assert torch.equal(some.matrix(5), whole.matrix(5)[[2, 0]])


def test_sequences_that_have_ended_stay():
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, I, dtype=torch.float64) for n in (9, 6, 2)])
    net = nn.LSTM(I, H).double()
    steps = steps_of(run_of(net, packed), torch.arange(3))
    u = torch.randn(2, 3, 2 * H, dtype=torch.float64)
    assert torch.equal(steps.back(7, u)[:, 1:], u[:, 1:])
    assert not torch.equal(steps.back(7, u)[:, 0], u[:, 0])
    alone = nn.utils.rnn.pad_packed_sequence(packed)[0][:6, 1:2]
    assert torch.allclose(
        steps.matrix(6)[1], steps_of(run_of(net, alone), torch.arange(1)).matrix(6)[0], atol=1e-12
    )


def exact(steps, chosen):
    J = torch.stack([steps.matrix(t) for t in chosen])
    return torch.linalg.svdvals(J)


@pytest.mark.parametrize("hidden", [4, 40])
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_gains_against_svd(kind, hidden):
    net = getattr(nn, kind)(I, hidden).double()
    for p in net.parameters():
        nn.init.normal_(p, std=1.3 / hidden**0.5)
    steps = steps_of(run_of(net, torch.randn(30, B, I, dtype=torch.float64)), torch.arange(B))
    chosen = (2, 7, 30)
    s = exact(steps, chosen)
    g = gains_of(steps, chosen, spectra=False, generator=torch.Generator().manual_seed(0))
    assert g.steps == chosen
    assert g.values is None
    np.testing.assert_allclose(g.largest, s[..., 0].median(1).values, rtol=0.02)
    np.testing.assert_allclose(g.rms, s.square().mean((1, 2)).sqrt(), rtol=0.1)
    full = gains_of(steps, chosen, spectra=True, generator=torch.Generator())
    assert full.values is not None
    np.testing.assert_allclose(full.values, s, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(full.largest, s[..., 0].median(1).values, rtol=1e-9)


def test_radius_is_the_plain_nets_own():
    net = nn.RNN(I, H)
    with torch.no_grad():
        net.weight_hh_l0.copy_(torch.tensor([[0.0, -0.9], [0.9, 0.0]]).repeat(2, 2).tril(3) * 0)
        net.weight_hh_l0[:2, :2] = torch.tensor([[0.0, -0.9], [0.9, 0.0]])
    steps = steps_of(run_of(net, torch.randn(5, 1, I)), torch.arange(1))
    assert steps.radius == pytest.approx(0.9, abs=1e-6)
    assert steps_of(run_of(nn.GRU(I, H), torch.randn(5, 1, I)), torch.arange(1)).radius is None
