"""Log-spectra of deep products against mpmath: every value, over as many decades as there are."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.jacobian.products import BOTH, DECADE, DEEP, case, check, layers, operators
from tests.references import product_twin as twin
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.jacobian import graded, sweeps
from signalprop.jacobian.operator import Dense, End, Jacobian
from signalprop.jacobian.product import log_spectrum

FEW = settings(max_examples=15, deadline=None)


@BOTH
@pytest.mark.parametrize("name", DEEP)
def test_every_value_of_a_deep_product(name, dtype):
    blocks, truth = case(name)
    found = log_spectrum(operators(blocks, dtype))
    apart, errors = check(found, truth, 1e-4 if dtype == torch.float32 else 1e-5)
    assert (apart <= errors + 1e-13).double().mean() > 0.9
    assert errors.max() < 0.05 * DECADE
    L = len(blocks)
    assert found.profile.shape == (*found.log_values.shape[:1], L + 1, found.log_values.shape[1])
    assert (found.profile[:, 0] == 0).all()
    assert torch.equal(found.profile[:, -1], found.log_values)
    assert found.sweeps <= 3
    assert found.vectors <= found.sweeps * truth.shape[1]


def test_the_case_is_as_hard_as_it_is_said_to_be():
    """Plain float64 svdvals gets several of the 24 wrong, by many decades."""
    blocks, truth = case("tanh")
    assert truth.min() < -50 * DECADE
    product = torch.linalg.multi_dot([b[0].double() for b in reversed(blocks)])
    apart = (torch.linalg.svdvals(product).log() - truth[0]).abs() / DECADE
    assert (apart > 0.1).sum() >= 5
    assert apart.max() > 20


def test_relu_has_as_many_values_as_its_narrowest_layer_has_units():
    blocks, truth = case("relu")
    ranks = torch.stack([(b.abs().sum(-1) > 0).sum(-1) for b in blocks]).amin(0)
    assert torch.equal((truth > -torch.inf).sum(-1), ranks)
    found = log_spectrum(operators(blocks))
    assert torch.equal((found.log_values > -torch.inf).sum(-1), ranks)
    # what is below resolution is below what is there
    for i in range(len(ranks)):
        assert (found.floor[i, ranks[i] :] < found.log_values[i, ranks[i] - 1]).all()


@pytest.mark.parametrize("zeroed", [0, 7, 19])
def test_a_dead_network_is_zero(zeroed):
    blocks = layers([6] * 21)
    blocks[zeroed] = torch.zeros_like(blocks[zeroed])
    found = log_spectrum(operators(blocks))
    assert (found.log_values == -torch.inf).all()
    assert not found.log_values.isnan().any()
    assert not found.profile.isnan().any()
    assert torch.isfinite(found.profile[:, zeroed]).all()
    assert (found.profile[:, zeroed + 1 :] == -torch.inf).all()


def test_samples_of_different_rank_in_one_batch():
    blocks = layers([8] * 11, batch=3)
    blocks[4] = blocks[4] * torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    blocks[6][2, :5] = 0
    found = log_spectrum(operators(blocks))
    check(found, twin.log_values(blocks), 1e-6)


def test_the_profile_is_that_of_the_right_singular_vectors():
    blocks = layers([6] * 16, seed=3)
    found = log_spectrum(operators(blocks))
    expected = twin.profile([b[0] for b in blocks])
    assert (found.profile[0] - expected).abs().max() < 1e-9


def test_the_profile_beyond_careful_width(monkeypatch):
    monkeypatch.setattr(sweeps, "CAREFUL", 4)
    blocks = layers([6] * 16, seed=3)
    found = log_spectrum(operators(blocks))
    expected = twin.profile([b[0] for b in blocks])
    assert (found.profile[0] - expected).abs().max() < 1e-6


@BOTH
@pytest.mark.parametrize("name", ["tanh", "relu", "widths", "narrow inside"])
def test_elimination_every_few_blocks(name, dtype, monkeypatch):
    """What wide networks get: float32 throughout, no QR."""
    monkeypatch.setattr(sweeps, "CAREFUL", 4)
    monkeypatch.setattr(graded, "_SPLIT", 6)
    blocks, truth = case(name)
    found = log_spectrum(operators(blocks, dtype), profile=False)
    apart, errors = check(found, truth, 0.1 * DECADE, converged=False)
    assert (apart <= errors + 1e-13).double().mean() > 0.9


def test_directions_that_overtake_each_other():
    """The last shall be first: along the way the small direction becomes the large one."""
    Q = torch.linalg.qr(torch.randn(3, 4, 4, dtype=torch.float64))[0]
    first = Q[1] @ torch.diag(torch.tensor([1e12, 1e4, 1.0, 1e-9], dtype=torch.float64)) @ Q[0].T
    second = Q[2] @ torch.diag(torch.tensor([1e-11, 1.0, 1e13, 1e5], dtype=torch.float64)) @ Q[1].T
    # one rounding of the first factor is 1e-4 of what the second makes the largest
    for J in (first[None], torch.stack([first, first.T])):
        blocks = [J, second.expand_as(J)]
        found = log_spectrum(operators(blocks))
        truth = twin.log_values(blocks)
        safe = found.errors < 0.1
        assert safe[:, 0].all()
        assert ((found.log_values - truth).abs()[safe] < 0.2).all()


def crossing(up, down):
    """Five blocks in which one direction leads, five in which the other does; powers of ten."""
    blocks = [torch.diag(10.0 ** torch.tensor(d, dtype=torch.float64))[None] for d in (up, down)]
    return log_spectrum([Dense(blocks[0])] * 5 + [Dense(blocks[1])] * 5)


def test_blocks_that_cross():
    found = crossing((-0.8, 0.0, 1.4), (1.0, 0.0, -1.0))
    expected = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64) * DECADE
    assert torch.allclose(found.log_values, expected, atol=1e-4)


def test_blocks_that_cross_beyond_rounding_are_not_vouched_for():
    """One rounding of the lower half outgrows the truth in the upper half."""
    found = crossing((-6.0, 0.0, 3.0), (9.0, 0.0, -7.0))
    expected = torch.tensor([[15.0, 0.0, -20.0]], dtype=torch.float64) * DECADE
    wrong = (found.log_values - expected).abs() > 0.1 * DECADE
    assert not (found.converged & wrong & torch.isfinite(found.log_values)).any()
    lost = found.log_values == -torch.inf
    assert (found.floor >= expected)[lost].all()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("careful", [256, 2])
def test_neither_underflow_nor_overflow(scale, careful, monkeypatch):
    monkeypatch.setattr(sweeps, "CAREFUL", careful)
    blocks = layers([5] * 41)
    plain = log_spectrum(operators(blocks, torch.float32))
    scaled = log_spectrum(operators([b * scale for b in blocks], torch.float32))
    shift = 40 * math.log(scale)
    assert (scaled.log_values - plain.log_values - shift).abs().max() < 0.02


def test_orthogonal_product_is_all_ones():
    found = log_spectrum(operators(layers([16] * 31, "none", orthogonal=True)))
    assert found.log_values.abs().max() < 1e-5
    assert found.profile.abs().max() < 1e-5
    assert found.errors.max() < 1e-4


@given(
    widths=st.lists(st.integers(1, 7), min_size=2, max_size=9),
    seed=st.integers(0, 10**6),
    activation=st.sampled_from(["tanh", "relu"]),
)
@example([3, 2, 3], 1, "relu")  # all columns but one are lost in every sample
@FEW
def test_any_widths(widths, seed, activation):
    blocks = layers(widths, activation, 2.0, seed=seed, batch=2)
    check(log_spectrum(operators(blocks)), twin.log_values(blocks), 1e-6)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 6))
@FEW
def test_sum_is_the_log_determinant(seed, n):
    blocks = layers([n] * 26, seed=seed)
    total = sum(torch.linalg.slogdet(b.double())[1] for b in blocks)
    assert torch.allclose(log_spectrum(operators(blocks)).log_values.sum(-1), total, atol=1e-6)


def test_same_start_same_numbers():
    blocks = operators(layers([9] * 21), torch.float32)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = log_spectrum(blocks, 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first.log_values, log_spectrum(blocks, 4).log_values)
    given = [log_spectrum(blocks, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(given[0].log_values, given[1].log_values)


def test_through_autograd():
    model = nn.Sequential(*[m for _ in range(8) for m in (nn.Linear(10, 10), nn.Tanh())]).double()
    x = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    ends, h = [End.at("input", x)], x
    for i in range(0, len(model), 2):
        h = model[i + 1](model[i](h))
        ends.append(End.at(str(i + 1), h))
    blocks = [Jacobian(of, wrt) for wrt, of in itertools.pairwise(ends)]
    found = log_spectrum(blocks)
    J = torch.stack([torch.autograd.functional.jacobian(model, row) for row in x.detach()])
    assert torch.allclose(found.log_values, torch.linalg.svdvals(J).log(), atol=1e-6)


def test_bad_input_is_said():
    blocks = layers([5, 4, 6])
    with pytest.raises(SignalpropError, match="at least one block"):
        log_spectrum([])
    with pytest.raises(SignalpropError, match="block 1 gives 6 elements of 1 samples, block 2"):
        log_spectrum(operators(blocks[::-1]))
    for r in (0, 5):
        with pytest.raises(SignalpropError, match="narrowest block has 4"):
            log_spectrum(operators(blocks), r)
    with pytest.raises(SignalpropError, match="at least one sweep"):
        log_spectrum(operators(blocks), max_sweeps=0)
    for bad in (math.nan, math.inf):
        blocks[0][0, 1, 1] = bad
        with pytest.raises(SignalpropError, match="inf or nan"):
            log_spectrum(operators(blocks))
