"""Every shared case: no finding on the healthy ones, the expected codes on the sick ones."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from tests.cases import cases
from torch import nn

from signalprop.diagnosis.engine import diagnose


def named(group):
    return pytest.mark.parametrize("case", group, ids=lambda case: case.name)


def findings(case):
    model, batch, loss = case.build()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a target size", UserWarning)
        return diagnose(model, batch, loss, case.optimizer(model)).findings


def told(found):
    return [f"{f.severity} {f.code}: {f.explanation}" for f in found]


@named(cases("healthy"))
def test_healthy_cases_get_no_finding(case):
    assert told(findings(case)) == []


@named(cases("sick"))
def test_sick_cases_get_their_codes(case):
    found = {f.code for f in findings(case)}
    assert case.expect <= found


# ---- false alarms that were raised once --------------------------------------------------------


def digits(n=64):
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(x, dtype=torch.float32)[order]
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-3)
    return x[:n], torch.tensor(y)[order][:n]


def mlp(depth, activation, width=64, norm=None):
    layers, fan_in = [], 64
    for _ in range(depth):
        layers += [nn.Linear(fan_in, width), *([norm(width)] if norm else []), activation()]
        fan_in = width
    return nn.Sequential(*layers, nn.Linear(width, 10))


def sgd(rate):
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9)


ONCE_ALARMED = {
    # loss on the digits after 150 updates of 64, from 2.3; 250 where it says so
    "relu-8-adam": (lambda: mlp(8, nn.ReLU, 128), torch.optim.Adam),  # 0.13
    "relu-10-adam": (lambda: mlp(10, nn.ReLU), torch.optim.Adam),  # 0.10 after 250
    "gelu-6-adamw": (lambda: mlp(6, nn.GELU, 128), torch.optim.AdamW),  # 0.09
    "sigmoid-2-sgd": (lambda: mlp(2, nn.Sigmoid), sgd(0.5)),  # 0.07
    "sigmoid-2-adam": (
        lambda: mlp(2, nn.Sigmoid),
        lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    ),  # 0.39
    "softplus-3-sgd": (lambda: mlp(3, nn.Softplus), sgd(0.05)),  # 0.05 after 250
    "softplus-5-adam": (lambda: mlp(5, nn.Softplus), torch.optim.Adam),  # 0.17 after 250
    "batchnorm-20-sgd": (lambda: mlp(20, nn.ReLU, norm=nn.BatchNorm1d), sgd(0.02)),  # 0.42
}


@pytest.mark.parametrize("name", ONCE_ALARMED)
def test_a_network_that_learns_is_left_alone(name):
    build, optimizer = ONCE_ALARMED[name]
    model = build()
    found = diagnose(model, digits(), F.cross_entropy, optimizer(model.parameters()))
    assert told(found.findings) == []


@pytest.mark.parametrize("depth", [12, 20, 30])
def test_plain_sgd_does_not_forgive_what_adam_does(depth):
    """Default ReLU nets of this depth stay at 2.30 under SGD for hundreds of updates."""
    model = mlp(depth, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    found = diagnose(model, digits(), F.cross_entropy, optimizer)
    assert "SP101" in {f.code for f in found.findings}


def test_layer_norm_without_skips_at_depth_sixty():
    """The gradient is kept, but the first updates already bring the samples together."""
    torch.manual_seed(0)
    model = mlp(60, nn.ReLU, norm=nn.LayerNorm)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    found = diagnose(model, digits(), F.cross_entropy, torch.optim.Adam(model.parameters()))
    assert "SP106" in {f.code for f in found.findings}
