"""The largest singular values by block Krylov: right, or known to be wrong."""

import copy
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


def relu_product(widths, draw):
    """The Jacobian of a ReLU network at He's initialisation."""
    J = torch.eye(widths[0], dtype=torch.float64)
    x = torch.randn(widths[0], generator=draw, dtype=torch.float64)
    for n, m in pairwise(widths):
        W = torch.randn(m, n, generator=draw, dtype=torch.float64) * (2 / n) ** 0.5
        h = W @ x
        x, J = h.relu(), (h > 0).double()[:, None] * (W @ J)
    return J


SIDE = torch.arange(160.0, dtype=torch.float64)
NOISE = lambda draw: torch.randn(160, 160, generator=draw, dtype=torch.float64) / 160**0.5  # noqa: E731
#: random operators of several kinds, from a seed and a generator
KINDS = {
    "gaussian": lambda seed, draw: NOISE(draw),
    "he relu": lambda seed, draw: relu_product([160] * 9, draw),
    "rank-deficient relu": lambda seed, draw: relu_product([160] * 5 + [24] + [160] * 3, draw),
    "near-isometric": lambda seed, draw: (
        with_spectrum(torch.ones(160), seed=seed)[0] + 0.03 * NOISE(draw)
    ),
    "clustered": lambda seed, draw: with_spectrum(
        torch.where(SIDE < 12, 2 - 0.004 * SIDE, 1 - 0.9 * SIDE / 160), seed=seed
    )[0],
    "outlier": lambda seed, draw: with_spectrum(
        torch.where(SIDE < 1, 30.0, 1 - 0.5 * SIDE / 160), seed=seed
    )[0],
}


def of_kind(kind, count):
    """Operators one by one, as each stops for itself: matrix, its values, a generator."""
    for seed in range(count):
        J = KINDS[kind](seed, torch.Generator().manual_seed(seed))[None]
        yield J, torch.linalg.svdvals(J), torch.Generator().manual_seed(100 + seed)


def covered(off, errors):
    """Share of what lies within twice its stated error, beside the rounding of the truth."""
    return float((torch.cat(off) <= 2 * torch.cat(errors)).double().mean())


class Image(nn.Module):
    """Convolution and group normalisation beside a skip."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(2, 6)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class Encoder(nn.Module):
    def __init__(self, norm_first):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            12, 3, 24, dropout=0.0, batch_first=True, norm_first=norm_first
        )

    def forward(self, x):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return self.layer(x)


#: blocks of networks as they are, (3, elements) up to 216
BLOCKS = {
    "convolution": (lambda: nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()), (3, 6, 6, 6)),
    "residual image block": (Image, (3, 6, 6, 6)),
    "strided convolution, batch norm": (
        lambda: nn.Sequential(nn.Conv2d(6, 12, 3, 2, 1), nn.BatchNorm2d(12)).eval(),
        (3, 6, 8, 8),
    ),
    "attention block": (lambda: Encoder(False), (3, 14, 12)),
    "attention block, norm first": (lambda: Encoder(True), (3, 14, 12)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12)), (3, 14, 12)),
}


def block_of(name):
    """The operator in float32, and the exact singular values in float64."""
    torch.manual_seed(0)
    build, shape = BLOCKS[name]
    model, x = build(), torch.randn(shape)
    op = operator_of(model, x)
    wide = copy.deepcopy(model).double()
    return op, torch.linalg.svdvals(exact.matrices(operator_of(wide, x.double())))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_errors_that_decide_when_to_stop_cover(kind, dtype):
    off, errors = [], []
    for J, s, draw in of_kind(kind, 8):
        for tol in (1e-2, 1e-4):
            found = krylov.top(Dense(J.to(dtype)), 4, tol=tol, generator=draw)
            off.append((found.values - s[:, :4]).abs())
            errors.append(found.errors)
            assert (off[-1] <= 2 * tol * s[:, :4])[found.converged].all()
        whole = krylov.spectrum_top(Dense(J.to(dtype)), 4, generator=draw)
        assert bool(whole.converged.all())
        off.append((whole.values - s[:, :4]).abs())
        errors.append(whole.errors)
    assert covered(off, errors) >= 0.95


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_networks(name):
    op, s = block_of(name)
    found = krylov.top(op, 4, vectors=200)
    assert ((found.values - s[:, :4]).abs() <= found.errors).all()
    best = krylov.spectrum_top(op, 4)
    assert bool(best.converged.all())
    assert torch.allclose(best.values, s[:, :4], rtol=2e-4, atol=0)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_deficient_relu_network(dtype):
    """Plain bidiagonalisation was 120 times wrong on one of these."""
    close = 1e-5 if dtype == torch.float32 else 1e-12
    for seed in range(3):
        model, x = deep("relu", width=64, depth=30, seed=seed).to(dtype), torch.randn(8, 64)
        op = operator_of(model, x.to(dtype))
        truth = exact.singular_values(op).values
        found = krylov.top(op, 8, vectors=200)
        off = (found.values - truth[:, :8]).abs()
        assert (off <= found.errors + close * truth[:, :1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [3, 7, 12])
def test_the_rank_of_a_relu_network_is_all_that_is_found(rank, dtype):
    """Asked for more than there are, from a space that breaks down."""
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        J = relu_product([96] * 4 + [rank] + [96] * 4, draw)
        s = torch.linalg.svdvals(J)
        there = int((s > 1e-12 * s[0]).sum())  # some of the narrow layer's units may be dead
        found = krylov.top(Dense(J[None].to(dtype)), rank + 4, vectors=400)
        close = 3e-5 if dtype == torch.float32 else 1e-11
        assert torch.allclose(found.values[0, :there], s[:there], rtol=0, atol=close * float(s[0]))
        assert not found.values[0, there:].any()


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


@pytest.mark.parametrize("block", [1, 2, 5])
def test_an_invariant_space_is_not_taken_for_the_whole(block):
    """An isometry hands every direction back: a space of few vectors never leaves itself."""
    found = krylov.top(Dense(2 * torch.eye(80)[None]), 4, block=block)
    assert found.converged.all()
    assert torch.allclose(found.values, torch.full((1, 4), 2.0, dtype=torch.float64))
    deficient = with_spectrum([3.0, 3.0, 3.0], 80, 80)
    found = krylov.top(Dense(deficient), 5, block=block)
    assert found.converged.all()
    assert torch.allclose(found.values, torch.tensor([[3.0, 3.0, 3.0, 0, 0]], dtype=torch.float64))


def test_few_vectors_reach_further_where_values_are_close():
    """Top of a flat spectrum, with the same number of vectors."""
    op = Dense(with_spectrum(torch.linspace(1.0, 0.5, 400), batch=4))
    truth = torch.linspace(1.0, 0.5, 400, dtype=torch.float64)[:4]
    off = {}
    for block in (2, 5):
        found = krylov.top(op, 4, tol=1e-9, block=block, vectors=50)
        off[block] = (1 - found.values[:, 0]).abs().amax()
        assert ((truth - found.values).abs() <= 2 * found.errors).double().mean() > 0.9
    assert off[2] < 0.3 * off[5]


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
