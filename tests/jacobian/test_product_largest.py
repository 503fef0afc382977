"""The largest values of deep products, where further sweeps are needed."""

import copy
import itertools

import pytest
import torch
from tests.jacobian.products import (
    DECADE,
    case,
    dense_case,
    layers,
    operators,
    turned,
)
from tests.references import product_twin as twin
from torch import nn

from signalprop.jacobian import exact, product, sweeps
from signalprop.jacobian.operator import End, Jacobian
from signalprop.jacobian.product import log_spectrum


@pytest.mark.parametrize("name", ["tanh", "widths"])
@pytest.mark.parametrize("r", [1, 5])
def test_top_r(name, r):
    blocks, truth = case(name)
    found = log_spectrum(operators(blocks), r)
    assert found.log_values.shape == (len(blocks[0]), r)
    assert (found.log_values - truth[:, :r]).abs().max() < 0.05 * DECADE
    assert found.converged.all()
    assert found.vectors <= (r + 8) * found.sweeps


def test_top_r_of_a_flat_spectrum_says_when_it_is_not_there():
    blocks = layers([40] * 4, seed=1)
    truth = torch.linalg.svdvals(blocks[2].double() @ blocks[1].double() @ blocks[0].double()).log()
    for most in (1, 2, 3, 30):
        found = log_spectrum(operators(blocks), 6, max_sweeps=most, tol=1e-4, profile=False)
        apart = (found.log_values - truth[:, :6]).abs()
        assert (found.log_values <= truth[:, :6] + 1e-12).all()  # from below
        if most == 1:
            assert (found.errors == torch.inf).all()
        assert (found.converged <= (apart < 5e-4)).all()
    assert found.converged.all()
    assert found.sweeps < 30


def convolutions(depth, seed):
    """A network at He's initialisation, block by block, and J in float64."""
    torch.manual_seed(seed)
    model = nn.Sequential()
    for _ in range(depth):
        conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        model.append(nn.Sequential(conv, nn.ReLU()))
    x = torch.randn(1, 8, 6, 6)
    h = x.clone().requires_grad_()
    ends = [End.at("input", h)]
    for i, block in enumerate(model):
        h = block(h)
        ends.append(End.at(str(i), h))
    wide = x.double().requires_grad_()
    whole = Jacobian(End.at("out", copy.deepcopy(model).double()(wide)), End.at("in", wide))
    return [Jacobian(of, wrt) for wrt, of in itertools.pairwise(ends)], exact.matrices(whole)


INDEX = torch.arange(200.0, dtype=torch.float64)
#: blocks and the matrix of their product, of spectra whose largest values come slowly
SLOW = {
    "convolutions": lambda seed: convolutions(5, seed),
    "relu": lambda seed: dense_case(layers([160] * 7, "relu", 2.0, seed=seed)),
    "orthogonal tanh": lambda seed: dense_case(layers([160] * 7, orthogonal=True, seed=seed)),
    "clustered": lambda seed: dense_case(
        turned(torch.where(INDEX < 20, 2 - 0.005 * INDEX, 1 - 0.9 * INDEX / 200), seed)
    ),
    "outlier": lambda seed: dense_case(
        turned(torch.where(INDEX < 1, 50.0, 1 - 0.5 * INDEX / 200), seed)
    ),
    "flat": lambda seed: dense_case(turned(1.1 - 0.1 * INDEX / 200, seed)),
    "decades above a flat rest": lambda seed: dense_case(
        turned(torch.where(INDEX < 3, 10 ** (9 - 3 * INDEX), 1.2 - INDEX / 220), seed)
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_errors_of_the_largest_cover_wherever_sweeps_stop(name):
    off, errors = [], []
    for seed in range(5):
        blocks, J = SLOW[name](seed)
        truth = torch.linalg.svdvals(J).log()
        draw = torch.Generator().manual_seed(seed)
        for r, most, tol in ((2, 8, 0.05), (8, 8, 0.05), (8, 8, 0.005), (8, 3, 0.05)):
            found = log_spectrum(blocks, r, tol=tol, max_sweeps=most, profile=False, generator=draw)
            off.append((found.log_values - truth[:, :r]).abs().flatten())
            errors.append(found.errors.flatten())
            # what is said to be there is there
            assert not (found.converged.flatten() & (off[-1] > 2 * found.tol)).any()
    off, errors = torch.cat(off), torch.cat(errors)
    assert (off <= 2 * errors + 1e-5).double().mean() >= 0.9
    seen = off > 1e-5  # what float32's blocks can tell
    assert (errors / off)[seen].median() < 20


@pytest.mark.parametrize("name", ["convolutions", "orthogonal tanh", "flat"])
def test_a_krylov_space_comes_nearer_than_the_same_sweeps_without(name, monkeypatch):
    blocks, J = SLOW[name](0)
    truth = torch.linalg.svdvals(J).log()[:, :6]
    options = {"tol": 1e-4, "max_sweeps": 8, "profile": False}
    off = {}
    for times in (1, product.LARGEST):
        monkeypatch.setattr(product, "LARGEST", times)
        found = log_spectrum(blocks, 6, **options)
        off[times] = (truth - found.log_values).abs().mean()
        assert found.vectors <= 14 * (8 if times == 1 else 20)
    assert off[product.LARGEST] < 0.5 * off[1]


@pytest.mark.parametrize("profile", [True, False])
def test_the_largest_where_they_go_by_elimination(profile, monkeypatch):
    monkeypatch.setattr(sweeps, "CAREFUL", 4)
    for seed in range(3):
        blocks = layers([120] * 7, "relu", 2.0, seed=seed, batch=2)
        _, J = dense_case(blocks)
        truth = torch.linalg.svdvals(J).log()[:, :6]
        found = log_spectrum(operators(blocks, torch.float32), 6, profile=profile)
        assert ((found.log_values - truth).abs() <= 2 * found.errors).double().mean() >= 0.9
        assert found.profile is None or found.profile.shape == (2, 7, 6)


def test_a_space_that_grows_to_the_whole_is_exact():
    """Columns up to the narrowest width, which is inside; samples whose ranks differ."""
    blocks = layers([60, 40, 30, 50, 60], seed=2, batch=2)
    blocks[1][1, 12:] = 0
    found = log_spectrum(operators(blocks), 10, tol=1e-9, max_sweeps=30, profile=False)
    truth = torch.linalg.svdvals(dense_case(blocks)[1]).log()[:, :10]
    assert torch.allclose(found.log_values, truth, atol=1e-6)
    assert (found.errors < 1e-4).all()
    assert found.sweeps < 30


def test_rank_below_r():
    few = torch.randint(-3, 4, (1, 12, 3)).float()  # integers, so the rank is exact
    wide = [few @ torch.randint(-3, 4, (1, 3, 12)).float(), *layers([12, 12])]
    found = log_spectrum(operators(wide), 5)
    truth = twin.log_values(wide)
    assert (found.log_values[:, 3:] == -torch.inf).all()
    assert (found.log_values[:, :3] - truth[:, :3]).abs().max() < 1e-6
