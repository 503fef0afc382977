"""Kinks found where they are, and what is no elementwise function refused in one sentence."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.theory import Activation
from signalprop.theory.activations import NAMED


@pytest.mark.parametrize(
    ("activation", "places"),
    [
        ("tanh", []),
        ("gelu", []),
        ("relu", [0.0]),
        ("selu", [0.0]),
        ("elu", [0.0]),  # only the second derivative jumps
        ("hardtanh", [-1.0, 1.0]),
        ("hardswish", [-3.0, 3.0]),
        ("relu6", [0.0, 6.0]),
        (nn.Hardtanh(-math.pi, 1 / 3), [-math.pi, 1 / 3]),
        (lambda x: torch.clamp(x, min=-0.7).exp(), [-0.7]),
        (lambda x: (x > 0.3).double(), [0.3]),
        (lambda x: (x - 0.123).abs() * (x - 0.123), [0.123]),
    ],
)
def test_kinks_are_found(activation, places):
    found = [kink.at for kink in Activation.of(activation).kinks]
    assert found == pytest.approx(places, abs=1e-12)


def test_size_of_the_jumps():
    (kink,) = Activation.of("selu").kinks
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    assert kink.value == 0.0
    assert kink.slope == pytest.approx(scale * (1 - alpha), rel=1e-9)
    assert kink.curvature == pytest.approx(-scale * alpha, rel=1e-6)
    assert Activation.of(torch.sign).discontinuous
    assert not Activation.of("relu").discontinuous


def test_module_is_left_as_it_was():
    module = nn.PReLU(init=0.3)
    phi = Activation.of(module)
    assert module.weight.dtype is torch.float32
    assert module.weight.requires_grad
    assert phi.slope(np.array([-1.0, 1.0])) == pytest.approx([0.3, 1.0], rel=1e-6)


@pytest.mark.parametrize("name", sorted(set(NAMED) - {"softsign"}))
def test_slope_is_the_derivative(name):
    phi = Activation.of(name)
    x = np.random.default_rng(0).uniform(-5, 5, 200)
    kinks = np.array([k.at for k in phi.kinks] or [99.0])
    x = x[np.abs(x[:, None] - kinks).min(1) > 1e-3]
    h = 1e-5
    assert phi.slope(x) == pytest.approx((phi.value(x + h) - phi.value(x - h)) / 2 / h, abs=1e-7)


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        ("tanhh", "no activation is called 'tanhh'"),
        (3, "not int"),
        (torch.softmax, "elementwise function"),
        (lambda x: torch.softmax(x, -1), "not elementwise"),
        (lambda x: x + torch.randn_like(x), "random"),
        (torch.log, "not finite"),
        (lambda x: x.abs().sqrt(), "not bounded"),
        (lambda x: x.float(), "float32"),
        (lambda x: x[..., :1], "shape"),
        (torch.round, "kinks"),
        (nn.PReLU(4), "elementwise"),
    ],
)
def test_refused_in_one_sentence(activation, words):
    with pytest.raises(SignalpropError, match=words):
        Activation.of(activation)


def test_a_module_that_works_in_place_is_examined_on_copies():
    relu = Activation.of(torch.nn.ReLU(inplace=True))
    assert [kink.at for kink in relu.kinks] == pytest.approx([0.0], abs=1e-12)
