"""Stochastic Lanczos quadrature against whole spectra."""

import math

import pytest
import torch
from tests.jacobian.test_krylov import (
    BLOCKS,
    KINDS,
    block_of,
    covered,
    deep,
    of_kind,
    with_spectrum,
)
from tests.jacobian.test_operator import operator_of

from signalprop.errors import SignalpropError
from signalprop.jacobian import exact
from signalprop.jacobian.density import density
from signalprop.jacobian.operator import Dense

SIDE = torch.arange(160.0, dtype=torch.float64)
GRID = torch.logspace(-3, 1, 400, dtype=torch.float64)


def share_below(s, at):
    return (s[:, None, :] <= at[:, None]).double().mean(2)


def distance(found, s, least=0.0):
    """Kolmogorov's, above the least s that can be told from smaller ones."""
    at = GRID[least < GRID]
    return (found.cumulative(at)[0] - share_below(s, at)).abs().max().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("s", "least", "close"),
    [
        (torch.linspace(2, 1, 200), 0.0, 0.06),
        (torch.linspace(1, 0.01, 200), 0.1, 0.05),
        (0.99 ** torch.arange(200.0) * 2, 0.4, 0.08),
        (torch.cat([torch.linspace(2, 1, 120), torch.zeros(80)]), 0.0, 0.05),
    ],
    ids=["flat", "uniform", "decaying", "rank-deficient"],
)
def test_kolmogorov_distance(s, least, close, dtype):
    found = density(Dense(with_spectrum(s, batch=3, dtype=dtype)))
    assert distance(found, s.double().expand(3, -1), least) < close
    assert found.vectors == 600


def test_deep_network():
    model, x = deep("orthogonal", width=128, depth=10), torch.randn(2, 128) * 0.5
    s = exact.singular_values(operator_of(model, x)).values
    found = density(operator_of(model, x), steps=20)
    assert distance(found, s) < 0.06


@pytest.mark.parametrize("kind", [*KINDS, "decaying"])
def test_the_errors_of_quantiles_cover(kind):
    """Also where values are too small to be told apart, and one node stands for many."""
    shares = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9)
    decaying = ((with_spectrum(0.93**SIDE, seed=i), 0.93 ** SIDE[None], None) for i in range(8))
    off, errors = [], []
    for J, s, draw in decaying if kind == "decaying" else of_kind(kind, 8):
        value, error = density(Dense(J), generator=draw).quantiles(shares)
        off.append((value - torch.quantile(s, torch.tensor(shares).double(), dim=1).T).abs())
        errors.append(error + 1e-12)
    assert covered(off, errors) >= 0.88
    if kind in ("gaussian", "near-isometric", "outlier"):  # and are not wide for it
        inner = slice(2, None)
        ratio = torch.cat(errors)[:, inner].median() / torch.cat(off)[:, inner].median()
        assert ratio < 6


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_networks(name):
    op, s = block_of(name)
    least = 0.1 * float(s.max())
    s = torch.nn.functional.pad(s, (0, op.columns - s.shape[1]))
    assert distance(density(op, steps=24, probes=16), s, least) < 0.1


def test_more_probes_come_nearer():
    """The error of the share falls with the root of the number of probes."""
    s = torch.linspace(2, 1, 200).double()
    op = Dense(with_spectrum(s).expand(40, 200, 200))
    at = torch.tensor([1.5], dtype=torch.float64)
    off = [
        (density(op, probes=count, steps=25).cumulative(at)[0] - 0.5).std().item()
        for count in (4, 36)
    ]
    assert off[0] / off[1] == pytest.approx(3, rel=0.4)


def test_moments_are_those_of_the_probes():
    """A Gauss rule is exact for low powers: the mean of s^2 is v.J^T J v."""
    s = torch.linspace(2, 1, 60).double()
    J = with_spectrum(s, batch=2)
    found = density(Dense(J), steps=5, probes=3, generator=torch.Generator().manual_seed(4))
    v = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(4)).double()
    v = v / v.norm(dim=1, keepdim=True)
    for power in range(1, 5):
        moment = (found.weights * found.nodes ** (2 * power)).sum(2)
        direct = ((J.mT @ J).matrix_power(power) @ v * v).sum(1)
        assert torch.allclose(moment, direct, rtol=1e-9)
    assert torch.allclose(found.weights.sum(2), torch.ones(2, 3).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [0, 1, 5, 25])
def test_breakdown_puts_the_lost_directions_at_zero(rank, dtype):
    s = torch.cat([torch.linspace(2, 1, rank), torch.zeros(50 - rank)])
    op = Dense(with_spectrum(s, batch=30, dtype=dtype))
    found = density(op)
    mass, error = found.zero
    assert mass.mean().item() == pytest.approx(1 - rank / 50, abs=0.02)
    assert (mass - (1 - rank / 50)).abs().max() < 0.15
    assert (error < 0.08).all()
    there = found.nodes[(found.nodes > 0) & (found.weights > 1e-6)]
    assert rank == 0 or (there.min() > 0.99 and there.max() < 2.01)  # no noise beside them


def test_fewer_rows_than_columns():
    found = density(Dense(with_spectrum(torch.linspace(2, 1, 20), 20, 80, batch=20)))
    assert found.zero[0].mean().item() == pytest.approx(0.75, abs=0.02)
    taller = density(Dense(with_spectrum(torch.linspace(2, 1, 20), 80, 20, batch=2)))
    assert not taller.zero[0].any()


def test_density_and_quantiles_on_a_log_grid():
    s = torch.linspace(2, 1, 200).double()
    found = density(Dense(with_spectrum(s, batch=2)))
    curve = found.density(GRID, width=0.1)
    assert curve.shape == (2, 400)
    mass = torch.trapezoid(curve, GRID.log())
    assert torch.allclose(mass, torch.ones(2).double(), atol=1e-3)
    shares = (0.1, 0.5, 0.9)
    value, error = found.quantiles(shares)
    truth = torch.quantile(s, torch.tensor(shares).double())
    assert ((value - truth).abs() <= 4 * error + 0.01).all()
    assert (error > 0).all()
    holed = density(Dense(with_spectrum(torch.cat([s[:100], 0 * s[:100]]))))
    assert holed.quantiles((0.1, 0.3))[0].tolist() == [[0.0, 0.0]]


def test_one_value_and_none():
    same = density(Dense(torch.eye(30).expand(2, 30, 30) * 3))
    assert torch.allclose(same.quantiles((0.1, 0.9))[0], torch.tensor(3.0).double())
    zero = density(Dense(torch.zeros(2, 30, 30)))
    assert torch.equal(zero.zero[0], torch.ones(2).double())
    assert not zero.quantiles((0.5, 0.99))[0].any()
    one = density(Dense(torch.full((1, 1, 1), -2.0)))
    assert one.quantiles((0.5,))[0].item() == pytest.approx(2)


def test_seeds_scale_and_bad_numbers():
    J = with_spectrum(torch.linspace(2, 1, 40))
    state = torch.random.get_rng_state()
    one, other = density(Dense(J)), density(Dense(1e-9 * J))
    assert torch.equal(one.nodes, density(Dense(J)).nodes)
    assert torch.allclose(other.nodes, 1e-9 * one.nodes, rtol=1e-6)
    assert torch.equal(state, torch.random.get_rng_state())
    J = J.clone()
    J[0, 0, 0] = math.nan
    with pytest.raises(SignalpropError, match="inf or nan"):
        density(Dense(J))
