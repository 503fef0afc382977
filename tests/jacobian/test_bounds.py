"""What is said to hold, holds for whatever hypothesis finds; what is printed wrongly does not."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from signalprop.errors import SignalpropError
from signalprop.jacobian import bounds

MANY = settings(max_examples=60, deadline=None)
KINDS = ("gauss", "low rank", "symmetric", "negative", "nilpotent", "orthogonal", "diagonal")


def matrix(kind, n, draw):
    """A square matrix of some kind, of norm about 1."""
    X = draw.standard_normal((n, n)) / np.sqrt(n)
    if kind == "low rank":
        X = draw.standard_normal((n, 1)) @ draw.standard_normal((1, n)) / n
    elif kind == "symmetric":
        X = (X + X.T) / 2
    elif kind == "negative":
        X = -X @ X.T
    elif kind == "nilpotent":
        X = np.triu(X, 1)
    elif kind == "orthogonal":
        X = np.linalg.qr(X)[0]
    elif kind == "diagonal":
        X = np.diag(draw.choice([-1.0, 0.0, 0.5, -2.0], n))
    return X


@st.composite
def branches(draw, most=1):
    n = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    size = draw(st.sampled_from([1e-3, 0.3, 1.0, 3.0]))
    count = draw(st.integers(1, most))
    return [size * matrix(draw(st.sampled_from(KINDS)), n, rng) for _ in range(count)]


def s(X):
    return np.linalg.svd(X, compute_uv=False)


@given(branches())
@MANY
def test_the_bands_hold(found):
    X = found[0]
    values = s(np.eye(len(X)) + X)
    for band in (bounds.ky_fan_band(s(X)), bounds.weyl_band(s(X))):
        assert band.violations(values).count == 0
    assert not bounds.printed_band(s(X)).violations(values).above.any()
    wide, narrow = bounds.weyl_band(s(X)), bounds.ky_fan_band(s(X))
    assert (wide.low <= narrow.low).all()
    assert (wide.high >= narrow.high).all()


def test_the_printed_band_fails_on_the_smallest_example():
    X = np.diag([-1.0, 0.0])
    values = s(np.eye(2) + X)
    found = bounds.printed_band(s(X)).violations(values)
    assert found.below.tolist() == [False, True]
    assert found.worst == 1.0
    assert found.count == 1
    assert bounds.ky_fan_band(s(X)).violations(values).count == 0


def test_the_printed_band_fails_on_random_branches():
    draw = np.random.default_rng(0)
    count = 0
    for _ in range(20):
        X = 0.3 * matrix("gauss", 24, draw)
        values = s(np.eye(24) + X)
        count += bounds.printed_band(s(X)).violations(values).count > 0
        assert bounds.ky_fan_band(s(X)).violations(values).count == 0
    assert count == 20


def test_both_ends_of_the_band_are_attained():
    x = np.array([0.9, 0.4, 0.1])
    assert np.allclose(s(np.eye(3) - np.diag(x)), bounds.ky_fan_band(x).low)
    assert np.allclose(s(np.eye(3) + np.diag(x)), bounds.ky_fan_band(x).high)


@given(branches(), st.floats(0.0, 3.0))
@MANY
def test_how_many_are_away_from_one(found, t):
    X = found[0]
    moved = np.abs(s(np.eye(len(X)) + X) - 1) > t + 1e-9
    assert moved.sum() <= bounds.away_from_one(s(X), t)


def test_the_factor_two_is_needed():
    X = np.zeros((5, 5))
    X[0, 1] = 2.0
    moved = (np.abs(s(np.eye(5) + X) - 1) > 0.5).sum()
    assert (s(X) >= 0.5).sum() == 1
    assert moved == bounds.away_from_one(s(X), 0.5) == 2


@given(branches())
@MANY
def test_ky_fan_norms(found):
    X = found[0]
    total = np.cumsum(s(np.eye(len(X)) + X))
    assert (total <= bounds.ky_fan_norms(s(X)) + 1e-9).all()


def test_ky_fan_norms_are_attained():
    x = np.array([0.7, 0.2])
    assert np.allclose(np.cumsum(s(np.eye(2) + np.diag(x))), bounds.ky_fan_norms(x))


@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=6),
    seed=st.integers(0, 2**31),
)
@MANY
def test_horn_and_the_product_bound(widths, seed):
    draw = np.random.default_rng(seed)
    blocks = [draw.standard_normal((m, n)) for n, m in itertools.pairwise(widths)]
    product = np.linalg.multi_dot(blocks[::-1]) if len(blocks) > 1 else blocks[0]
    bound = bounds.horn_bound([np.log(s(b))[None] for b in blocks])[0]
    logs = np.log(s(product)[: min(widths)])
    assert bound.shape == (min(widths),)
    assert (np.cumsum(logs) <= bound + 1e-6 * (1 + np.abs(bound))).all()
    first = bounds.log_product_bound([s(b)[None] for b in blocks])
    assert first == pytest.approx(bound[0])
    if len(set(widths)) == 1:  # volumes multiply
        assert logs.sum() == pytest.approx(bound[-1], abs=1e-6)


def test_horn_does_not_hold_value_by_value():
    """Only for sums: the second value of a product can be larger than both factors'."""
    A, B = np.diag([2.0, 0.5]), np.diag([0.5, 2.0])
    logs = np.log(s(A @ B))
    assert logs[1] > np.log(s(A))[1] + np.log(s(B))[1] + 1
    assert (np.cumsum(logs) <= bounds.horn_bound([np.log(s(A)), np.log(s(B))]) + 1e-12).all()


@given(branches(most=5))
@MANY
def test_the_certificate_holds(found):
    product = np.eye(len(found[0]))
    for X in found:
        product = (np.eye(len(X)) + X) @ product
    certificate = bounds.certificate([s(X)[None] for X in found])
    with np.errstate(divide="ignore"):
        logs = np.log(s(product))[None]
    largest = logs.max()
    # plain svd knows a small value to its rounding only
    sure = logs > largest - 25
    outside = certificate.violations(np.where(sure, logs, largest), slack=1e-7)
    assert outside.count == 0
    assert certificate.blocks == len(found)
    safe = all(s(X)[0] < 1 for X in found)
    assert np.isfinite(certificate.log_low).all() == safe


def test_the_certificate_is_attained_and_does_not_underflow():
    L = 1000
    found = bounds.certificate([np.array([0.9])] * L)
    assert found.log_low[0] == pytest.approx(L * math.log(0.1))
    assert found.log_high[0] == pytest.approx(L * math.log(1.9))
    tiny = bounds.certificate([torch.full((2,), 1e-12, dtype=torch.float64)] * L)
    assert tiny.log_high == pytest.approx([1e-9, 1e-9], rel=1e-6)


def test_branches_of_one_over_depth_keep_any_depth():
    """s_1(X_l) = c / L: everything stays within exp(-c) and exp(c)."""
    for L in (10, 100, 10_000):
        found = bounds.certificate([np.array([1.0 / (2 * L)])] * L)
        assert -0.53 < found.log_low[0] < -0.5
        assert 0.48 < found.log_high[0] < 0.5


def test_one_strong_branch_leaves_no_lower_bound():
    found = bounds.certificate([np.array([0.2, 0.2]), np.array([1.0, 0.99])])
    assert found.log_low[0] == -math.inf
    assert found.log_low[1] == pytest.approx(math.log(0.8 * 0.01))
    assert found.violations(np.array([[0.0, -math.inf], [0.0, -6.0]])).below.tolist() == [
        [False, False],
        [False, True],
    ]


def test_errors_of_the_norms_widen_the_certificate():
    plain = bounds.certificate([np.array([0.5])])
    wider = bounds.certificate([np.array([0.5])], errors=[np.array([0.1])])
    assert wider.log_low < plain.log_low
    assert wider.log_high > plain.log_high


@given(
    st.integers(3, 9), st.lists(st.integers(0, 2), min_size=1, max_size=3), st.integers(0, 10**6)
)
@MANY
def test_low_rank_branches_leave_ones(n, ranks, seed):
    draw = np.random.default_rng(seed)
    product = np.eye(n)
    for rank in ranks:
        X = draw.standard_normal((n, rank)) @ draw.standard_normal((rank, n))
        product = (np.eye(n) + X) @ product
    ones = np.isclose(s(product), 1, atol=1e-7 * s(product)[0]).sum()
    assert ones >= bounds.ones_at_least(n, ranks)


def test_low_rank_branches_leave_no_more_ones_than_said():
    X = np.zeros((6, 6))
    X[0, 1] = 1.0
    assert np.isclose(s(np.eye(6) + X), 1).sum() == bounds.ones_at_least(6, [1]) == 4
    assert bounds.ones_at_least(4, [3]) == 0


def test_tensors_and_arrays_give_the_same():
    X = torch.randn(3, 5, 5)
    values = torch.linalg.svdvals(X)
    one, other = bounds.ky_fan_band(values), bounds.ky_fan_band(values.numpy())
    assert np.array_equal(one.low, other.low)
    assert one.low.dtype == np.float64
    assert one.low.shape == (3, 5)


def test_nothing_is_an_error():
    for call in (bounds.certificate, bounds.horn_bound, bounds.log_product_bound):
        with pytest.raises(SignalpropError, match="at least one"):
            call([])
