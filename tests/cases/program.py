"""Sick programs: the network is sound, what surrounds it is not."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from tests.cases.base import Built, adam, classes, collect, features, images, sgd, sick
from torch import nn

WIDTH = 32


def net(outputs: int = 10, *last: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, outputs),
        *last,
    )


def task(model: nn.Module) -> Built:
    x = features(32, WIDTH)
    return model, (x, classes(x, 10)), F.cross_entropy


def binary(model: nn.Module, loss) -> Built:
    x = features(32, WIDTH)
    return model, (x, classes(x, 2).float().unsqueeze(1)), loss


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.forgotten = net(), nn.Linear(64, 64)

    def forward(self, x):
        return self.net(x)


@sick("unused-parameter", "SP201", optimizer=sgd(0.05))
def unused() -> Built:
    return task(Unused())


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(WIDTH, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(torch.relu(self.encoder(x)).detach())


@sick("detached-encoder", "SP201", optimizer=sgd(0.05))
def detached() -> Built:
    return task(Detached())


@sick("nan-data", "SP202", optimizer=sgd(0.05), note="one missing value in one sample")
def nan_data() -> Built:
    model, (x, y), loss = task(net())
    x[3, 5] = float("nan")
    return model, (x, y), loss


class Overflow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = torch.exp(100 * self.layer(x))
        return self.head(x / x.sum(1, keepdim=True))


@sick("own-softmax-overflows", "SP202", optimizer=sgd(0.05), note="inf first, then inf / inf")
def overflow() -> Built:
    return task(Overflow())


class ZeroDistance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(WIDTH, 16)

    def forward(self, left, right):
        return (self.net(left) - self.net(right)).pow(2).sum(1).sqrt()


@sick("nan-gradient", "SP202", optimizer=sgd(0.05), note="finite loss, the slope of sqrt at 0")
def nan_gradient() -> Built:
    x = features(32, WIDTH)
    other = x.roll(1, 0)
    other[0] = x[0]
    return ZeroDistance(), ((x, other), torch.ones(32)), F.mse_loss


@sick("softmax-cross-entropy", "SP203", optimizer=sgd(0.05))
def softmax_cross_entropy() -> Built:
    return task(net(10, nn.Softmax(dim=1)))


class FunctionalSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x):
        return F.softmax(self.net(x), dim=-1)


@sick("functional-softmax-cross-entropy", "SP203", optimizer=adam(1e-3))
def functional_softmax() -> Built:
    model, batch, _ = task(FunctionalSoftmax())
    return model, batch, nn.CrossEntropyLoss()


@sick("sigmoid-bce-logits", "SP203", optimizer=sgd(0.05))
def sigmoid_logits() -> Built:
    return binary(net(1, nn.Sigmoid()), nn.BCEWithLogitsLoss())


@sick("relu-head", "SP204", optimizer=sgd(0.05), note="logits cannot be negative")
def relu_head() -> Built:
    return task(net(10, nn.ReLU()))


@sick("softmax-one-unit", "SP204", optimizer=sgd(0.05), note="always exactly one")
def softmax_one_unit() -> Built:
    return binary(net(1, nn.Softmax(dim=1)), nn.BCELoss())


@sick("sigmoid-regression", "SP204", optimizer=sgd(0.05), note="targets outside (0, 1)")
def sigmoid_regression() -> Built:
    x = features(32, WIDTH)
    return net(1, nn.Sigmoid()), (x, 5 * x[:, :1]), F.mse_loss


def squared_error(prediction, target):
    """Written by hand, it broadcasts (n, 1) - (n,) to (n, n) without a word."""
    return ((prediction - target) ** 2).mean()


@sick("broadcast-silent", "SP205", optimizer=sgd(0.05))
def broadcast_silent() -> Built:
    x = features(32, WIDTH)
    return net(1), (x, x[:, 0].clone()), squared_error


@sick("broadcast-mse", "SP205", optimizer=sgd(0.05), note="torch warns, and goes on")
def broadcast_mse() -> Built:
    x = features(32, WIDTH)
    return net(1), (x, x[:, 0].clone()), nn.MSELoss()


@sick("mse-on-class-labels", "SP205", optimizer=sgd(0.01), note="ten outputs, one class number")
def mse_labels() -> Built:
    x = features(32, WIDTH)
    return net(10), (x, classes(x, 10).float().unsqueeze(1)), F.mse_loss


@sick("raw-pixels", "SP206", optimizer=sgd(0.01), note="0 to 255")
def raw_pixels() -> Built:
    x = images(32, 1, 8).flatten(1)
    raw = (x * 40 + 128).clamp(0, 255).round()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return model, (raw, classes(x, 10)), F.cross_entropy


@sick("one-feature-unscaled", "SP206", optimizer=sgd(0.01), note="a salary among ratios")
def one_unscaled() -> Built:
    model, (x, y), loss = task(net())
    x[:, 7] = 40_000 + 15_000 * x[:, 7]
    return model, (x, y), loss


@sick("labels-from-one", "SP207", optimizer=sgd(0.05), note="1..10 for ten outputs: torch raises")
def labels_from_one() -> Built:
    model, (x, y), loss = task(net())
    return model, (x, y + 1), loss


@sick("labels-plus-minus-one", "SP207", optimizer=sgd(0.01), note="the loss has no lower bound")
def labels_plus_minus() -> Built:
    model, (x, y), loss = binary(net(1), nn.BCEWithLogitsLoss())
    return model, (x, 2 * y - 1), loss


def regularised() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(64, 10),
    )


@sick("left-in-eval", "SP208", optimizer=sgd(0.05), note="model.eval() and no way back")
def left_in_eval() -> Built:
    return task(regularised().eval())


@sick("batchnorm-batch-of-one", "SP209", optimizer=sgd(0.01))
def batch_of_one() -> Built:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return model, (images(1, 3, 8), torch.tensor([4])), F.cross_entropy


@sick("learning-rate-too-large", "SP210", optimizer=sgd(50.0))
def lr_large() -> Built:
    return task(net())


@sick("learning-rate-too-small", "SP211", optimizer=sgd(1e-9))
def lr_small() -> Built:
    return task(net())


@sick(
    "learning-rate-below-bf16",
    "SP211",
    optimizer=sgd(1e-5, momentum=0.0),
    note="every update is rounded away",
)
def lr_below_precision() -> Built:
    model, (x, y), loss = task(net().to(torch.bfloat16))
    return model, (x.bfloat16(), y), loss


@sick(
    "optimizer-of-a-copy",
    "SP212",
    optimizer=lambda model: torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.05),
)
def foreign_optimizer() -> Built:
    return task(net())


@sick(
    "optimizer-misses-new-head",
    "SP212",
    optimizer=lambda model: torch.optim.SGD(
        [*model[:-1].parameters(), *nn.Linear(64, 10).parameters()], lr=0.05
    ),
    note="the head was replaced after the optimizer was made",
)
def stale_head() -> Built:
    return task(net())


@sick("constant-init", "SP213", optimizer=sgd(0.05))
def constant_init() -> Built:
    model = net()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.05)
    return task(model)


@sick("zero-init", "SP213", optimizer=sgd(0.05), note="every weight: nothing can ever move")
def zero_init() -> Built:
    model = net()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return task(model)


@sick("softmax-of-one", "SP204", optimizer=adam(1e-3), note="the loss is fine with it")
def softmax_of_one() -> Built:
    return binary(net(1, nn.Softmax(1)), F.mse_loss)


@sick("saturated-softmax", "SP204", optimizer=adam(1e-3), note="probabilities are cut off")
def saturated_softmax() -> Built:
    model = net(10, nn.Softmax(1))
    with torch.no_grad():
        model[4].weight.mul_(300)
    model, (x, y), _ = task(model)
    return model, (x, y), lambda p, t: F.nll_loss(p.clamp(1e-7, 1 - 1e-7).log(), t)


CASES = collect(globals())
