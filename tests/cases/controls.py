"""Healthy networks that naive rules flag: zeros, small gradients and bounds with a purpose."""

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
    images,
    rmsprop,
    series,
    sgd,
)
from torch import nn

WIDTH = 32


class Residual(nn.Module):
    """Residual MLP; the branch is given by a factory."""

    def __init__(self, branch, blocks: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(branch() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class ReZero(nn.Module):
    """The whole branch is silent at the start: only alpha has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.alpha * self.down(torch.relu(self.up(x)))


class Fixup(nn.Module):
    """The last layer of the branch is zero at the start, so the first has no gradient yet."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        nn.init.kaiming_normal_(self.up.weight)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Highway(nn.Module):
    """Gates start mostly closed: carrying is the point, not saturation."""

    def __init__(self) -> None:
        super().__init__()
        self.transform, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, x):
        gate = torch.sigmoid(self.gate(x))
        return gate * torch.relu(self.transform(x)) + (1 - gate) * x


class Adapted(nn.Module):
    """A frozen layer with a low-rank update whose second factor is zero at the start."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


def task(model: nn.Module) -> Built:
    x = features(32, WIDTH)
    return model, (x, classes(x, 10)), F.cross_entropy


@healthy("residual-mlp-preln", adamw(1e-3))
def preln() -> Built:
    return task(Residual(PreNorm, 12))


@healthy("residual-mlp-rezero", adam(1e-3), note="alpha = 0: branches have exactly zero gradient")
def rezero() -> Built:
    return task(Residual(ReZero))


@healthy("residual-mlp-fixup", sgd(0.01), note="last layer of each branch zero at the start")
def fixup() -> Built:
    return task(Residual(Fixup))


@healthy("zero-head", sgd(0.05), note="zero output layer: every hidden gradient is zero at step 0")
def zero_head() -> Built:
    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    head = nn.Linear(64, 10)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return task(nn.Sequential(model, head))


@healthy("highway-bias-minus-2", adam(3e-3))
def highway() -> Built:
    return task(Residual(Highway, 15))


@healthy("lora", adamw(5e-3), note="B = 0 and a frozen base")
def lora() -> Built:
    base = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
    layers = [module for layer in base for module in (Adapted(layer), nn.GELU())]
    return task(nn.Sequential(*layers, Adapted(nn.Linear(WIDTH, 10))))


@healthy("generator-tanh-mse", adam(2e-3), note="a bounded output for bounded targets")
def generator() -> Built:
    model = nn.Sequential(
        nn.Linear(16, 32 * 4 * 4),
        nn.Unflatten(1, (32, 4, 4)),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1),
        nn.Tanh(),
    )
    return model, (features(16, 16), torch.tanh(images(16, 1, 16))), F.mse_loss


@healthy("ignore-index", adam(3e-3), note="label -100 is ignored by design")
def ignore_index() -> Built:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5), nn.Flatten(0, 1))
    x = series(8, 12, 16)
    y = classes(x.flatten(0, 1), 5).view(8, 12)
    y[:, 8:] = -100
    return model, (x, y.flatten()), nn.CrossEntropyLoss()


@healthy("binary-bce-logits", sgd(0.05))
def binary() -> Built:
    model = nn.Sequential(
        nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
    )
    x = features(32, WIDTH)
    return model, (x, classes(x, 2).float().unsqueeze(1)), nn.BCEWithLogitsLoss()


@healthy("binary-sigmoid-bce", adam(3e-3), note="sigmoid belongs here: BCELoss applies none")
def binary_sigmoid() -> Built:
    model = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())
    x = features(32, WIDTH)
    return model, (x, classes(x, 2).float().unsqueeze(1)), nn.BCELoss()


@healthy("log-softmax-nll", sgd(0.05), note="log_softmax belongs here: NLLLoss applies none")
def log_softmax() -> Built:
    model = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 10), nn.LogSoftmax(1))
    x = features(32, WIDTH)
    return model, (x, classes(x, 10)), nn.NLLLoss()


@healthy("autoencoder-bce", adam(1e-2), note="inputs in [0, 1] on purpose: they are the targets")
def autoencoder() -> Built:
    model = nn.Sequential(
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 8),
        nn.ReLU(),
        nn.Linear(8, 32),
        nn.ReLU(),
        nn.Linear(32, 64),
        nn.Sigmoid(),
    )
    x = torch.sigmoid(2 * images(32, 1, 8).flatten(1))
    return model, (x, x), nn.BCELoss()


@healthy("regression-mse", rmsprop(1e-3))
def regression() -> Built:
    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
    x = features(32, WIDTH)
    y = torch.tanh(x @ torch.randn(WIDTH, 2) / WIDTH**0.5)
    return nn.Sequential(model, nn.Linear(64, 2)), (x, y), F.mse_loss


@healthy("regression-quantile", adam(3e-3))
def quantile() -> Built:
    levels = torch.tensor([0.1, 0.5, 0.9])

    def pinball(prediction, target):
        error = target - prediction
        return torch.maximum(levels * error, (levels - 1) * error).mean()

    model = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 3))
    x = features(32, WIDTH)
    return model, (x, x[:, :1] + 0.5 * torch.randn(32, 1)), pinball


@healthy("batchnorm-mlp", sgd(0.05), note="bias before BatchNorm has no gradient but rounding")
def batchnorm() -> Built:
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()]
    return task(nn.Sequential(*layers, nn.Linear(WIDTH, 10)))


@healthy("dropout-mlp", adam(2e-3), note="the forward pass draws random numbers")
def dropout() -> Built:
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2)]
    return task(nn.Sequential(*layers, nn.Linear(WIDTH, 10)))


CASES = collect(globals())
