"""What theory expects of learnt single numbers: alpha x in a branch, x + b on the way."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import signalprop as sp
from signalprop.nets.residual import ResidualNet
from signalprop.theory.expect import expect

N = 64


class Own(nn.Module):
    """x + alpha tanh(W x), alpha of the block itself, the product not a site of its own."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.linear, self.alpha = nn.Linear(N, N), nn.Parameter(torch.tensor(alpha))

    def forward(self, x):
        return x + self.alpha * torch.tanh(self.linear(x))


class Shifted(nn.Module):
    def __init__(self, b: float) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor(b))

    def forward(self, x):
        return x + self.b


def expected(model):
    torch.manual_seed(0)
    batch = (torch.randn(N, N), torch.randint(5, (N,)))
    return expect(sp.trace(model, batch, F.cross_entropy), model)


@pytest.mark.parametrize("alpha", [0.0, 0.3, -0.3, 2.0])
def test_a_multiplier_of_the_block(alpha):
    torch.manual_seed(0)
    model = nn.Sequential(Own(alpha), Own(alpha), nn.Linear(N, 5))
    block = next(iter(expected(model).values()))
    if alpha == 0:
        assert block.expected == block.measured == 0.0
        return
    plain = next(iter(expected(_with(model, 1.0)).values()))
    branch = 0.5 * math.log(math.expm1(2 * plain.expected))  # the branch's own gain at alpha = 1
    twin = 0.5 * math.log1p(math.exp(2 * (branch + math.log(abs(alpha)))))
    assert block.expected == pytest.approx(twin, abs=1e-6)
    assert abs(block.excess) < 0.05


def _with(model, alpha):
    with torch.no_grad():
        for block in model[:2]:
            block.alpha.fill_(alpha)
    return model


@pytest.mark.parametrize("branch", ["skipinit", "fixup"])
@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("trained", [False, True])
def test_residual_networks_with_learnt_numbers(branch, kind, trained):
    torch.manual_seed(0)
    model = ResidualNet(N, 128, 6, 5, kind=kind, branch=branch)
    if trained:  # every number is somewhere
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn_like(p) + (0.2 if p.ndim == 0 else 0.0))
    found = expected(model)
    assert all(e.expected is not None for e in found.values()), [e.reason for e in found.values()]
    if trained:
        assert sum(e.excess for e in found.values()) == pytest.approx(0, abs=0.8)


@pytest.mark.parametrize("b", [0.0, 0.7, -2.0])
def test_a_number_added_does_nothing_to_delta(b):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(N, N), Shifted(b), nn.Tanh(), nn.Linear(N, 5))
    assert expected(model)["1"].expected == 0.0


def test_an_exponential_that_overflows_gives_no_warning():
    torch.manual_seed(0)

    class Exp(nn.Module):
        def forward(self, x):
            return (x / 1e3).exp()

    model = nn.Sequential(nn.Linear(N, N), nn.Softplus(), nn.Linear(N, 5))
    with torch.no_grad():
        model[0].weight.mul_(1e3)
    assert expected(model)["1"].expected is not None
