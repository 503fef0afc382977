"""Gaussian expectations against closed forms, where plain Gauss-Hermite fails among them."""

import math

import numpy as np
import pytest

from signalprop.theory import Activation
from signalprop.theory.maps import Moments
from signalprop.theory.quadrature import expectation, offset_expectation


def moments(name):
    return Moments(Activation.of(name))


@pytest.mark.parametrize("q", [1e-20, 1e-3, 1.0, 37.0, 1e6])
def test_one_variable(q):
    assert float(moments("relu").square(q)) == pytest.approx(q / 2, rel=1e-12)
    assert float(moments("relu").slope_square(q)) == pytest.approx(0.5, rel=1e-12)
    erf = 2 / math.pi * math.asin(2 * q / (1 + 2 * q))
    assert float(moments("erf").square(q)) == pytest.approx(erf, rel=1e-10)
    assert float(moments("sin").square(min(q, 37))) == pytest.approx(
        -math.expm1(-2 * min(q, 37)) / 2, rel=1e-10
    )


def test_selu_where_gauss_hermite_is_off():
    slope = float(moments("selu").slope_square(1.0))
    scale, alpha, root = 1.0507009873554805, 1.6732632423543772, math.sqrt(2)
    below = 0.5 * math.exp(2) * math.erfc(2 / root)
    assert slope == pytest.approx(scale**2 * (0.5 + alpha**2 * below), rel=1e-12)
    phi = Activation.of("selu")
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    plain = (weights / weights.sum()) @ phi.slope(nodes) ** 2
    assert abs(plain - slope) > 0.03


def test_delta_functions_of_the_second_derivative_count():
    for name, q in (("relu", 0.7), ("selu", 1.0), ("hardtanh", 2.0), ("hardshrink", 0.4)):
        m, h = moments(name), 1e-5
        numeric = (float(m.square(q + h)) - float(m.square(q - h))) / 2 / h
        assert float(m.square_slope(q)) == pytest.approx(numeric, rel=1e-8)


@pytest.mark.parametrize("q", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("distance", [1e-12, 1e-6, 1e-3, 0.1, 0.5, 1.0, 1.5, 1.999])
def test_two_variables(q, distance):
    c = 1 - distance
    angle = 2 * math.asin(math.sqrt(distance / 2))
    relu, erf = moments("relu"), moments("erf")
    arc = (math.sin(angle) + (math.pi - angle) * c) / 2 / math.pi
    assert relu.pair(q, distance) == pytest.approx(q * arc, rel=1e-8, abs=1e-8 * q)
    assert relu.pair_slope(q, distance) == pytest.approx((math.pi - angle) / 2 / math.pi, abs=1e-9)
    asin = 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q))
    assert erf.pair(q, distance) == pytest.approx(asin, abs=1e-8)


@pytest.mark.parametrize("distance", [1e-40, 1e-16, 1e-9, 1e-5, 1e-3])
def test_no_cancellation_near_one(distance):
    """1 - C of ReLU: chi d - (2 sqrt 2 / 3 pi) d^1.5 / ..., far below rounding of C itself."""
    found = moments("relu").gap(1.0, distance)
    series = 0.5 * distance - (2 * distance) ** 1.5 / (6 * math.pi)
    assert found == pytest.approx(series, rel=max(distance**1.5, 1e-9))


def test_step_functions_part_at_once():
    """E[sign(u1) sign(u2)] = (2 / pi) arcsin(c): its slope is all delta functions."""
    m = moments(Activation.of(lambda x: x.sign()))
    assert m.pair(1.3, 0.4) == pytest.approx(2 / math.pi * math.asin(0.6), rel=1e-10)
    slope = 2 / math.pi / math.sqrt(1 - 0.36)
    assert 1.3 * m.pair_slope(1.3, 0.4) == pytest.approx(slope, rel=1e-9)
    assert m.pair_slope(1.3, 0.0) == math.inf


def test_mean_that_is_not_zero():
    phi = Activation.of("relu")
    assert offset_expectation(phi, lambda u: phi.slope(u) ** 2, 0.3, 4.0) == pytest.approx(
        0.5 * math.erfc(-0.15 / math.sqrt(2)), rel=1e-12
    )
    assert offset_expectation(phi, phi.value, 2.0, 0.0) == 2.0


def test_many_variances_at_once_are_the_same():
    phi = Activation.of("gelu")
    q = np.array([[1e-6, 0.3], [2.0, 500.0]])
    together = expectation(phi, lambda u, z: phi.value(u) ** 2, q)
    for at in np.ndindex(q.shape):
        alone = expectation(phi, lambda u, z: phi.value(u) ** 2, q[at])
        assert together[at] == pytest.approx(float(alone), rel=1e-13)
