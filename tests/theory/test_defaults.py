"""What torch's own defaults mean: the figures are read from torch, the verdicts from them."""

import math

import pytest
import torch
from torch import nn

from signalprop.theory import defaults, describe, drawn_variance, linear_default


@pytest.fixture(scope="module")
def rows():
    return {(row.activation, row.initialisation): row for row in defaults()}


def test_read_from_torch():
    weight, bias = linear_default(512)
    assert weight == pytest.approx(1 / 3, rel=1e-5)
    assert bias == pytest.approx(1 / (3 * 512), rel=2e-3)
    layer = nn.Linear(512, 512)
    assert 512 * layer.weight.var().item() == pytest.approx(weight, rel=0.02)
    assert drawn_variance(nn.init.orthogonal_, 128) == pytest.approx(1.0)
    he = drawn_variance(lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"))
    assert he == pytest.approx(nn.init.calculate_gain("relu") ** 2, rel=0.02)


def test_random_state_is_left_alone():
    before = torch.get_rng_state()
    linear_default(8)
    drawn_variance(nn.init.xavier_uniform_, 8)
    assert torch.equal(before, torch.get_rng_state())


def test_defaults_vanish(rows):
    tanh = rows["tanh", "nn.Linear default"]
    # correlations (and the squared gradient) lose a factor e every 0.91 layers, the norm every 1.82
    assert tanh.xi_c == pytest.approx(0.91, abs=0.005)
    assert tanh.e_fold == pytest.approx(1.82, abs=0.01)
    assert tanh.trainable_depth == pytest.approx(5.5, abs=0.05)
    relu = rows["relu", "nn.Linear default"]
    assert 1 / relu.factor == pytest.approx(2.45, abs=0.005)
    assert "loses a factor 2.45 per layer" in relu.verdict
    for name in ("tanh", "relu", "sigmoid", "gelu", "selu"):
        row = rows[name, "nn.Linear default"]
        assert row.phase == "ordered"
        assert row.trainable_depth < 20


def test_gains(rows):
    gain = next(r for r in rows.values() if "calculate_gain('tanh')" in r.initialisation)
    assert gain.weight_variance == pytest.approx(nn.init.calculate_gain("tanh") ** 2)
    assert gain.phase == "chaotic"
    assert gain.factor == pytest.approx(1.1, abs=1e-3)
    assert "driven apart" in gain.verdict
    selu = next(r for r in rows.values() if "calculate_gain('selu')" in r.initialisation)
    assert selu.q_star == pytest.approx(0.023, abs=1e-3)
    assert selu.chi_1 == pytest.approx(1.0037, abs=1e-4)
    assert "while q goes from 1 to 0.023" in selu.verdict
    lecun = rows["selu", "LeCun / Xavier, gain 1"]
    assert lecun.q_star == pytest.approx(1.0)
    assert lecun.chi_1 == pytest.approx(1.0716, abs=1e-4)
    he = rows["relu", "He: kaiming_normal_(nonlinearity='relu')"]
    assert (he.phase, he.e_fold) == ("critical", math.inf)


def test_a_row_of_ones_own():
    row = describe(nn.LeakyReLU(0.2), "He for 0.2", 2 / 1.04)
    assert row.activation == "LeakyReLU"
    assert row.phase == "critical"
