"""Programs that the tests of their cures share: a network, its loss and its batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import signalprop as sp
from signalprop.capture import batch as batches
from signalprop.cures.program.seen import again, prepared
from signalprop.cures.training import Recipe, Training


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def training(model, loss):
    return Training(model, loss, Recipe(adam))


def tuned(kind=torch.optim.SGD, lr=0.1, model=None, loss=F.mse_loss, **options):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)) if model is None else model
    return Training(model, loss, Recipe.of(kind(model.parameters(), lr=lr, **options), model))


def net(outputs, *last):
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs), *last)


def batch(outputs, n=24):
    x = torch.randn(n, 6)
    return x, torch.arange(n) % outputs


def data(n=32):
    x = torch.randn(n, 6)
    return x, torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)


def quadratic(lr):
    """Squared error of one linear layer: it diverges above 2 / the largest eigenvalue."""
    x = torch.randn(64, 6) * torch.tensor([3.0, 1, 1, 1, 1, 1])
    model = nn.Linear(6, 1, bias=False)
    bound = 2 / float(torch.linalg.eigvalsh(2 * x.T @ x / 64)[-1])
    return tuned(lr=lr, model=model), (x, x.sum(1, keepdim=True)), bound


def loss_of(after, data):
    b = prepared(after, data)
    return batches.loss_of(after.model(*b.args, **b.kwargs), b, after.loss)


def codes(after, data):
    found = sp.diagnose(after.model, again(prepared(after, data)), after.loss)
    return {f.code for f in found.findings}


def keras_categorical(output, target):
    p = output / output.sum(-1, keepdim=True)
    return F.nll_loss(p.clamp(1e-7, 1 - 1e-7).log(), target.argmax(-1))


def keras_binary(output, target):
    return F.binary_cross_entropy(output.clamp(1e-7, 1 - 1e-7), target)


def by_hand(output, target):
    return 3 * (output - target).square().sum()


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.net, self.function = net(4), function

    def forward(self, x):
        return self.function(self.net(x))


def softmax(x):
    return x.softmax(1)
