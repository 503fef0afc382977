"""Whole matrices and all singular values against numpy's, one sample at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.jacobian.test_operator import NETWORKS, operator_of
from tests.references import jacobian_twin as twin
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.jacobian import exact
from signalprop.jacobian.operator import Dense
from signalprop.jacobian.spectra import Estimate, Spectrum

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_agrees_with_torch_func(name):
    build, shape = NETWORKS[name]
    model = build().double()
    x = torch.randn(shape, dtype=torch.float64)
    J = twin.by_jacrev(model, x)
    op = operator_of(model, x)
    np.testing.assert_allclose(exact.matrices(op).numpy(), J, atol=1e-11)
    found = exact.singular_values(op)
    truth = twin.singular_values(J)
    np.testing.assert_allclose(found.values.numpy(), truth, atol=1e-10)
    assert (np.abs(found.values.numpy() - truth) <= found.errors.numpy()).all()
    assert found.method == "exact"
    assert bool(found.converged.all())


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (300, 3), (3, 300), (260, 270)])
def test_whichever_side_is_smaller(shape):
    class Counting(Dense):
        used = 0

        def apply(self, vectors):
            self.used += vectors.shape[2]
            return super().apply(vectors)

        def adjoint(self, vectors):
            self.used += vectors.shape[2]
            return super().adjoint(vectors)

    op = Counting(torch.randn(2, *shape))
    assert torch.equal(exact.matrices(op), op.matrices)
    assert op.used == min(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_below_the_rounding_is_flagged(dtype):
    left, right = (torch.linalg.qr(torch.randn(40, 40).double())[0] for _ in range(2))
    s = torch.logspace(0, -20, 40).double()
    found = exact.singular_values(Dense(((left * s) @ right)[None].to(dtype)))
    right_ones = (found.values[0] - s).abs() <= 0.5 * s
    assert not (found.reliable[0] & ~right_ones).any()
    assert found.reliable[0, 0]
    assert found.reliable.sum() > 2 or dtype == torch.bfloat16
    assert ((found.values[0] - s).abs() <= found.errors[0]).all()


def test_float32_depth_is_covered_by_the_stated_error():
    layers = [m for _ in range(30) for m in (nn.Linear(48, 48), nn.Tanh())]
    for m in layers[::2]:
        nn.init.orthogonal_(m.weight)
    model, x = nn.Sequential(*layers), torch.randn(4, 48)
    found = exact.singular_values(operator_of(model, x))
    truth = exact.singular_values(operator_of(model.double(), x.double())).values
    assert ((found.values - truth).abs() <= found.errors).all()
    assert (found.errors <= 1e-5 * found.values[:, :1]).all()


def test_log_volume_two_ways():
    J = torch.randn(5, 8, 8).double()
    op = Dense(J)
    sign, log = exact.log_determinant(J)
    found = exact.singular_values(op)
    np.testing.assert_allclose(spectrum_of(found.values, 8, 8).log_volume, log, atol=1e-11)
    assert torch.allclose(sign, torch.linalg.det(J).sign())
    assert exact.log_determinant(torch.zeros(1, 3, 3))[1].item() == -math.inf


def test_zero_and_rank_one():
    zero = exact.singular_values(Dense(torch.zeros(2, 3, 4)))
    assert not zero.values.any()
    assert not zero.reliable.any()
    one = exact.singular_values(Dense(torch.ones(1, 5, 4)))
    assert one.reliable.tolist() == [[True, False, False, False]]


def test_bottom():
    J = torch.randn(3, 6, 9).double()
    truth = twin.singular_values(J.numpy())
    np.testing.assert_allclose(exact.bottom(Dense(J), 2).values.numpy(), truth[:, -2:], atol=1e-12)
    assert exact.bottom(Dense(J), 50).values.shape == (3, 6)
    with pytest.raises(SignalpropError, match=r"fewer samples.*the smallest need the whole"):
        exact.bottom(Dense(J), 2, budget=1000)
    with pytest.raises(SignalpropError, match="at least one"):
        exact.bottom(Dense(J), 0)


def test_numbers_that_are_not():
    J = torch.randn(1, 3, 3)
    J[0, 1, 1] = math.nan
    with pytest.raises(SignalpropError, match="inf or nan"):
        exact.singular_values(Dense(J))


# ---- what follows from the values --------------------------------------------------------------


def spectrum_of(values, m, n):
    """All singular values (batch, k) of m x n matrices."""
    s = np.asarray(values)
    none = np.zeros(len(s))
    sums = [Estimate(x, none) for x in (np.sqrt((s**2).sum(1)), (s**4).sum(1))]
    eps = 2e-16 * s[:, 0]
    return Spectrum("b", "a", m, n, s, 0 * s, s[:, :0], True, eps, *sums, "exact")


@pytest.mark.parametrize("shape", [(6, 6), (4, 7), (7, 4)])
def test_measures_agree_with_their_definitions(shape):
    J = torch.randn(3, *shape).double()
    found = spectrum_of(exact.singular_values(Dense(J)).values, *shape)
    for i, one in enumerate(J.numpy()):
        narrow = one if shape[1] <= shape[0] else one.T
        assert found.distortion[i] == pytest.approx(twin.distortion(narrow), rel=1e-9)
        assert found.mean_square[i] == pytest.approx(np.linalg.norm(one) ** 2 / shape[1])
        assert found.condition[i] == pytest.approx(np.linalg.cond(one), rel=1e-9)


def test_angle_is_met_by_the_worst_pair():
    J = np.random.randn(7, 5)
    _, s, Vt = np.linalg.svd(J)
    worst = math.radians(spectrum_of(s[None], 7, 5).angle[0])
    u, v = (Vt[0] + Vt[-1]) / 2**0.5, (Vt[0] - Vt[-1]) / 2**0.5
    assert math.asin(abs(twin.cosine_between(J, u, v))) == pytest.approx(worst, rel=1e-9)
    for _ in range(200):
        u, v = np.linalg.qr(np.random.randn(5, 2))[0].T
        assert math.asin(abs(twin.cosine_between(J, u, v))) <= worst + 1e-12


def test_measures_of_isometries_and_of_nothing():
    Q = torch.linalg.qr(torch.randn(6, 6).double())[0]
    isometry = spectrum_of(torch.linalg.svdvals(1e-30 * Q)[None], 6, 6)
    assert isometry.distortion[0] == pytest.approx(0, abs=1e-7)
    assert isometry.angle[0] == pytest.approx(0, abs=1e-10)
    rank_one = spectrum_of([[3.0, 0, 0]], 3, 3)
    assert rank_one.distortion[0] == pytest.approx(2**0.5)
    assert rank_one.angle[0] == pytest.approx(90)
    assert rank_one.condition[0] == math.inf
    assert math.isnan(spectrum_of([[0.0, 0, 0]], 3, 3).distortion[0])


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 7), n=st.integers(1, 7), log_c=st.floats(-30, 30), seed=st.integers(0, 10**6)
)
def test_scaling_scales_and_turning_leaves(m, n, log_c, seed):
    draw = torch.Generator().manual_seed(seed)
    J = torch.randn(2, m, n, generator=draw).double()
    Q = torch.linalg.qr(torch.randn(m, m, generator=draw).double())[0]
    P = torch.linalg.qr(torch.randn(n, n, generator=draw).double())[0]
    s = exact.singular_values(Dense(J)).values
    c = math.exp(log_c)
    scaled = exact.singular_values(Dense(c * (Q @ J @ P))).values
    assert torch.allclose(scaled, c * s, rtol=1e-9, atol=1e-13 * c)
    before, after = (spectrum_of(x, m, n).distortion for x in (s, scaled))
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)
