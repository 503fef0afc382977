"""Lyapunov exponents where they are known."""

import math

import pytest
import torch
from torch import nn

from signalprop.nets.recurrent import LSTM, MinGRU
from signalprop.recurrent.horizon.measure import horizon


def linear(W, steps=200, exponents=None):
    """A ReLU net whose states are all above 0, so that it is linear."""
    n = len(W)
    net = nn.RNN(1, n, nonlinearity="relu").double()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.weight_hh_l0.copy_(W)
        net.bias_hh_l0.fill_(1.0)
    x = torch.zeros(steps, 2, 1, dtype=torch.float64)
    found = horizon(net, x, batch_dim=1, exponents=exponents or n)
    return found.exponents[0], found


def test_triangular():
    W = torch.tensor([[0.9, 0, 0], [0.3, 0.5, 0], [0.2, 0.4, 0.1]], dtype=torch.float64)
    found, _ = linear(W)
    assert found.values == pytest.approx([math.log(x) for x in (0.9, 0.5, 0.1)], abs=1e-7)
    assert max(found.errors) < 1e-7
    assert found.size == 3


def test_normal():
    Q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    W = Q @ torch.diag(torch.tensor([0.9, -0.6, 0.3, -0.1], dtype=torch.float64)) @ Q.t()
    found, _ = loop_of(W)
    want = [math.log(x) for x in (0.9, 0.6, 0.3, 0.1)]
    assert found.values == pytest.approx(want, abs=1e-9)


class Affine(nn.Module):
    def __init__(self, W):
        super().__init__()
        self.W = nn.Parameter(W)

    def forward(self, x, h):
        return h @ self.W.t() + x


class Loop(nn.Module):
    def __init__(self, W):
        super().__init__()
        self.cell = Affine(W)

    def forward(self, x):
        h = torch.zeros_like(x[0])
        for one in x:
            h = self.cell(one, h)
        return h


def loop_of(W, steps=150):
    x = torch.randn(steps, 2, len(W), dtype=torch.float64)
    found = horizon(Loop(W), x, batch_dim=1, exponents=len(W))
    return found.exponents[0], found


def test_orthogonal():
    W = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    found, whole = loop_of(W)
    assert found.values == pytest.approx([0.0] * 6, abs=1e-12)
    assert whole.curves[0].credit == pytest.approx([1.0] * 150, abs=1e-12)
    assert whole.gains[0].largest == pytest.approx([1.0] * 16, abs=1e-12)


def test_decay_rate_is_the_spectral_radius():
    W = torch.rand(8, 8, dtype=torch.float64)
    W *= 0.8 / torch.linalg.eigvals(W).abs().max()
    _, found = linear(W, exponents=1)
    c = found.curves[0].credit
    assert math.log(c[150] / c[100]) / 50 == pytest.approx(math.log(0.8), abs=1e-9)
    assert found.gains[0].radius == pytest.approx(0.8)
    assert found.exponents[0].values[0] == pytest.approx(math.log(0.8), abs=1e-9)


def random_net(g, n=200, steps=400):
    net = nn.RNN(1, n, bias=False)
    with torch.no_grad():
        net.weight_ih_l0.zero_()
        net.weight_hh_l0.normal_(0, g / n**0.5)
    h = torch.randn(1, 2, n)
    return horizon(net, (torch.zeros(steps, 2, 1), h), exponents=1, gains=False, batch_dim=1)


def test_chaos_above_one_and_ln_g_below():
    """Sompolinsky, Crisanti & Sommers 1988: a random tanh net is chaotic where g > 1."""
    above, below = random_net(1.7).exponents[0], random_net(0.5).exponents[0]
    assert above.values[0] > 3 * above.errors[0] > 0
    assert 0.03 < above.values[0] < 0.3
    assert below.values[0] == pytest.approx(math.log(0.5), abs=0.08)


def test_of_a_linear_recurrence_they_are_exact():
    net = MinGRU(2, 5).double()
    x = torch.randn(40, 3, 2, dtype=torch.float64)
    found = horizon(net, x, batch_dim=1, exponents=5).exponents[0]
    want = net.decays(x)[1:].mean((0, 1)).sort(descending=True).values
    assert found.values == pytest.approx(want.tolist(), abs=1e-12)


def test_a_carousel_neither_grows_nor_shrinks():
    found = horizon(
        LSTM(2, 4, cell="1997", truncated=True), torch.randn(60, 2, 2), batch_dim=1, exponents=5
    )
    assert found.exponents[0].values[:4] == pytest.approx([0.0] * 4, abs=1e-9)
    assert found.exponents[0].values[4] == -math.inf  # h hands nothing on


def test_the_error_covers_the_truth():
    """Of a scalar net with random slopes: mean ln |a_t| over a long run."""
    torch.manual_seed(1)
    W = torch.full((1, 1), 1.3, dtype=torch.float64)
    net = nn.RNN(1, 1, bias=False).double()
    with torch.no_grad():
        net.weight_hh_l0.copy_(W)
        net.weight_ih_l0.fill_(1.0)
    x = torch.randn(3000, 1, 1, dtype=torch.float64)
    long = horizon(net, x, batch_dim=1, exponents=1, gains=False).exponents[0]
    short = horizon(net, x[:400], batch_dim=1, exponents=1, gains=False).exponents[0]
    assert abs(short.values[0] - long.values[0]) < 4 * short.errors[0]
    assert long.errors[0] < short.errors[0]
