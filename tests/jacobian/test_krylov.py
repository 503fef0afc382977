"""The largest singular values by block Krylov: right, or known to be wrong."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.jacobian.test_operator import operator_of
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.jacobian import exact, krylov
from signalprop.jacobian.operator import Dense


def with_spectrum(s, m=None, n=None, batch=1, dtype=torch.float64, seed=0):
    """Matrices with the given singular values and random directions."""
    draw = torch.Generator().manual_seed(seed)
    s = torch.as_tensor(s, dtype=torch.float64)
    m, n = m or len(s), n or len(s)
    turn = lambda size: torch.linalg.qr(  # noqa: E731
        torch.randn(batch, size, size, generator=draw, dtype=torch.float64)
    )[0]
    return ((turn(m)[:, :, : len(s)] * s) @ turn(n)[:, : len(s)]).to(dtype)


def deep(kind, width=96, depth=24, seed=0):
    torch.manual_seed(seed)
    layers = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.zeros_(linear.bias)
        if kind == "orthogonal":
            nn.init.orthogonal_(linear.weight)
        else:
            nn.init.normal_(linear.weight, std=((2 if kind == "relu" else 1) / width) ** 0.5)
        layers += [linear, nn.ReLU() if kind == "relu" else nn.Tanh()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("kind", ["relu", "tanh"])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_deep_networks_to_the_tolerance(kind, k):
    model, x = deep(kind), torch.randn(6, 96)
    found = krylov.top(operator_of(model, x), k, vectors=200)
    truth = exact.singular_values(operator_of(model.double(), x.double())).values[:, :k]
    off = (found.values - truth).abs()
    assert bool(found.converged.all())
    assert found.reliable.all()
    assert (off <= found.errors).all()
    assert (off <= 1e-4 * truth).all()
    assert found.vectors <= 11 * max(k + 1, 4)


@pytest.mark.parametrize("shape", [(200, 120), (120, 200)])
@pytest.mark.parametrize(
    "s",
    [0.8 ** torch.arange(120.0), 1 / (1 + torch.arange(120.0)) ** 2, torch.linspace(3, 2, 120)],
    ids=["geometric", "power", "flat"],
)
def test_the_stated_errors_cover(s, shape):
    op = Dense(with_spectrum(s, *shape, batch=40))
    for most in (20, 36, 60, 120):
        found = krylov.top(op, 4, vectors=most, tol=1e-9)
        off = (found.values - s[:4]).abs()
        covered = (off <= found.errors).double().mean()
        assert covered >= 0.95 or (most < 60 and covered >= 0.7)
        assert (found.values <= s[:4] + found.errors).all()


def test_errors_fall_by_the_rate_of_the_space():
    """Every step adds a factor of about (s_5 / s_k)^4 in s^2, more for a Krylov space."""
    s = 0.7 ** torch.arange(100.0, dtype=torch.float64)
    op = Dense(with_spectrum(s, batch=10))
    space = krylov._Space(op, 4, torch.Generator().manual_seed(0))
    off = []
    for _ in range(4):
        found, _ = space.ritz(space.grow(), 4)
        off.append(float((found - s[:4]).abs().amax()))
    assert all(b < a * 0.7**3 for a, b in pairwise(off))
    assert off[-1] < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 3, 4, 9])
def test_a_rank_that_is_exhausted_is_zero_never_noise(rank, dtype):
    s = torch.cat([torch.linspace(2, 1, rank), torch.zeros(80 - rank)])
    found = krylov.top(Dense(with_spectrum(s, batch=5, dtype=dtype)), 6)
    close = 1e-5 if dtype == torch.float32 else 1e-12
    kept = min(rank, 6)
    assert bool(found.converged.all())
    assert torch.allclose(found.values[:, :kept], s[:kept].double(), rtol=close)
    assert not found.values[:, kept:].any()
    assert not found.reliable[:, kept:].any()
    assert found.reliable[:, :kept].all()


def test_rank_deficient_relu_network():
    """Plain bidiagonalisation was 120 times wrong on one of these."""
    for seed in range(3):
        model, x = deep("relu", width=64, depth=30, seed=seed), torch.randn(8, 64)
        truth = exact.singular_values(operator_of(model, x)).values
        found = krylov.top(operator_of(model, x), 8, vectors=200)
        off = (found.values - truth[:, :8]).abs()
        assert (off <= found.errors + 1e-5 * truth[:, :1]).all()


def test_ranks_that_differ_within_a_batch():
    ranks = [0, 1, 5, 40]
    J = torch.cat(
        [with_spectrum([1.0 + i / 9 for i in range(r)][::-1] + [0.0] * (40 - r)) for r in ranks]
    )
    truth = torch.linalg.svdvals(J)[:, :4]
    found = krylov.top(Dense(J), 4, vectors=400)
    assert torch.allclose(found.values, truth, atol=1e-4)
    for i, r in enumerate(ranks):
        assert int((found.values[i] > 0).sum()) == min(r, 4)


def test_values_that_come_several_times():
    op = Dense(with_spectrum([3.0] * 4 + [2.0] * 4 + [1.0] * 60))
    truth = torch.tensor([[3.0] * 4 + [2.0] * 2], dtype=torch.float64)
    assert torch.allclose(krylov.top(op, 6, vectors=200).values, truth, atol=1e-9)


@pytest.mark.parametrize("k", [2, 8])
def test_a_flat_spectrum_is_recognised_early_and_goes_the_exact_way(k):
    model, x = deep("orthogonal", width=256, depth=12), 0.1 * torch.randn(2, 256)
    found = krylov.top(operator_of(model, x), k)
    assert not found.converged.any()
    assert found.vectors <= 256 // 4
    truth = exact.singular_values(operator_of(model, x)).values[:, :k]
    assert ((found.values - truth).abs() <= found.errors).all()
    whole = krylov.spectrum_top(operator_of(model, x), k)
    assert whole.method == "exact"
    assert bool(whole.converged.all())
    assert torch.allclose(whole.values, truth, rtol=1e-5)


def test_small_operators_go_the_exact_way_at_once():
    J = torch.randn(3, 30, 200).double()
    found = krylov.spectrum_top(Dense(J), 4)
    assert (found.method, found.vectors) == ("exact", 30)
    assert torch.allclose(found.values, torch.linalg.svdvals(J)[:, :4])
    assert krylov.spectrum_top(Dense(J[:, :2]), 4).values.shape == (3, 2)


def test_where_the_matrix_does_not_fit_the_search_says_how_it_ended():
    op = Dense(with_spectrum(torch.linspace(1.1, 1, 100)))
    found = krylov.spectrum_top(op, 3, budget=10)
    assert found.method == "krylov"
    assert not found.converged.any()
    assert (found.errors > 1e-4 * found.values).any()


def test_more_than_there_are():
    J = torch.randn(2, 5, 3).double()
    found = krylov.top(Dense(J), 10)
    assert torch.allclose(found.values, torch.linalg.svdvals(J), atol=1e-12)
    assert bool(found.converged.all())


def test_convolution_without_its_matrix():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3, 2)).double()
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    truth = exact.singular_values(operator_of(model, x)).values
    found = krylov.top(operator_of(model, x), 3, vectors=100)
    assert ((found.values - truth[:, :3]).abs() <= found.errors).all()


def test_only_its_own_generator_is_used():
    op = Dense(with_spectrum(0.8 ** torch.arange(70.0)))
    state = torch.random.get_rng_state()
    first, again = krylov.top(op, 3), krylov.top(op, 3)
    other = krylov.top(op, 3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first.values, again.values)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first.values, other.values)


def test_bad_requests():
    op = Dense(torch.randn(1, 4, 4))
    for call in (krylov.top, krylov.spectrum_top):
        with pytest.raises(SignalpropError, match="at least one"):
            call(op, 0)
    J = torch.randn(1, 90, 90)
    J[0, 3, 3] = math.inf
    with pytest.raises(SignalpropError, match="inf or nan"):
        krylov.spectrum_top(Dense(J), 2)


@settings(max_examples=20, deadline=None)
@given(log_c=st.floats(-25, 25), seed=st.integers(0, 10**6))
def test_scaling_scales_and_turning_leaves(log_c, seed):
    s = 0.6 ** torch.arange(70.0, dtype=torch.float64)
    c = math.exp(log_c)
    found = krylov.top(Dense(c * with_spectrum(s, seed=seed)), 3)
    assert torch.allclose(found.values, c * s[:3].expand(1, 3), rtol=1e-4, atol=0)
    assert bool(found.converged.all())
