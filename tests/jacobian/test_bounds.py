"""What is said to hold, holds for whatever hypothesis finds; what is printed wrongly does not."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signalprop.jacobian import bounds
from signalprop.jacobian.spectra import BlockSpectrum, Estimate, Spectrum

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


def outside(band, values):
    """Which values lie below, and which above."""
    return values < band.low - 1e-9, values > band.high + 1e-9


@given(branches())
@MANY
def test_the_bands_hold(found):
    X = found[0]
    values = s(np.eye(len(X)) + X)
    for band in (bounds.ky_fan_band(s(X)), bounds.weyl_band(s(X))):
        assert not np.any(outside(band, values))
    assert not outside(bounds.printed_band(s(X)), values)[1].any()
    wide, narrow = bounds.weyl_band(s(X)), bounds.ky_fan_band(s(X))
    assert (wide.low <= narrow.low).all()
    assert (wide.high >= narrow.high).all()


def test_the_printed_band_fails_on_the_smallest_example():
    X = np.diag([-1.0, 0.0])
    values = s(np.eye(2) + X)
    below, above = outside(bounds.printed_band(s(X)), values)
    assert below.tolist() == [False, True]
    assert not above.any()
    assert not np.any(outside(bounds.ky_fan_band(s(X)), values))


def test_the_printed_band_fails_on_random_branches():
    draw = np.random.default_rng(0)
    count = 0
    for _ in range(20):
        X = 0.3 * matrix("gauss", 24, draw)
        values = s(np.eye(24) + X)
        count += outside(bounds.printed_band(s(X)), values)[0].any()
        assert not np.any(outside(bounds.ky_fan_band(s(X)), values))
    assert count == 20


def test_both_ends_of_the_band_are_attained():
    x = np.array([0.9, 0.4, 0.1])
    assert np.allclose(s(np.eye(3) - np.diag(x)), bounds.ky_fan_band(x).low)
    assert np.allclose(s(np.eye(3) + np.diag(x)), bounds.ky_fan_band(x).high)


def measured(J, error=0.0, whole=True):
    """The spectrum of a matrix, of one sample."""
    values = s(J)[None] if whole else s(J)[None, :1]
    none = np.zeros(1)
    sums = (Estimate((values**p).sum(1), none) for p in (2, 4))
    errors, least = np.full_like(values, error), np.zeros((1, 0))
    lost = 1e-15 * values[:, 0]
    return Spectrum("b", "a", *J.shape, values, errors, least, whole, lost, *sums, "exact")


def residual(X, error=0.0):
    branch = measured(X, error)
    return BlockSpectrum("a", "b", True, measured(np.eye(len(X)) + X), branch)


def plain(J, whole=True):
    return BlockSpectrum("a", "b", False, measured(J, whole=whole), None)


@given(branches(most=5))
@MANY
def test_the_certificate_holds(found):
    product = np.eye(len(found[0]))
    for X in found:
        product = (np.eye(len(X)) + X) @ product
    certificate = bounds.certificate([residual(X) for X in found])
    values = s(product)
    # plain svd knows a small value to its rounding only
    assert values[0] <= np.exp(certificate.log_high[0]) * (1 + 1e-7)
    if values[-1] > 1e-10 * values[0]:
        assert np.log(values[-1]) >= certificate.log_low[0] - 1e-4
    assert certificate.blocks == len(found)
    assert np.isfinite(certificate.log_low[0]) == all(s(X)[0] < 1 for X in found)


@given(branches(most=3), st.integers(0, 2**31))
@MANY
def test_blocks_without_a_skip_count_with_their_own(found, seed):
    n = len(found[0])
    J = np.random.default_rng(seed).standard_normal((n + 1, n))
    product = J
    blocks = [plain(J)]
    for X in found:
        X = np.pad(X, (0, 1))
        product = (np.eye(n + 1) + X) @ product
        blocks.append(residual(X))
    certificate = bounds.certificate(blocks)
    values = s(product)
    assert values[0] <= np.exp(certificate.log_high[0]) * (1 + 1e-7)
    if values[-1] > 1e-10 * values[0]:
        assert np.log(values[-1]) >= certificate.log_low[0] - 1e-4


def test_the_certificate_is_attained_and_does_not_underflow():
    found = bounds.certificate([residual(-0.9 * np.eye(2))] * 1000)
    assert found.log_low[0] == pytest.approx(1000 * math.log(0.1))
    assert found.log_high[0] == pytest.approx(1000 * math.log(1.9))
    tiny = bounds.certificate([residual(1e-12 * np.eye(2))] * 1000)
    assert tiny.log_high == pytest.approx(1e-9, rel=1e-6)


def test_what_leaves_no_lower_bound():
    weak, strong = residual(0.2 * np.eye(2)), residual(np.diag([1.0, 0.1]))
    assert np.isfinite(bounds.certificate([weak]).log_low[0])
    for more in (strong, plain(np.ones((2, 2))), plain(np.diag([3.0, 2.0]), whole=False)):
        assert bounds.certificate([weak, more]).log_low[0] == -math.inf
        assert np.isfinite(bounds.certificate([weak, more]).log_high[0])
    # narrow in the middle: the wide ends lose directions that no single block loses
    waist = [plain(np.eye(1, 2)), plain(np.eye(2, 1)), weak]
    assert bounds.certificate(waist).log_low[0] == -math.inf


def test_errors_widen_the_certificate():
    exact, wider = (bounds.certificate([residual(0.5 * np.eye(2), e)]) for e in (0.0, 0.1))
    assert wider.log_low[0] == pytest.approx(math.log(0.4))
    assert wider.log_high[0] == pytest.approx(math.log(1.6))
    assert exact.log_low[0] == pytest.approx(math.log(0.5))


def test_no_residual_block_no_certificate():
    assert bounds.certificate([plain(np.eye(2))]) is None
