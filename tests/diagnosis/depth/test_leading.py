"""Which directions get through: the rules on the leading singular values."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, make_blobs
from tests.diagnosis.support import evidence_of, judge
from torch import nn

from signalprop import NotApplicable, diagnose
from signalprop.diagnosis.depth.leading import isometry_lost, measure, rank_collapse
from signalprop.diagnosis.evidence import Leading


def codes(found):
    return {f.code for f in found.findings}


def blobs(n=128):
    x, y = make_blobs(1000, centers=3, cluster_std=2, random_state=2)
    return torch.tensor(x[:n], dtype=torch.float32), torch.tensor(y[:n])


def blob_net(depth, seed, start):
    """AutoTrainer's networks on blobs: ReLU layers of width 5 and a head for 3 classes."""
    torch.manual_seed(seed)
    layers, fan_in = [], 2
    for _ in range(depth - 1):
        linear = nn.Linear(fan_in, 5)
        start(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
        fan_in = 5
    head = nn.Linear(5, 3)
    nn.init.kaiming_uniform_(head.weight, nonlinearity="relu")
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, head)


def he(weight):
    nn.init.kaiming_uniform_(weight, nonlinearity="relu")


def small(weight):
    nn.init.uniform_(weight, -0.05, 0.05)


@pytest.mark.parametrize(("depth", "start"), [(16, he), (9, small)])
@pytest.mark.parametrize("seed", range(6))
def test_autotrainers_networks_that_every_gradient_rule_passes(depth, start, seed):
    """84c77206 and 384108d9; some seeds are dead from the start, which other rules say."""
    model = blob_net(depth, seed, start)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    found = diagnose(model, blobs(), F.cross_entropy, optimizer)
    assert codes(found) & {"SP112", "SP110"}
    assert not found.healthy


def digits(n=256):
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32)
    return ((x - x.mean(0)) / (x.std(0) + 1e-3))[:n], torch.tensor(y[:n])


def mlp(depth, activation, width=64, *, norm=False, classes=10, gain=None):
    layers, fan_in = [], 64
    for _ in range(depth):
        linear = nn.Linear(fan_in, width)
        if gain is not None:
            nn.init.normal_(linear.weight, std=gain / math.sqrt(fan_in))
            nn.init.zeros_(linear.bias)
        layers += [linear, *([nn.LayerNorm(width)] if norm else []), activation()]
        fan_in = width
    return nn.Sequential(*layers, nn.Linear(width, classes))


@pytest.mark.parametrize("seed", range(3))
def test_layer_norm_without_skips_keeps_the_ratio_and_loses_the_directions(seed):
    torch.manual_seed(seed)
    model = mlp(100, nn.ReLU, norm=True)
    found = diagnose(model, digits(128), F.cross_entropy, torch.optim.Adam(model.parameters()))
    assert abs(found.decay) < 7
    assert "SP113" in codes(found)


def trained(model, data, steps=150, rate=1e-3):
    x, y = data
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for i in range(steps):
        part = slice(32 * (i % 8), 32 * (i % 8) + 32)
        optimizer.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    return diagnose(model, (x[:64], y[:64]), F.cross_entropy, optimizer)


@pytest.mark.parametrize("depth", [2, 10, 30])
@pytest.mark.parametrize("classes", [2, 10])
def test_a_trained_network_may_give_up_directions(depth, classes):
    torch.manual_seed(0)
    x, y = digits()
    model = mlp(depth, nn.ReLU, classes=classes, gain=math.sqrt(2))
    found = trained(model, (x, y % classes))
    assert found.trace.loss < 0.5 * math.log(classes)
    assert codes(found) & {"SP112", "SP113"} == set()


@pytest.mark.parametrize("width", [16, 32, 64, 512])
@pytest.mark.parametrize("depth", [2, 8, 16])
def test_usual_networks_are_silent(width, depth):
    torch.manual_seed(0)
    model = mlp(depth, nn.ReLU, width, gain=math.sqrt(2))
    found = diagnose(model, digits(64), F.cross_entropy, torch.optim.Adam(model.parameters()))
    assert codes(found) & {"SP112", "SP113"} == set()


# ---- by hand -----------------------------------------------------------------------------------


def judged(rule, *leading):
    model = mlp(1, nn.ReLU)
    evidence = evidence_of(model, digits(32), F.cross_entropy)
    object.__setattr__(evidence, "leading", leading)
    return judge(rule, evidence)


def end(*ratios, narrowest=64, largest=1.0, learned=1.0):
    return Leading("4", "input", largest, ratios, narrowest, learned)


def test_rank_collapse_by_hand():
    (found,) = judged(rank_collapse, end(1.0, 1e-9, 0.0))
    assert found.severity == "issue"
    assert (found.value, found.threshold) == (1e-9, 1e-4)
    assert found.sites == ("input", "4")
    assert "less than 1e-07" in found.explanation
    assert judged(rank_collapse, end(1.0, 1e-3)) == []


def test_isometry_by_hand():
    eight = (1.0, 0.5, 0.2, 0.1, 0.05, 0.01, 1e-3)
    (found,) = judged(isometry_lost, end(*eight, 1e-8))
    assert found.value == 1e-8
    assert judged(isometry_lost, end(*eight, 1e-3)) == []
    narrow = end(1.0, 0.5, narrowest=64)
    assert judged(isometry_lost, narrow, end(*eight, 1e-8))


@pytest.mark.parametrize(
    ("rule", "leading"),
    [
        (rank_collapse, ()),
        (rank_collapse, (end(1.0),)),
        (rank_collapse, (end(1.0, 0.0, narrowest=1),)),
        (rank_collapse, (end(0.0, 0.0, largest=0.0),)),
        (isometry_lost, ()),
        (isometry_lost, (end(1.0, 0.0),)),
        (isometry_lost, (end(*[1.0] * 7, 0.0, narrowest=16),)),
        (isometry_lost, (end(*[0.0] * 8, largest=0.0),)),
        (isometry_lost, (end(*[1.0] * 7, 0.0, learned=0.1),)),
        (isometry_lost, (end(*[1.0] * 7, 0.0, learned=None),)),
    ],
)
def test_not_applicable(rule, leading):
    with pytest.raises(NotApplicable):
        judged(rule, *leading)


def test_missing_where_there_is_no_jacobian():
    from tests.cases import by_name

    case = by_name("complex-weights")
    model, batch, loss = case.build()
    found = diagnose(model, batch, loss, case.optimizer(model))
    (result,) = [r for r in found.results if r.code == "SP112"]
    assert result.outcome == "skipped"
    assert "complex" in result.reason


# ---- at the last hidden layer, not at the head


def before(*last, outputs, width=32):
    torch.manual_seed(0)
    hidden = [nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*hidden, nn.Linear(width, outputs), *last)


def rank_one_head(model):
    with torch.no_grad():
        model[4].weight.copy_(torch.ones(10, 1) @ torch.randn(1, 32))
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: before(nn.Softmax(1), outputs=2),
        lambda: before(outputs=1),
        lambda: rank_one_head(before(outputs=10)),
    ],
    ids=["a softmax of two", "one output", "a head of rank one"],
)
def test_a_head_of_rank_one_is_no_collapse(model):
    x, y = digits(32)
    model = model()
    wide = model[4].out_features == 10
    loss = F.cross_entropy if wide else lambda p, t: (p[:, 0] - t / 10).square().mean()
    found = diagnose(model, (x, y), loss)
    (result,) = [r for r in found.results if r.code == "SP112"]
    assert result.outcome == "passed"


def test_a_collapse_before_a_narrow_head():
    torch.manual_seed(0)
    x, y = digits(32)
    model = before(nn.Sigmoid(), outputs=1)
    with torch.no_grad():
        model[2].weight.copy_(torch.randn(32, 1) @ torch.randn(1, 32) / 6)
    found = diagnose(model, (x, (y > 4).float()[:, None]), F.binary_cross_entropy)
    (own,) = [f for f in found.findings if f.code == "SP112"]
    assert own.sites == ("input", "3")


def test_a_second_sketch_only_where_it_is_needed():
    x, y = digits(32)
    model = before(outputs=10)
    evidence = evidence_of(model, (x, y), F.cross_entropy)
    assert len(measure(model, (x, y), F.cross_entropy, evidence.trace, 0)) == 1
    ends = measure(rank_one_head(model), (x, y), F.cross_entropy, evidence.trace, 0)
    assert [end.of for end in ends] == ["4", "3"]
