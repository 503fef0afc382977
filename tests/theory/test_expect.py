"""Expected against measured decay of traced networks, block by block."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import signalprop as sp
from signalprop.theory import expect


def mlp(activation, variance, width=512, depth=8):
    layers = [nn.Linear(64, width)]
    for _ in range(depth):
        layers += [activation(), nn.Linear(width, width)]
    model = nn.Sequential(*layers, activation(), nn.Linear(width, 10))
    for layer in model:
        if isinstance(layer, nn.Linear) and variance:
            nn.init.normal_(layer.weight, 0.0, math.sqrt(variance / layer.in_features))
    return model


def seen(model, x, classes=10):
    return sp.trace(model, (x, torch.randint(classes, (len(x),))), F.cross_entropy)


@pytest.mark.parametrize(
    ("activation", "variance"),
    [(nn.Tanh, 1.0), (nn.ReLU, 2.0), (nn.SELU, 1.0), (nn.GELU, 2.0), (nn.Tanh, None)],
)
def test_wide_networks(activation, variance):
    model = mlp(activation, variance)
    trace = seen(model, torch.randn(64, 64))
    found = expect(trace, model)
    assert list(found) == [block.end for block in trace.blocks]
    hidden = [e for e in found.values() if e.start != "input"]
    assert len(hidden) == 18
    for e in hidden:
        # a layer's matrix is one draw for all samples: 1 / sqrt(2 n), four times over
        assert e.excess == pytest.approx(0.0, abs=4 / math.sqrt(2 * 512)), e
        assert e.formula
        assert not e.reason
    total = sum(e.excess for e in hidden)
    assert abs(total) < 4 * math.sqrt(18 / 2 / 512)


def test_it_can_fail():
    """A matrix of low rank aligned with nothing that theory knows of."""
    model = mlp(nn.Tanh, 1.0, width=128, depth=3)
    with torch.no_grad():
        model[4].weight.copy_(torch.outer(model[4].weight[0], torch.ones(128)))
    found = expect(seen(model, torch.randn(32, 64)), model)
    assert max(abs(e.excess) for e in found.values()) > 0.5


class Highway(nn.Module):
    def __init__(self, width, bias, swapped=False):
        super().__init__()
        self.h, self.t = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.t.bias, -bias if swapped else bias)
        self.swapped = swapped

    def forward(self, x):
        t, h = torch.sigmoid(self.t(x)), torch.tanh(self.h(x))
        return t * x + (1 - t) * h if self.swapped else t * h + (1 - t) * x


@pytest.mark.parametrize("bias", [-1.0, -3.0])
@pytest.mark.parametrize("swapped", [False, True])
def test_highway(bias, swapped):
    model = nn.Sequential(
        nn.Linear(64, 256),
        nn.Tanh(),
        *[Highway(256, bias, swapped) for _ in range(4)],
        nn.Linear(256, 10),
    )
    found = expect(seen(model, torch.randn(32, 64)), model)
    gated = [e for e in found.values() if "carry" in e.formula]
    assert len(gated) == 4
    for e in gated:
        assert e.excess == pytest.approx(0.0, abs=0.08)


class Basic(nn.Module):
    def __init__(self, channels, activate=True):
        super().__init__()
        conv = {"kernel_size": 3, "padding": 1, "bias": False}
        self.a, self.b = (nn.Conv2d(channels, channels, **conv) for _ in range(2))
        self.n, self.m = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        return x + self.m(self.b(F.relu(self.n(self.a(x)))))


@pytest.mark.parametrize("training", [True, False])
def test_residual_convolutions(training):
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Basic(32),
        nn.AvgPool2d(2),
        Basic(32),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )
    model(torch.randn(64, 3, 16, 16))  # running statistics of something
    trace = seen(model.train(training), torch.randn(32, 3, 16, 16))
    found = expect(trace, model)
    assert all(e.expected is not None for e in found.values())
    for e in found.values():
        if e.start != "input":
            assert e.excess == pytest.approx(0.0, abs=0.3), e
    (pool,) = [e for e in found.values() if "averaged" in e.formula]
    assert pool.expected == pytest.approx(-math.log(2))
    assert pool.excess == pytest.approx(0.0, abs=1e-6)


class PreNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.n, self.m = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        y = self.n(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.m(x))))


def test_transformer_says_what_it_does_not_know():
    model = nn.Sequential(
        nn.Linear(8, 64), PreNorm(64), PreNorm(64), nn.LayerNorm(64), nn.Flatten(),
        nn.Linear(640, 10),
    )  # fmt: skip
    found = list(expect(seen(model, torch.randn(32, 10, 8)), model).values())
    unknown = [e for e in found if e.expected is None]
    assert len(unknown) == 2
    assert all("attention" in e.reason and e.excess is None for e in unknown)
    for e in found:
        if e.expected is not None and e.start != "input":
            assert e.excess == pytest.approx(0.0, abs=0.15), e


def test_norms_without_skips():
    for norm in (nn.LayerNorm(256), nn.BatchNorm1d(256), nn.RMSNorm(256)):
        model = nn.Sequential(
            nn.Linear(64, 256), norm, nn.ReLU(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)
        )
        found = expect(seen(model, torch.randn(128, 64)), model)
        assert found["1"].excess == pytest.approx(0.0, abs=0.06)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.act = nn.PReLU(16)

    def forward(self, x):
        return self.act(torch.relu(self.a(x)) + torch.tanh(self.b(x)))


def test_reasons():
    model = nn.Sequential(nn.Linear(8, 16), Odd(), nn.Dropout(0.5), nn.Linear(16, 10))
    found = expect(seen(model, torch.randn(16, 8)), model)
    reasons = [e.reason for e in found.values() if e.expected is None]
    assert any("sum of branches" in reason for reason in reasons)
    assert any("PReLU" in reason for reason in reasons)
    (drop,) = [e for e in found.values() if "1 - 0.5" in e.formula]
    assert drop.expected == pytest.approx(0.5 * math.log(2))


def test_the_model_is_left_alone():
    model = mlp(nn.Tanh, 1.0, width=32, depth=2)
    trace = seen(model, torch.randn(8, 64))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = expect(trace, model)
    assert first == expect(trace, model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
