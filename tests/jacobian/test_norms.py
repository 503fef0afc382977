"""Norms from a few vectors: against the truth, their own definition, and their stated errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
from tests.references import jacobian_twin as twin

from signalprop.errors import SignalpropError
from signalprop.jacobian import exact, norms
from signalprop.jacobian.operator import Dense

N = torch.arange(96.0, dtype=torch.float64)
SPECTRA = {
    "flat": 1 + 0.2 * torch.rand(96, generator=torch.Generator().manual_seed(1)).double(),
    "slow": 0.97**N,
    "fast": 0.85**N,
    "power": 1 / (1 + N),
    "outlier": torch.where(N == 0, 20.0, 1.0),
    "low rank": torch.where(N < 10, 1.0, 0.0),
}


def probes_of(op, count, seed=0):
    probes = norms._Probes(op, torch.Generator().manual_seed(seed))
    for _ in range(count // 4):
        probes.draw(4)
        probes.deflated()  # taken in piece by piece
    return probes


@pytest.mark.parametrize("s", [0.8 ** torch.arange(30.0), torch.linspace(2, 1, 30)])
def test_deflation_is_what_its_definition_says(s):
    J = with_spectrum(s, 40, 30, batch=2)
    probes = probes_of(Dense(J), 8, seed=3)
    second, fourth = probes.deflated(), probes.deflated_fourth()
    draw = torch.Generator().manual_seed(3)
    G = torch.cat([norms.signs(Dense(J), 40, 4, draw) for _ in range(2)], 2)
    for i in range(2):
        expected = twin.left_out(J[i].numpy(), G[i].numpy())
        few = 1 + 1.24 / 7 + 1.7 / 49  # Student's t
        found = [second[0][i], second[1][i] / few * 2**0.5, fourth[0][i], fourth[1][i] / few]
        assert found == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("count", [8, 16])
@pytest.mark.parametrize("name", SPECTRA)
def test_error_bars_cover_over_200_trials(name, count):
    s = SPECTRA[name]
    op = Dense(with_spectrum(s).expand(200, 96, 96))
    probes = probes_of(op, count)
    second, fourth = s.square().sum(), s.pow(4).sum()
    ways = {
        "hutchinson": (probes.hutchinson(), second),
        "hutchinson, fourth": (probes.hutchinson_fourth(), fourth),
        "deflated": (probes.deflated(), second),
        "deflated, fourth": (probes.deflated_fourth(), fourth),
    }
    for way, ((value, error), truth) in ways.items():
        covered = ((value - truth).abs() <= 1.96 * error + 1e-10 * truth).double().mean().item()
        # skewed: one draw in a few sees the outlier
        least = 0.8 if name in ("outlier", "power") and "deflated" not in way else 0.87
        assert covered >= least, (way, covered)
        assert abs(((value - truth) / truth).mean()) < 4 * (value / truth).std() / 200**0.5 + 1e-9
        if "deflated" not in way and name in ("flat", "slow"):
            assert covered <= 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_errors_that_decide_when_to_stop_cover(kind, dtype):
    squares, fourths = ([], []), ([], [])
    for J, s, draw in of_kind(kind, 12):
        for tol in (0.1, 0.03, 0.01):
            found = norms.moments(Dense(J.to(dtype)), tol=tol, generator=draw)
            squares[0].append(found.squares - s.square().sum(1))
            squares[1].append(found.squares_error)
            fourths[0].append(found.fourths - s.pow(4).sum(1))
            fourths[1].append(found.fourths_error)
            value, error = found.frobenius
            assert bool(found.converged) == bool(error <= (1 + 1e-6) * tol * value)
    for off, errors in (squares, fourths):
        assert covered([a.abs() for a in off], errors) >= 0.88


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_counted_exactly_keeps_the_error_of_rounding(dtype):
    for J, s, draw in of_kind("rank-deficient relu", 5):
        found = norms.moments(Dense(J.to(dtype)), vectors=160, generator=draw)
        eps = torch.finfo(dtype).eps
        assert (found.squares_error <= 1e-12 + 5 * eps * found.squares).all()
        assert ((found.squares - s.square().sum(1)).abs() <= 2 * found.squares_error).all()


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_networks(name):
    op, s = block_of(name)
    found = norms.moments(op, tol=0.02)
    value, error = found.frobenius
    truth = s.norm(dim=1)
    assert bool(found.converged.all())
    assert ((value - truth).abs() <= 4 * error).all()
    assert ((value - truth).abs() <= 0.06 * truth).all()
    assert ((found.fourths - s.pow(4).sum(1)).abs() <= 4 * found.fourths_error).all()


def test_hutchinson_falls_with_the_root_and_deflation_with_the_spectrum():
    s = SPECTRA["fast"]
    op, truth = Dense(with_spectrum(s).expand(100, 96, 96)), s.square().sum()

    def off(way, count):
        value = getattr(probes_of(op, count), way)()[0]
        return ((value - truth) / truth).square().mean().sqrt().item()

    plain = [off("hutchinson", count) for count in (8, 32)]
    assert plain[0] / plain[1] == pytest.approx(2, rel=0.35)
    sharp = [off("deflated", count) for count in (8, 16, 24)]
    assert sharp[0] / sharp[1] > 4
    assert sharp[1] / sharp[2] > 4


@pytest.mark.parametrize("kind", ["relu", "tanh", "orthogonal"])
def test_deep_networks_to_one_percent(kind):
    model, x = deep(kind, width=192, depth=20), torch.randn(8, 192) * 0.2
    found = norms.moments(operator_of(model, x))
    s = exact.singular_values(operator_of(model.double(), x.double())).values
    value, error = found.frobenius
    truth = torch.linalg.vector_norm(s, dim=1)
    assert found.method == ("hutchinson" if kind == "orthogonal" else "deflated")
    assert found.vectors <= (32 if kind == "orthogonal" else 112)
    assert bool(found.converged.all())
    assert (error <= 0.0101 * value).all()
    assert ((value - truth).abs() <= 0.02 * truth).all()
    mean, mean_error = found.mean_square
    assert ((mean - truth.square() / 192).abs() <= 4 * mean_error).all()
    fourths = s.square().square().sum(1)
    assert ((found.fourths - fourths).abs() <= 4 * found.fourths_error).all()


def test_an_isometry_has_no_error_and_equal_values():
    found = norms.moments(Dense(with_spectrum(torch.full((96,), 2.0))))
    assert found.squares.item() == pytest.approx(4 * 96, rel=1e-12)
    assert found.fourths.item() == pytest.approx(96 * 16, rel=1e-9)
    assert found.vectors == 16


def test_low_rank_is_exact():
    found = norms.moments(Dense(with_spectrum(SPECTRA["low rank"], batch=4)))
    assert torch.allclose(found.squares, torch.tensor(10.0).double())
    assert torch.allclose(found.fourths, torch.tensor(10.0).double())


def test_zero_beside_something():
    J = torch.cat([torch.zeros(1, 96, 96).double(), with_spectrum(SPECTRA["fast"])])
    found = norms.moments(Dense(J))
    assert found.squares[0] == 0
    assert found.fourths[0] == 0
    assert bool(found.converged.all())
    assert found.frobenius[0][1].item() == pytest.approx(
        SPECTRA["fast"].square().sum().sqrt().item(), rel=0.03
    )


def test_small_operators_and_tight_tolerances_are_formed():
    J = torch.randn(3, 20, 50).double()
    found = norms.moments(Dense(J))
    assert (found.method, found.vectors) == ("exact", 20)
    assert torch.allclose(found.squares, J.square().sum((1, 2)))
    assert torch.allclose(found.fourths, torch.linalg.svdvals(J).pow(4).sum(1))
    tight = norms.moments(Dense(with_spectrum(SPECTRA["slow"])), tol=1e-9)
    assert tight.method == "exact"
    assert tight.squares.item() == pytest.approx(SPECTRA["slow"].square().sum().item(), rel=1e-12)


def test_a_limit_on_the_vectors_is_kept_and_told():
    op = Dense(with_spectrum(SPECTRA["slow"], dtype=torch.float32))
    found = norms.moments(op, tol=1e-4, vectors=40)
    assert not found.converged.any()
    assert found.vectors <= 40
    assert norms.moments(op, tol=1e-4, budget=10, vectors=30).vectors <= 30


def test_seeds():
    op = Dense(with_spectrum(SPECTRA["slow"]))
    state = torch.random.get_rng_state()
    value, error = norms.frobenius(op, tol=0.03)
    assert torch.equal(value, norms.frobenius(op, tol=0.03)[0])
    assert not torch.equal(
        value, norms.frobenius(op, tol=0.03, generator=torch.Generator().manual_seed(1))[0]
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert (error <= 0.03 * value).all()


def test_numbers_that_are_not():
    J = torch.randn(1, 64, 64)
    J[0, 2, 2] = math.nan
    with pytest.raises(SignalpropError, match="inf or nan"):
        norms.moments(Dense(J))


@settings(max_examples=15, deadline=None)
@given(log_c=st.floats(-20, 20), seed=st.integers(0, 10**6))
def test_scaling_scales(log_c, seed):
    c = math.exp(log_c)
    J = with_spectrum(SPECTRA["fast"], seed=seed)
    one, other = norms.moments(Dense(J)), norms.moments(Dense(c * J))
    assert torch.allclose(other.squares, c**2 * one.squares, rtol=1e-9, atol=0)
    assert torch.allclose(other.fourths, c**4 * one.fourths, rtol=1e-9, atol=0)
