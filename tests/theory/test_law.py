"""The law of singular values against products of random matrices."""

import math

import numpy as np
import pytest
import torch

from signalprop.errors import SignalpropError
from signalprop.theory import Activation, spectral_law

CASES = [
    ("linear", 1.0, 4, 1.0, "gaussian"),
    ("relu", 2.0, 3, 1.0, "gaussian"),
    ("relu", 2.0, 5, 1.0, "orthogonal"),
    ("hardtanh", 1.1, 6, 1.0, "orthogonal"),
    ("tanh", 1.3, 5, 0.2, "gaussian"),
    ("selu", 1.0, 8, 1.0, "gaussian"),
]


def simulated(phi, weight, depth, q, kind, n=400, seed=0):
    """Squared singular values of a product, rising."""
    g = torch.Generator().manual_seed(seed)
    slope, J = Activation.of(phi).slope, torch.eye(n, dtype=torch.float64)
    for _ in range(depth):
        W = torch.randn(n, n, generator=g, dtype=torch.float64) / math.sqrt(n)
        if kind == "orthogonal":
            W = torch.linalg.qr(W)[0]
        u = math.sqrt(q) * torch.randn(n, 1, generator=g, dtype=torch.float64)
        J = (torch.from_numpy(slope(u.numpy())) * math.sqrt(weight) * W) @ J
    return np.sort(torch.linalg.svdvals(J).numpy() ** 2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[4]}")
def test_law_of_a_product(case):
    phi, weight, depth, q, kind = case
    law = spectral_law(phi, weight, depth=depth, q=q, weights=kind)
    found = simulated(*case)
    live = found[found > 1e-13 * found[-1]]
    grid = np.geomspace(0.1 * live[0], 1.3 * law.largest**2, 160)
    seen = np.searchsorted(found, grid, side="right") / len(found)
    assert np.abs(law.distribution(grid) - seen).max() < 0.05
    assert math.sqrt(found[-1]) == pytest.approx(law.largest, rel=0.12)
    # the mean of one product scatters by sqrt(L k / n), k up to 5; the variance by twice that
    error = 4 * math.sqrt(3 * depth / 400)
    assert found.mean() == pytest.approx(law.mean, rel=error)
    assert found.var() == pytest.approx(law.variance, rel=2 * error)
    if law.zero_share or depth < 6:
        assert law.zero_share == pytest.approx((found < 1e-18 * found[-1]).mean(), abs=0.05)


def test_linear_networks_have_closed_forms():
    for depth in (1, 3, 30):
        law = spectral_law("linear", 1.0, depth=depth)
        edge = (depth + 1) ** (depth + 1) / depth**depth
        assert law.largest**2 == pytest.approx(edge, rel=1e-6)
        assert law.variance == pytest.approx(depth)
    rigid = spectral_law("linear", 1.21, depth=10, weights="orthogonal")
    assert rigid.largest == pytest.approx(1.1**10)
    assert rigid.variance == pytest.approx(0.0, abs=1e-9)


def test_quarter_circle_law():
    """One Gaussian layer: the Marchenko-Pastur density of square matrices."""
    s = np.geomspace(0.01, 3.9, 60)
    found = spectral_law("linear", 1.0, depth=1).density(s)
    assert found == pytest.approx(np.sqrt(s * (4 - s)) / 2 / math.pi, rel=0.02, abs=2e-3)


def test_isometry_is_near_for_tanh_and_never_for_relu():
    """Pennington 2017: orthogonal tanh near its linear range keeps the variance, ReLU does not."""
    tanh = spectral_law("tanh", 1.0, depth=50, q=1e-3, weights="orthogonal")
    relu = spectral_law("relu", 2.0, depth=50, weights="orthogonal")
    assert tanh.variance / tanh.mean**2 < 1e-3
    assert relu.variance / relu.mean**2 == pytest.approx(50.0)
    assert relu.zero_share == pytest.approx(0.5)


def test_clear_errors():
    with pytest.raises(SignalpropError, match="depth"):
        spectral_law("tanh", 1.0, depth=0)
    with pytest.raises(SignalpropError, match="gaussian"):
        spectral_law("tanh", 1.0, depth=1, weights="uniform")
    with pytest.raises(SignalpropError, match="rising"):
        spectral_law("tanh", 1.0, depth=1).density(np.array([1.0, 0.5]))
