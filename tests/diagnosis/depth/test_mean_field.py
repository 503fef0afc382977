"""Rules that hold networks against mean-field theory, and blocks against each other."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from signalprop import diagnose

CODES = {"SP114", "SP115", "SP116", "SP117"}


def digits(n=64):
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32)
    return ((x - x.mean(0)) / (x.std(0) + 1e-3))[:n], torch.tensor(y[:n])


def mlp(depth, activation, start=None, width=64):
    torch.manual_seed(0)
    layers, fan_in = [], 64
    for _ in range(depth):
        linear = nn.Linear(fan_in, width)
        if start is not None:
            start(linear.weight)
            nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
        fan_in = width
    return nn.Sequential(*layers, nn.Linear(width, 10))


def gain(value):
    return lambda w: nn.init.normal_(w, std=value / math.sqrt(w.shape[1]))


class Residual(nn.Module):
    def __init__(self, width, scale, *, norm=False):
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.linear, self.scale = nn.Linear(width, width), scale
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")

    def forward(self, x):
        return x + self.scale * self.linear(F.relu(self.norm(x)))


def residual(depth, scale, **options):
    torch.manual_seed(0)
    blocks = [Residual(64, scale, **options) for _ in range(depth)]
    return nn.Sequential(nn.Linear(64, 64), *blocks, nn.Linear(64, 10))


def found(model, optimizer=torch.optim.Adam):
    result = diagnose(model, digits(), F.cross_entropy, optimizer(model.parameters(), lr=1e-3))
    return {f.code: f for f in result.findings if f.code in CODES}


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU])
def test_torchs_default_is_too_deep_at_thirty_layers(activation):
    told = found(mlp(30, activation))
    assert set(told) == {"SP114"}
    assert told["SP114"].severity == "tip"
    assert told["SP114"].value > 6


def test_the_depth_that_theory_gives_is_told():
    told = found(mlp(30, nn.Tanh, gain(math.sqrt(0.5))), torch.optim.SGD)["SP114"]
    assert "weight variance of 0.5" in told.explanation
    assert told.value == pytest.approx(30 * -math.log(0.5), rel=0.15)  # xi_c = -1 / ln chi


@pytest.mark.parametrize(
    "model",
    [
        mlp(4, nn.Tanh),
        mlp(6, nn.ReLU),
        mlp(20, nn.ReLU, gain(math.sqrt(2))),
        mlp(30, nn.SELU, gain(1)),
        mlp(30, nn.Tanh, gain(1)),
        mlp(30, nn.Tanh, nn.init.orthogonal_),
        residual(20, 20**-0.5),
        residual(20, 1.0, norm=True),
        residual(3, 1.0),
    ],
    ids=["tanh-4", "relu-6", "he-20", "selu-30", "tanh-30", "orthogonal-30", "root", "pre-ln", "3"],
)
def test_healthy_networks_are_silent(model):
    assert found(model) == {}


def test_the_chaotic_side():
    told = found(mlp(60, nn.Tanh, gain(2.5)))
    assert set(told) == {"SP115"}
    assert told["SP115"].value > 1.3
    assert "SP115" in found(mlp(20, nn.ReLU, gain(2.0)))  # unbounded


def test_one_block_apart():
    model = mlp(12, nn.ReLU, gain(math.sqrt(2)))
    with torch.no_grad():
        model[10].weight.mul_(100)
    told = found(model)
    assert told["SP116"].sites == ("10",)
    assert told["SP116"].value == pytest.approx(math.log(100), abs=0.5)
    with torch.no_grad():
        model[10].weight.mul_(1e-4)
    assert found(model)["SP116"].sites == ("10",)


def test_a_strong_branch():
    told = found(residual(20, 1.0))["SP117"]
    assert told.value == pytest.approx(0.5 * math.log(2), abs=0.1)  # 1 + v with v = 1
    assert "1/sqrt(20)" in told.explanation


@pytest.mark.parametrize("code", sorted(CODES))
def test_not_applicable_without_such_a_structure(code):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 10))
    result = diagnose(model, digits(), F.cross_entropy)
    assert [r.outcome for r in result.results if r.code == code] == ["not applicable"]


def test_what_theory_expects_stands_beside_what_was_measured():
    model = mlp(20, nn.Tanh, gain(1), width=256)
    result = diagnose(model, digits(), F.cross_entropy)
    assert list(result.expected) == [block.end for block in result.trace.blocks]
    for block in result.trace.blocks:
        seen = result.expected[block.end]
        assert seen.measured == block.decay
        assert seen.expected == pytest.approx(block.decay, abs=0.15)
