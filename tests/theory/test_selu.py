"""The moment map: closed form against quadrature, the published figures, where the claim stops."""

import numpy as np
import pytest
import torch

from signalprop.theory import (
    Activation,
    Region,
    selu_contraction,
    selu_fixed_point,
    selu_gradient_rate,
    selu_iterates,
    selu_jacobian,
    selu_map,
)
from signalprop.theory.quadrature import offset_expectation
from signalprop.theory.selu import ALPHA, SCALE


def test_constants_are_those_of_torch():
    x = torch.tensor([-30.0, 1.0], dtype=torch.float64)
    below, above = torch.nn.functional.selu(x).tolist()
    assert above == pytest.approx(SCALE, rel=1e-12)
    assert below == pytest.approx(-SCALE * ALPHA, rel=1e-12)


@pytest.mark.parametrize(
    "at", [(0, 1, 0, 1), (0.3, 1.3, 0.7, 0.8), (-4, 0.1, 1, 1), (9, 60, 1, 1), (0, 1e-4, 0, 1)]
)
def test_closed_form(at):
    mu, nu, omega, tau = at
    phi = Activation.of("selu")
    mean = offset_expectation(phi, phi.value, mu * omega, nu * tau)
    square = offset_expectation(phi, lambda u: phi.value(u) ** 2, mu * omega, nu * tau)
    found = selu_map(*at)
    assert float(found[0]) == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert float(found[1]) == pytest.approx(square - mean**2, rel=1e-8, abs=1e-12)


def test_fixed_point_and_its_jacobian():
    assert selu_fixed_point() == pytest.approx((0.0, 1.0), abs=1e-12)
    J = selu_jacobian(0.0, 1.0)
    assert pytest.approx(np.array([[0.0, 0.088834], [0.0, 0.782648]]), abs=1e-6) == J
    assert np.linalg.norm(J, 2) == pytest.approx(0.7877, abs=5e-5)


def test_contracts_the_region_of_theorem_1():
    found = selu_contraction(points=9)
    assert found.contracts
    assert found.points == 9**4
    assert 0.78 < found.largest_norm < 0.9
    # a region that is too wide is told apart
    assert not selu_contraction(Region(tau=(0.95, 3.0)), points=5).inside
    assert not selu_contraction(Region(nu=(0.001, 1.5)), points=5).contracts


@pytest.mark.parametrize("start", [(0.1, 1.5), (-0.1, 0.8), (2.0, 4.0), (-1.0, 0.05)])
def test_iterates_are_attracted(start):
    path = selu_iterates(*start, layers=60)
    assert path.shape == (61, 2)
    assert path[-1] == pytest.approx([0.0, 1.0], abs=1e-4)


def test_where_the_claim_stops():
    """Activations come back to (0, 1), and gradients grow all the same: 31.7 over 100 layers."""
    assert np.exp(100 * selu_gradient_rate()) == pytest.approx(31.7, abs=0.1)


def test_map_is_what_random_units_do():
    """A measured layer: inputs with mean 0.2 and variance 1.4, weights not centred."""
    torch.manual_seed(1)
    n, units = 2000, 20000
    x = 0.2 + 1.4**0.5 * torch.randn(n)
    omega, tau = 0.1, 1.05
    mean, variance = selu_map(0.2, 1.4, omega, tau)
    w = torch.randn(units, n) * (tau / n) ** 0.5
    w = w + (omega - w.sum(1, keepdim=True)) / n
    y = torch.nn.functional.selu(w @ x).double()
    assert y.mean().item() == pytest.approx(float(mean), abs=0.05)
    assert y.var().item() == pytest.approx(float(variance), rel=0.06)
