"""Credit over the lag: against an unrolled twin, and closed forms."""

import math

import numpy as np
import pytest
import torch
from tests.recurrent.horizon.common import D, curves, draw
from tests.references import time_twin as twin
from torch import nn

from signalprop.nets.recurrent import LSTM, MinGRU, MinLSTM
from signalprop.recurrent.horizon.curve import sizes_of
from signalprop.recurrent.horizon.measure import horizon
from signalprop.recurrent.horizon.seen import Seen
from signalprop.recurrent.jacobians.steps import steps_of

# ---- against the twin ---------------------------------------------------------------------------

KINDS = {
    "rnn_tanh": lambda: nn.RNN(2, 5),
    "rnn_relu": lambda: nn.RNN(2, 5, nonlinearity="relu"),
    "gru": lambda: nn.GRU(2, 5),
    "lstm": lambda: nn.LSTM(2, 5),
    "lstm, projection": lambda: nn.LSTM(2, 5, proj_size=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_those_of_an_unrolled_twin(kind):
    net = KINDS[kind]().double()
    x = draw(30, 3, 2)
    with Seen(net) as seen:
        net(x)
    run = seen.chains[0].runs()[0]
    steps = steps_of(run, torch.arange(3))
    sizes = sizes_of(steps, 1, torch.Generator().manual_seed(5))
    e = torch.randn(1, 3, steps.size, generator=torch.Generator().manual_seed(5), dtype=D)[0]
    weights = tuple(w if w is None else w.detach() for w in run.weights)
    exact = twin.errors(twin.states(run.place.op, x, run.start, weights), e)
    norms = torch.ldexp(sizes.part, sizes.power)[:, 0]
    assert torch.allclose(norms, exact.norm(dim=-1), rtol=1e-10)
    want = exact.flip(0).square().sum((1, 2)).sqrt()
    (curve,) = curves(net, x, errors=1, seed=5, batch_dim=1)
    assert curve.credit == pytest.approx((want / want[0]).tolist(), rel=1e-10)
    assert curve.floor == torch.finfo(D).eps


def test_many_errors_give_the_frobenius_norm():
    net = nn.RNN(2, 6).double()
    x = draw(8, 1, 2)
    (curve,) = curves(net, x, errors=4000, batch_dim=1)
    with Seen(net) as seen:
        net(x)
    steps = steps_of(seen.chains[0].runs()[0], torch.arange(1))
    product = torch.eye(6, dtype=D)
    for lag, t in enumerate(range(8, 1, -1), 1):
        product = product @ steps.matrix(t)[0]
        assert curve.credit[lag] == pytest.approx(float(product.norm()) / 6**0.5, rel=0.05)


# ---- closed forms -------------------------------------------------------------------------------


class Leak(nn.Module):
    """h_t = gamma h_(t-1) + x_t, in torch's own layer."""

    def __init__(self, gamma, size=3, dtype=D):
        super().__init__()
        self.rnn = nn.RNN(size, size, nonlinearity="relu", bias=False).to(dtype)
        with torch.no_grad():
            self.rnn.weight_ih_l0.copy_(torch.eye(size))
            self.rnn.weight_hh_l0.copy_(gamma * torch.eye(size, dtype=D))

    def forward(self, x):
        return self.rnn(x)[0]


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_a_leaky_integrator(gamma):
    (curve,) = curves(Leak(gamma), torch.rand(400, 2, 3, dtype=D), batch_dim=1)
    assert curve.steps == twin.floor_of(1 / math.e, gamma)
    assert curve.reach(0.05) == twin.floor_of(0.05, gamma)
    assert curve.rate == pytest.approx(math.log(gamma), rel=1e-9)
    assert curve.credit[-1] == pytest.approx(gamma**399, rel=1e-9)  # as small as 1e-120


def test_credit_far_below_what_the_dtype_holds():
    (curve,) = curves(Leak(0.5, dtype=torch.float32), torch.rand(200, 2, 3), batch_dim=1)
    assert curve.credit[-1] == pytest.approx(0.5**199, rel=1e-6)
    assert curve.silent == 23  # the epsilon of float32 is 2^-23


@pytest.mark.parametrize(("gamma", "way"), [(8.0, "grows above"), (1 / 16, "falls below")])
def test_what_no_float_holds_is_cut_and_said(gamma, way):
    net = Leak(gamma)
    x = torch.zeros(400, 1, 3, dtype=D)
    x[0] = 1e-300 if gamma > 1 else 1
    net.rnn.nonlinearity = "relu"
    h = torch.ones(1, 3, dtype=D)

    class Held(nn.Module):
        """The slope alone, so that the state stays finite."""

        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(1, 1, dtype=D)

        def forward(self, x, h):
            return (h - h.detach()) * gamma + x

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = Held()

        def forward(self, x):
            s = h
            for one in x:
                s = self.held(one, s)
            return s

    found = horizon(Outer(), x, batch_dim=1, gains=False)
    (curve,) = found.curves
    lag = int(993 / abs(math.log2(gamma))) + 1
    assert len(curve.credit) == lag
    assert all(0 < c < math.inf for c in curve.credit)
    assert way in found.notes[0]
    assert f"at lag {lag}" in found.notes[0]
    assert curve.rate == pytest.approx(math.log(gamma), rel=1e-9)


def test_the_carousel_of_1997_is_constant_over_10_000_steps():
    net = LSTM(1, 3, cell="1997", truncated=True)
    (curve,) = curves(net, torch.randn(10_000, 1, 1), batch_dim=1)
    assert len(curve.lags) == 10_000
    later = np.array(curve.credit[1:])
    assert np.abs(later / later[0] - 1).max() < 1e-6
    assert curve.steps is None
    assert curve.silent is None


def test_minimal_layers_are_their_decays():
    for kind in (MinGRU, MinLSTM):
        net = kind(2, 4).double()
        x = draw(40, 3, 2)
        logs = net.decays(x).detach()
        (curve,) = curves(net, x, errors=3000, batch_dim=1)
        want = logs[1:].flip(0).cumsum(0).exp().square().mean((1, 2)).sqrt()
        assert curve.credit[1:12] == pytest.approx(want[:11].tolist(), rel=0.08)
        assert curve.op == kind.__name__.lower()
