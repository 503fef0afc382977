"""Healthy networks of unusual make: what a forward function may do."""

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
    tokens,
)
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from signalprop.nets.residual import ResidualNet

WIDTH = 32


def task(model: nn.Module) -> Built:
    x = features(32, WIDTH)
    return model, (x, classes(x, 5)), F.cross_entropy


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.relu(self.layers[0](x))
        residual = x.clone()
        x = self.layers[1](x)
        x += residual
        x = F.relu_(x)
        x = self.layers[2](x).tanh_()
        x = self.layers[3](x)
        x[:, :4] = 0.0
        x.add_(residual).relu_()
        return self.head(x)


@healthy("in-place", sgd(0.05))
def in_place() -> Built:
    return task(InPlace())


class Functional(nn.Module):
    """No submodules at all."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(64, WIDTH) * (2 / WIDTH) ** 0.5)
        self.b1 = nn.Parameter(torch.zeros(64))
        self.w2 = nn.Parameter(torch.randn(64, 64) * (2 / 64) ** 0.5)
        self.b2 = nn.Parameter(torch.zeros(64))
        self.w3 = nn.Parameter(torch.randn(5, 64) / 8)

    def forward(self, x):
        x = F.relu(F.linear(x, self.w1, self.b1))
        x = torch.tanh(x @ self.w2.t() + self.b2)
        return F.linear(x, self.w3)


@healthy("functional-only", adam(2e-3))
def functional() -> Built:
    return task(Functional())


class Shared(nn.Module):
    """One layer, four times."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        nn.init.kaiming_normal_(self.shared.weight)

    def forward(self, x):
        for _ in range(4):
            x = torch.relu(self.shared(x))
        return self.head(x)


@healthy("shared-module", sgd(0.01))
def shared() -> Built:
    return task(Shared())


@healthy("frozen-half", adam(1e-2))
def frozen() -> Built:
    model = nn.Sequential(
        nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)
    )
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(False)
    return task(model)


class TwoHeads(nn.Module):
    def __init__(self, as_dict: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head, self.as_dict = nn.Linear(32, 5), as_dict

    def forward(self, x):
        hidden = self.body(x)
        if self.as_dict:
            return {"logits": self.head(hidden), "hidden": hidden, "width": hidden.shape[1]}
        return self.head(hidden), hidden, None


@healthy("dict-output", sgd(0.05))
def dict_output() -> Built:
    model, batch, _ = task(TwoHeads(as_dict=True))
    return model, batch, lambda out, y: F.cross_entropy(out["logits"], y)


@healthy("tuple-output", adamw(3e-3))
def tuple_output() -> Built:
    model, batch, _ = task(TwoHeads(as_dict=False))
    return model, batch, lambda out, y: F.cross_entropy(out[0], y)


class GraphNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, WIDTH)
        self.messages = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.updates = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x, edge_index):
        x = torch.relu(self.embed(x))
        source, target = edge_index
        degree = torch.bincount(target, minlength=len(x)).clamp(min=1).unsqueeze(1)
        for message, update in zip(self.messages, self.updates, strict=True):
            sent = torch.zeros_like(x).index_add(0, target, message(x)[source]) / degree
            x = torch.relu(update(torch.cat([x, sent], 1)))
        return self.head(x)


@healthy("graph-net", adam(3e-3), note="nodes, not samples, along the first dimension")
def graph_net() -> Built:
    x = features(40, 16)
    return GraphNet(), ((x, torch.randint(40, (2, 160))), classes(x, 3)), F.cross_entropy


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.complex64) / WIDTH**0.5)
        self.w2 = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.complex64) / WIDTH**0.5)
        self.w3 = nn.Parameter(torch.randn(WIDTH, 5, dtype=torch.complex64) / WIDTH**0.5)

    def forward(self, x):
        z = torch.fft.fft(x, norm="ortho") @ self.w1
        z = torch.tanh(z.abs()) * z.sgn()
        return ((z @ self.w2) @ self.w3).abs()


@healthy("complex-weights", adam(1e-2))
def complex_weights() -> Built:
    x = features(32, WIDTH)
    y = F.one_hot(classes(x, 5), 5).float()
    return Complex(), (x, y), F.mse_loss


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, left, right):
        return F.cosine_similarity(self.encoder(left), self.encoder(right))


@healthy("siamese", adam(3e-3))
def siamese() -> Built:
    x = features(32, WIDTH)
    y = torch.where(torch.arange(32) % 2 == 0, 1.0, -1.0)
    other = torch.where(y[:, None] > 0, x + 0.3 * torch.randn_like(x), x.roll(1, 0))
    return Siamese(), ((x, other), y), F.mse_loss


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s + x * s * (1 - s))


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(Swish.apply(self.b(Swish.apply(self.a(x)))))


@healthy("custom-autograd-function", rmsprop(1e-3))
def custom() -> Built:
    return task(Custom())


@healthy("weight-norm", sgd(0.05))
def weight_norm() -> Built:
    wn = parametrizations.weight_norm
    model = nn.Sequential(
        wn(nn.Linear(WIDTH, 64)), nn.ReLU(), wn(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 5)
    )
    return task(model)


@healthy("spectral-norm", sgd(0.05), note="the forward pass updates buffers")
def spectral_norm() -> Built:
    sn = parametrizations.spectral_norm
    model = nn.Sequential(
        sn(nn.Linear(WIDTH, 64)), nn.ReLU(), sn(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 5)
    )
    return task(model)


class Diary(nn.Module):
    """Keeps its own state in plain Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, 32), nn.Linear(32, 5)
        self.calls, self.history = 0, []

    def forward(self, x):
        self.calls += 1
        x = torch.relu(self.layer(x))
        self.history.append(x.detach().mean().item())
        return self.head(x)


@healthy("python-state", sgd(0.05), note="counts its calls and appends to a list")
def python_state() -> Built:
    return task(Diary())


class EatsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x):
        x.mul_(0.9).add_(0.01)
        return self.net(x)


@healthy("changes-its-input", sgd(0.05), note="the batch differs after every plain pass")
def eats_input() -> Built:
    return task(EatsInput())


class MaxNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, 64), nn.Linear(64, 5)

    def forward(self, x):
        with torch.no_grad():
            norm = self.layer.weight.norm(dim=1, keepdim=True)
            self.layer.weight.mul_(0.5 / norm.clamp(min=0.5))
        return self.head(torch.relu(self.layer(x)))


@healthy("changes-its-parameter", sgd(0.05), note="clips its weight in the forward pass")
def max_norm() -> Built:
    return task(MaxNorm())


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = (
            nn.Linear(16, 32),
            nn.Linear(16, 32),
            nn.Linear(32, 5),
        )

    def forward(self, *, left, right, scale=1.0):
        return self.head(torch.relu(self.left(left) + scale * self.right(right)))


@healthy("keyword-only-forward", adam(3e-3))
def keywords() -> Built:
    x = features(32, WIDTH)
    inputs = {"left": x[:, :16], "right": x[:, 16:], "scale": 0.7}
    return Keywords(), (inputs, classes(x, 5)), F.cross_entropy


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(50, WIDTH, mode="mean")
        self.net = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, words, offsets):
        return self.net(self.bag(words, offsets))


@healthy("embedding-bag", adam(1e-2), note="integer inputs of ragged length")
def embedding_bag() -> Built:
    words = tokens(24, 8, 50)
    y = classes(F.one_hot(words, 50).float().mean(1), 4)
    return Bag(), ((words.flatten(), torch.arange(0, 192, 8)), y), F.cross_entropy


@healthy("data-loader", adam(3e-3), note="the batch is a DataLoader; making one draws a seed")
def data_loader() -> Built:
    model, (x, y), loss = task(nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 5)))
    return model, DataLoader(TensorDataset(x, y), batch_size=16), loss


@healthy("residual-skipinit", sgd(0.05), note="branches behind a learnt number that starts at zero")
def residual_skipinit() -> Built:
    return task(ResidualNet(WIDTH, 48, 10, 5, branch="skipinit"))


@healthy("residual-fixup", sgd(0.05), note="zero head, zero last weights of every branch")
def residual_fixup() -> Built:
    return task(ResidualNet(WIDTH, 48, 10, 5, branch="fixup"))


CASES = collect(globals())
