"""Fully connected networks: depth, activation and initialisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.cases.base import (
    Built,
    adam,
    adamw,
    classes,
    collect,
    features,
    healthy,
    rmsprop,
    sgd,
    sick,
)
from torch import nn

WIDTH = 64


def stack(depth: int, activation: type[nn.Module], width: int = WIDTH) -> nn.Sequential:
    """`depth` hidden layers with the initialisation nn.Linear comes with."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def normal(model: nn.Module, std: float, bias: float = 0.0) -> nn.Module:
    """Draw hidden weights from N(0, std^2 / fan_in) and biases from N(0, bias^2)."""
    hidden = [m for m in model.modules() if isinstance(m, nn.Linear)][:-1]
    for layer in hidden:
        nn.init.normal_(layer.weight, std=std / layer.in_features**0.5)
        nn.init.normal_(layer.bias, std=bias)
    return model


def task(model: nn.Module, n: int = 32) -> Built:
    """Ten classes from correlated features."""
    x = features(n, WIDTH)
    return model, (x, classes(x, 10)), F.cross_entropy


@sick("mlp-sigmoid-30", "SP101", optimizer=sgd(0.01))
def sigmoid_30() -> Built:
    return task(stack(30, nn.Sigmoid))


@sick("mlp-tanh-30-default", "SP101", optimizer=sgd(0.01))
def tanh_30() -> Built:
    return task(stack(30, nn.Tanh))


@sick("mlp-relu-30-default", "SP101", optimizer=sgd(0.01))
def relu_30() -> Built:
    return task(stack(30, nn.ReLU))


@healthy("mlp-relu-he-10", sgd(0.01))
def relu_he() -> Built:
    return task(normal(stack(10, nn.ReLU), 2**0.5))


@healthy(
    "mlp-relu-he-20",
    adam(3e-4),
    note="samples grow alike, so a third of the units is zero on all of them; yet it trains",
)
def relu_he_deep() -> Built:
    return task(normal(stack(20, nn.ReLU), 2**0.5), n=64)


@healthy("mlp-selu-lecun-30", sgd(0.002))
def selu() -> Built:
    return task(normal(stack(30, nn.SELU), 1.0))


@healthy("mlp-tanh-xavier-8", adamw(1e-3))
def tanh_xavier() -> Built:
    return task(normal(stack(8, nn.Tanh), 1.0))


@healthy("mlp-sigmoid-1", rmsprop(3e-3), note="one sigmoid layer passes a quarter: no illness")
def sigmoid_shallow() -> Built:
    return task(stack(1, nn.Sigmoid))


@healthy("mlp-two-layer-default", sgd(0.05))
def shallow() -> Built:
    return task(stack(2, nn.ReLU))


@sick("mlp-tanh-saturated", "SP111", optimizer=sgd(0.01))
def tanh_saturated() -> Built:
    return task(normal(stack(10, nn.Tanh), 20.0))


@sick("mlp-sigmoid-saturated", "SP111", optimizer=sgd(0.01), note="every unit stuck near one")
def sigmoid_saturated() -> Built:
    model = stack(4, nn.Sigmoid)
    for layer in model[:-1:2]:
        nn.init.constant_(layer.bias, 8.0)
    return task(model)


@sick("mlp-relu-dead", "SP110", optimizer=sgd(0.01))
def relu_dead() -> Built:
    model = normal(stack(6, nn.ReLU), 2**0.5)
    for layer in model[:-1:2]:
        nn.init.constant_(layer.bias, -5.0)
    return task(model)


@sick("mlp-relu-mostly-dead", "SP110", optimizer=sgd(0.01), note="three quarters of one layer")
def relu_mostly_dead() -> Built:
    model = normal(stack(4, nn.ReLU), 2**0.5)
    with torch.no_grad():
        model[2].bias[: 3 * WIDTH // 4] = -20.0
    return task(model)


@sick("mlp-relu-explodes", "SP102", "SP105", optimizer=sgd(0.01))
def relu_explodes() -> Built:
    return task(normal(stack(20, nn.ReLU), 2 * 2**0.5))


@sick("mlp-tanh-tiny-weights", "SP101", "SP104", optimizer=sgd(0.01))
def tanh_tiny() -> Built:
    return task(normal(stack(20, nn.Tanh), 0.3))


@sick("mlp-tanh-ordered", "SP101", "SP106", optimizer=sgd(0.01), note="biases outweigh inputs")
def tanh_ordered() -> Built:
    return task(normal(stack(30, nn.Tanh), 0.9, bias=1.0))


@sick("mlp-layer-norm-60", "SP106", optimizer=adam(1e-3), note="delta is kept, samples are not")
def layer_norm_without_skips() -> Built:
    model = stack(60, nn.ReLU)
    layers = [p for m in model[:-1:2] for p in (m, nn.LayerNorm(WIDTH), nn.ReLU())]
    return task(nn.Sequential(*layers, model[-1]))


@healthy("mlp-relu-large-bias", optimizer=sgd(1e-4), note="samples alike, and yet told apart")
def relu_large_bias() -> Built:
    return task(normal(stack(30, nn.ReLU), 2**0.5, bias=3.0))


@sick("mlp-tanh-chaotic", "SP107", optimizer=sgd(0.01))
def tanh_chaotic() -> Built:
    return task(normal(stack(20, nn.Tanh), 2.5))


class Plain(nn.Module):
    """Residual branches without any normalisation or scale."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
            for _ in range(blocks)
        )
        for branch in self.branches:
            nn.init.kaiming_normal_(branch[0].weight)
            nn.init.kaiming_normal_(branch[2].weight)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x):
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)


@sick("residual-mlp-grows", "SP109", optimizer=sgd(0.01))
def residual_grows() -> Built:
    return task(Plain(24))


class Whisper(nn.Module):
    """One branch is scaled down, once and for all, until it cannot matter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.quiet = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x + 1e-6 * torch.relu(self.quiet(x))
        return self.head(x)


@sick("mlp-quiet-branch", "SP103", optimizer=sgd(0.05))
def quiet_branch() -> Built:
    return task(Whisper())


CASES = collect(globals())
