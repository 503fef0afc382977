"""Log-spectra of deep products against mpmath: every value, over as many decades as there are."""

import copy
import functools
import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.references import product_twin as twin
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.jacobian import exact, graded, product, sweeps
from signalprop.jacobian.chain import Chain, MinusIdentity
from signalprop.jacobian.graded import Graded
from signalprop.jacobian.operator import Dense, End, Jacobian
from signalprop.jacobian.product import log_spectrum

DECADE = math.log(10)
FEW = settings(max_examples=15, deadline=None)
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def layers(widths, activation="tanh", variance=1.0, seed=0, batch=1, orthogonal=False):
    """Jacobians of the layers of a random network at random inputs, exact in float32."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, widths[0], generator=draw, dtype=torch.float64)
    blocks = []
    for n, m in itertools.pairwise(widths):
        W = torch.randn(m, n, generator=draw, dtype=torch.float64)
        W = torch.linalg.qr(W)[0] if orthogonal else W * (variance / n) ** 0.5
        h = x @ W.T
        slope = {"tanh": 1 - h.tanh() ** 2, "relu": (h > 0).double(), "none": 1 + 0 * h}[activation]
        x = {"tanh": h.tanh(), "relu": h.relu(), "none": h}[activation]
        blocks.append((slope[..., None] * W).float())
    return blocks


def operators(blocks, dtype=torch.float64):
    return [Dense(block.to(dtype)) for block in blocks]


DEEP = {
    "tanh": lambda: layers([24] * 51),
    "tanh, ordered": lambda: layers([24] * 51, variance=0.81, seed=1),
    "relu": lambda: layers([24] * 31, "relu", 2.0, seed=2, batch=2),
    "orthogonal tanh": lambda: layers([24] * 51, orthogonal=True, seed=3),
    "widths": lambda: layers([32, 16, 24] * 6, seed=4, batch=2),
    "narrow inside": lambda: layers([20, 14, 18, 12, 18, 14, 20] * 2, seed=5, batch=2),
}


@functools.cache
def case(name):
    blocks = DEEP[name]()
    return blocks, twin.log_values(blocks, digits=90)


def check(found, truth, tol, converged=True):
    """Every value within tol nats, every zero a zero."""
    assert found.log_values.dtype == torch.float64
    lost = truth == -torch.inf
    assert torch.equal(found.log_values == -torch.inf, lost)
    assert (found.floor[~lost] == -torch.inf).all()
    assert (found.errors[lost] == torch.inf).all()
    apart = (found.log_values - truth)[~lost].abs()
    assert (apart < tol).all()
    assert found.converged.all() or not converged
    return apart, found.errors[~lost]


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


def turned(s, seed, depth=4):
    """Blocks whose product has these singular values, up to float64's rounding."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(s), len(s))
    turns = [
        torch.linalg.qr(torch.randn(shape, generator=draw, dtype=torch.float64))[0]
        for _ in range(depth + 1)
    ]
    part = s ** (1 / depth)
    return [(b * part @ a.T)[None] for a, b in itertools.pairwise(turns)]


def dense_case(blocks):
    blocks = [block.double() for block in blocks]
    J = functools.reduce(lambda product, block: block @ product, blocks)
    return operators(blocks), J


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


# ---- chain and branch -------------------------------------------------------------------------


def test_chain_is_the_product():
    blocks = layers([5, 4, 6, 3], batch=2)
    chain = Chain(operators(blocks))
    J = blocks[2].double() @ blocks[1].double() @ blocks[0].double()
    v, u = torch.randn(2, 5, 7).double(), torch.randn(2, 3, 7).double()
    assert torch.allclose(chain.apply(v), J @ v)
    assert torch.allclose(chain.adjoint(u), J.mT @ u)
    assert (chain.rows, chain.columns, chain.widths) == (3, 5, (5, 4, 6, 3))


def test_minus_identity_is_the_branch():
    (J,) = layers([6, 6], batch=2)
    X = MinusIdentity(Dense(J.double()))
    v = torch.randn(2, 6, 3).double()
    assert torch.allclose(X.apply(v), J.double() @ v - v)
    assert torch.allclose(X.adjoint(v), J.double().mT @ v - v)
    with pytest.raises(SignalpropError, match="4 x 6"):
        MinusIdentity(Dense(torch.zeros(1, 4, 6)))


# ---- graded matrices --------------------------------------------------------------------------


def test_windows_cover_every_value_once():
    d = torch.linspace(0, -200, 77, dtype=torch.float64).expand(2, -1).clone()
    d[1] *= 0.7
    d[1, 60:] = -torch.inf
    found = graded._windows(d)
    assert [w.core_first for w in found] == [0, *(w.core_last for w in found[:-1])]
    assert found[-1].core_last == 77
    assert all(w.first <= w.core_first < w.core_last <= w.last for w in found)


def test_samples_that_share_no_windows():
    """One sample falls at once, the other at the end."""
    draw = torch.Generator().manual_seed(0)
    T = torch.randn(2, 12, 12, generator=draw, dtype=torch.float64)
    d = torch.zeros(2, 12, dtype=torch.float64)
    d[0, 1:] = -60 * torch.arange(1, 12)
    d[1, -1] = -90
    both = Graded(d, T, triangular=False).decompose(rotate=True)
    for i in range(2):
        one = Graded(d[i : i + 1], T[i : i + 1], triangular=False).decompose(rotate=True)
        assert torch.allclose(both.log_values[i], one.log_values[0], atol=1e-9)
    total = torch.linalg.slogdet(T)[1] + d.sum(-1)
    assert torch.allclose(both.log_values.sum(-1), total)
