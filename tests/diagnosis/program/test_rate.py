"""SP206, SP210 and SP211: the scale of inputs and of updates."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.diagnosis.support import (
    WIDTH,
    evidence_of,
    features,
    judge,
    labels,
    mlp,
    optimizer_facts,
    outcome,
    rehearsal,
)
from torch import nn

from signalprop.diagnosis.program.rate import rate_too_large, rate_too_small, raw_inputs
from signalprop.diagnosis.rule import NotApplicable
from signalprop.diagnosis.samples import SampleFacts


def scaled(model, x):
    return outcome(raw_inputs, evidence_of(model, (x, labels(len(x))), F.cross_entropy))


def convolution(*between):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        *between,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


class Reads(nn.Module):
    def __init__(self, layer) -> None:
        super().__init__()
        self.layer, self.head = layer(4, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


def with_column(column):
    return torch.cat([features()[:, 1:], column], 1)


RAW = {
    "pixels": lambda: (mlp(inputs=64), torch.randint(256, (32, 64)).float()),
    "sparse pixels": lambda: (
        mlp(inputs=64),
        torch.randint(256, (32, 64)).float() * (torch.rand(32, 64) < 0.2),
    ),
    "images": lambda: (convolution(), torch.randint(256, (16, 3, 8, 8)).float()),
    "one sample": lambda: (convolution(), torch.randint(256, (5, 3, 8, 8)).float()),
    "kelvin": lambda: (mlp(), 300 + 3 * features()),
    "salary": lambda: (mlp(), with_column(40_000 + 15_000 * torch.randn(32, 1))),
    "year": lambda: (mlp(), with_column(2000 + 10 * torch.randn(32, 1))),
    "offset": lambda: (mlp(), 5 + 0.1 * features()),
    "gru": lambda: (Reads(nn.GRU), 400 + 100 * torch.randn(16, 6, 4)),
    "lstm": lambda: (Reads(nn.LSTM), 400 + 100 * torch.randn(16, 6, 4)),
}


@pytest.mark.parametrize("name", RAW)
def test_raw_inputs(name):
    assert scaled(*RAW[name]()) == ["issue"]


class Divides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(inputs=64)

    def forward(self, x):
        return self.net(x / 255)


def counts():
    x = torch.poisson(torch.full((32, 200), 0.05))
    x[:, 0] = torch.poisson(torch.full((32,), 30.0))
    return x


FINE = {
    "standardised": lambda: (mlp(), features()),
    "0 to 1": lambda: (mlp(inputs=64), torch.rand(32, 64)),
    "-1 to 1": lambda: (mlp(inputs=64), 2 * torch.rand(32, 64) - 1),
    "bright": lambda: (convolution(), 0.8 + 0.2 * torch.rand(16, 3, 8, 8)),
    "binary": lambda: (mlp(), (torch.rand(32, WIDTH) < 0.1).float()),
    "one-hot": lambda: (mlp(inputs=64), F.one_hot(torch.randint(64, (32,)), 64).float()),
    "probabilities": lambda: (mlp(inputs=64), torch.rand(32, 64).softmax(1)),
    "sparse counts": lambda: (mlp(inputs=200), counts()),
    "quiet": lambda: (mlp(), 0.01 * features()),
    "heavy tails": lambda: (mlp(), torch.distributions.StudentT(2.0).sample((32, WIDTH))),
    "lstm": lambda: (Reads(nn.LSTM), torch.randn(16, 6, 4)),
    "raw, BatchNorm next": lambda: (
        convolution(nn.BatchNorm2d(8)),
        torch.randint(256, (16, 3, 8, 8)).float(),
    ),
    "constant column": lambda: (mlp(), with_column(torch.ones(32, 1))),
}


@pytest.mark.parametrize("name", FINE)
def test_normalised_inputs(name):
    assert scaled(*FINE[name]()) == []


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (lambda: nn.Sequential(nn.BatchNorm1d(WIDTH), mlp()), lambda: 300 + 50 * features()),
        (lambda: nn.Sequential(nn.LayerNorm(WIDTH), mlp()), lambda: 300 + 50 * features()),
        (Divides, lambda: torch.randint(256, (32, 64)).float()),
        (
            lambda: nn.Sequential(nn.Embedding(300, 8), nn.Flatten(), nn.Linear(48, 5)),
            lambda: torch.randint(300, (32, 6)),
        ),
    ],
)
def test_inputs_that_no_layer_reads_as_they_are(model, x):
    (told,) = scaled(model(), x())
    assert told.startswith("not applicable")


def test_inputs_after_a_failure():
    evidence = evidence_of(mlp(), (features(width=9), labels()), F.cross_entropy)
    with pytest.raises(NotApplicable):
        judge(raw_inputs, evidence)


# ---- SP210 and SP211


def rated(rule, *, model=None, x=None, sharpness=1.0, optimizer=None, samples=None, **learning):
    model = model or mlp()
    x = features() if x is None else x
    evidence = evidence_of(
        model,
        (x, labels()),
        F.cross_entropy,
        optimizer=optimizer_facts(model, **(optimizer or {})),
        learning=rehearsal(model, **learning),
        sharpness=sharpness,
    )
    return judge(rule, replace(evidence, samples=samples))


def test_above_the_bound_and_rising():
    (found,) = rated(rate_too_large, after=(1.6, 1.8, 2.4), rate=2.0, sharpness=3.0)
    assert found.severity == "issue"
    assert (found.value, found.threshold) == (6.0, 2.0)
    assert "0.67" in found.explanation  # 2 / 3


def test_momentum_moves_the_bound():
    rising = {"after": (1.6, 1.8, 2.1), "rate": 1.0, "sharpness": 3.0}
    assert rated(rate_too_large, **rising)
    assert rated(rate_too_large, **rising, optimizer={"momentum": 0.9}) == []


@pytest.mark.parametrize(
    ("name", "after", "sharpness"),
    [
        ("SGD", (1.6, 1.5, 1.4), 1e3),  # above the bound, and falling all the same
        ("SGD", (1.6, 1.7, 1.75), 1.0),  # wiggles below the bound
        ("Adam", (1.6, 1.9, 1.8), 1e3),
        ("AdamW", (1.6, 4.0, 1.5), 1e3),
    ],
)
def test_rates_that_are_fine(name, after, sharpness):
    assert rated(rate_too_large, after=after, sharpness=sharpness, optimizer={"name": name}) == []


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Lion"])
@pytest.mark.parametrize("last", [30.0, math.nan, math.inf])
def test_a_loss_that_runs_away(name, last):
    found = rated(rate_too_large, after=(1.6, 5.0, last), optimizer={"name": name})
    assert [f.severity for f in found] == ["issue"]


def test_a_tip_where_the_inputs_are_the_cause():
    x = with_column(40_000 + 15_000 * torch.randn(32, 1))
    (found,) = rated(rate_too_large, x=x, after=(1.6, 50.0, 1e9), sharpness=1e6)
    assert found.severity == "tip"
    assert "inputs" in found.explanation


def test_rounded_away():
    layers = {"0": 1.0, "2": 1.0, "4": 1.0}
    still = {"unmoved": layers, "after": (1.6, 1.6, 1.6)}
    (found,) = rated(rate_too_small, **still, rate=1e-9)
    assert found.value == 1
    assert "float32" in found.explanation
    narrow = {"model": mlp().bfloat16(), "x": features().bfloat16()}
    (found,) = rated(rate_too_small, **narrow, unmoved=layers, rate=1e-3)
    assert found.cures[0] == "float32-weights"


def test_vanishing_gradients_are_not_the_rates_fault():
    assert rated(rate_too_small, unmoved={"0": 1.0, "2": 1.0, "4": 1.0}, rate=0.05) == []


def test_one_still_layer_is_not_all():
    assert rated(rate_too_small, unmoved={"0": 1.0, "2": 0.0, "4": 0.0}, rate=1e-4) == []


def test_crawls():
    slow = {"decrease": 1e-9, "update_ratio": dict.fromkeys(("0", "2", "4"), 1e-9)}
    assert rated(rate_too_small, rate=1e-8, **slow)
    assert rated(rate_too_small, rate=1e-8, **slow, optimizer={"name": "Adam"})
    assert rated(rate_too_small, rate=1e-8) == []


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_small_rates_that_move(name):
    ratios = dict.fromkeys(("0", "2", "4"), 5e-6)  # fine-tuning
    assert rated(rate_too_small, rate=1e-5, update_ratio=ratios, optimizer={"name": name}) == []


def test_rate_of_zero():
    (found,) = rated(rate_too_small, rate=0.0, optimizer={"rate": 0.0})
    assert found.severity == "issue"


def test_an_optimizer_of_another_model_is_not_slow():
    with pytest.raises(NotApplicable):
        rated(rate_too_small, unmoved={"0": 1.0}, optimizer={"held": [], "foreign": 6})


@pytest.mark.parametrize("rule", [rate_too_large, rate_too_small])
def test_without_an_optimizer(rule):
    evidence = evidence_of(mlp(), (features(), labels()), F.cross_entropy)
    assert set(rule.rule.needs) & set(evidence.missing)
    with pytest.raises(NotApplicable):
        judge(rule, evidence)


# ---- leaps, crawls, counts that blow up


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_leap_on_the_way_that_ends_where_it_began(name):
    (found,) = rated(rate_too_large, after=(2.3, 90.0, 2.4, 2.3), optimizer={"name": name})
    assert found.severity == "issue"
    assert "with a leap to 90 on the way" in found.explanation
    assert rated(rate_too_large, after=(2.3, 4.5, 2.4, 2.3), optimizer={"name": name}) == []
    recovered = (425.0, 463.0, 1310.0, 96.0)
    assert rated(rate_too_large, after=recovered, optimizer={"name": name}) == []


def test_a_trained_network_may_leap_with_adam():
    small = {"after": (0.0105, 0.0124, 0.0242, 0.0105)}
    assert rated(rate_too_large, **small, optimizer={"name": "RMSprop"}) == []
    assert rated(rate_too_large, **small)


def test_a_leap_is_no_fall():
    model = mlp()
    assert rehearsal(model, after=(2.3, 2.0)).falls
    assert not rehearsal(model, after=(2.3, 90.0, 2.0)).falls
    assert not rehearsal(model, after=(2.3, math.inf)).falls


def test_crawls_far_below_the_bound():
    ratios = dict.fromkeys(("0", "2", "4"), 1e-5)
    slow = {"rate": 1e-5, "update_ratio": ratios, "decrease": 5e-6}
    (found,) = rated(rate_too_small, **slow)
    assert found.value == pytest.approx(5e-6 / 1.6)
    assert found.cures == ("raise-learning-rate", "adam")
    # 0.9 of momentum is ten times the rate
    assert rated(rate_too_small, **slow, optimizer={"momentum": 0.9}) == []


def test_a_plateau_is_no_crawl():
    ratios = dict.fromkeys(("0", "2", "4"), 1e-5)
    flat = {"rate": 1e-3, "update_ratio": ratios, "decrease": 1e-6, "sharpness": 0.5}
    assert rated(rate_too_small, **flat) == []  # the best rate would take 0.1%
    for learned, fires in ((0.3, False), (0.99, True)):
        facts = SampleFacts(learned, above=0.5, lost=0.0, loss=math.nan)
        assert bool(rated(rate_too_small, **flat, samples=facts)) == fires


def test_sparse_counts_must_be_borne():
    torch.manual_seed(0)
    x = (torch.rand(64, 40) < 0.1).float() * torch.randint(1, 4, (64, 40))
    x[:, 3] = torch.where(torch.rand(64) < 0.1, 4000.0, 0.0)
    model = mlp(inputs=40)
    assert scaled(model, x) == ["issue"]
    with torch.no_grad():
        model[0].weight[:, 3] /= 1e3
    assert scaled(model, x) == []  # what reads it keeps it small
