"""The losses of single samples, and SP204 where the output's activation is flat for some."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.diagnosis.support import evidence_of, features, judge, mlp, optimizer_facts, outcome
from torch import nn

from signalprop.diagnosis.program.output import unfit_output
from signalprop.diagnosis.samples import SAMPLES, measure, output_activation, silent_share

N = 96


def data():
    """Features, and targets of every kind that they decide."""
    torch.manual_seed(0)
    x = features(N)
    classes = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return x, {"yes": (x[:, :1] > 0).float(), "classes": classes, "positive": x[:, :1].abs() + 0.5}


def head(outputs, last, scale=1.0, shift=0.0):
    """A network whose last layer is that large, and that far off."""
    model = mlp(outputs, last)
    with torch.no_grad():
        model[4].weight.mul_(scale)
        model[4].bias.add_(shift)
    return model


def cut_off(p, target):
    """Keras's binary cross-entropy: probabilities are cut off before the logarithm."""
    return F.binary_cross_entropy(p.clamp(1e-7, 1 - 1e-7), target)


def by_hand(p, target):
    """The same of several classes, with no loss function of torch."""
    p = (p / p.sum(-1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
    return -p.log()[torch.arange(len(p)), target].mean()


def found(model, target, loss, **facts):
    x, targets = data()
    optimizer = optimizer_facts(model, **facts) if facts else None
    return judge(unfit_output, evidence_of(model, (x, targets[target]), loss, optimizer=optimizer))


@pytest.mark.parametrize("loss", [cut_off, F.binary_cross_entropy, F.mse_loss, by_hand])
@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_a_softmax_over_one_unit_is_named_whatever_the_loss(last, loss):
    if isinstance(last, nn.LogSoftmax) and loss is not F.mse_loss:
        pytest.skip("not probabilities")
    target = "classes" if loss is by_hand else "yes"
    if loss is by_hand:
        model = head(1, last)
        x, targets = data()
        evidence = evidence_of(model, (x, targets["classes"] * 0), loss)
        (own,) = judge(unfit_output, evidence)
    else:
        (own,) = found(head(1, last), target, loss)
    assert own.severity == "issue"
    assert "runs over a single output" in own.explanation
    assert own.sites == ("5",)


SATURATED = {
    "softmax": (lambda: head(3, nn.Softmax(1), 300.0), "classes", by_hand, "use-cross-entropy"),
    "sigmoid": (
        lambda: head(1, nn.Sigmoid(), 3e3, 20.0),
        "yes",
        cut_off,
        "use-bce-with-logits",
    ),
    "tanh": (
        lambda: head(1, nn.Tanh(), 3e4),
        "yes",
        F.mse_loss,
        "remove-output-activation",
    ),
    "relu": (
        lambda: head(1, nn.ReLU(), 1.0, -50.0),
        "positive",
        F.mse_loss,
        "remove-output-activation",
    ),
}


@pytest.mark.parametrize("name", SATURATED)
def test_samples_that_can_learn_nothing(name):
    build, target, loss, cure = SATURATED[name]
    torch.manual_seed(1)
    (own,) = found(build(), target, loss, fresh=False)
    assert own.severity == "issue"
    assert f"the {name} at the output, '5', is at an end of its range" in own.explanation
    assert own.cures[0] == cure
    assert own.value > 0.2


def test_a_part_may_be_freed_before_the_first_update():
    torch.manual_seed(1)
    model = head(1, nn.Sigmoid(), 5e2)
    (own,) = found(model, "yes", cut_off, fresh=True)
    assert 0.2 < own.value < 0.5
    assert own.severity == "tip"
    (own,) = found(model, "yes", cut_off, fresh=False)
    assert own.severity == "issue"


FINE = {
    "softmax": (lambda: head(3, nn.Softmax(1)), "classes", by_hand),
    "sigmoid": (lambda: head(1, nn.Sigmoid()), "yes", cut_off),
    "half a ReLU": (lambda: head(1, nn.ReLU()), "positive", F.mse_loss),
    "hinge": (
        lambda: head(1, nn.Tanh(), 3e4),
        "yes",
        lambda y, t: F.relu(1 - y * y.detach().sign() + 0 * t).mean(),
    ),
    "robust": (
        lambda: head(1, nn.Sigmoid()),
        "positive",
        lambda y, t: (y - 20 * t).square().clamp(max=1.0).mean(),
    ),
    "linear": (lambda: head(1, nn.Identity()), "positive", F.huber_loss),
}


@pytest.mark.parametrize("name", FINE)
def test_samples_that_are_fine(name):
    build, target, loss = FINE[name]
    torch.manual_seed(1)
    model = build()
    x, targets = data()
    severities = outcome(unfit_output, evidence_of(model, (x, targets[target]), loss))
    assert "issue" not in severities


@pytest.mark.parametrize(
    ("last", "outputs", "target", "loss"),
    [(nn.Sigmoid(), 1, "yes", cut_off), (nn.Softmax(1), 3, "classes", by_hand)],
)
def test_samples_that_are_fitted_perfectly(last, outputs, target, loss):
    torch.manual_seed(0)
    model = mlp(outputs, last)
    x, targets = data()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        loss(model(x), targets[target]).backward()
        optimizer.step()
    with torch.no_grad():  # certain beyond rounding
        model[4].weight.mul_(20)
        model[4].bias.mul_(20)
    evidence = evidence_of(model, (x, targets[target]), loss, optimizer=optimizer_facts(model))
    assert silent_share(evidence.trace) > 0.5
    assert evidence.samples is not None
    assert evidence.samples.learned < 0.01
    assert outcome(unfit_output, evidence) in ([], ["not applicable: " + WRITTEN])


WRITTEN = "no loss function of torch was seen; the loss is written by hand"


def test_a_dry_target_of_a_rectified_output():
    x, _ = data()
    model = head(1, nn.ReLU(), 1.0, -50.0)
    evidence = evidence_of(model, (x, torch.zeros(N, 1)), F.mse_loss)
    assert evidence.samples.above == 0
    assert "issue" not in outcome(unfit_output, evidence)


def test_facts_against_a_plain_loop():
    torch.manual_seed(1)
    model = head(1, nn.Sigmoid(), 3e3)
    x, targets = data()
    batch = (x[:SAMPLES], targets["yes"][:SAMPLES])
    evidence = evidence_of(model, batch, cut_off)
    facts = measure(model, batch, cut_off, evidence.trace, 0)
    model.requires_grad_(False)
    losses = [float(cut_off(model(batch[0][i : i + 1]), batch[1][i : i + 1])) for i in range(64)]
    wrong = [v for v in losses if v > 15]
    assert facts.lost == pytest.approx(len(wrong) / 64, abs=0.05)
    assert facts.loss == pytest.approx(sum(wrong) / len(wrong), rel=1e-3)
    other = cut_off(model(batch[0]), batch[1].roll(32, 0))
    assert facts.learned == pytest.approx(float(cut_off(model(batch[0]), batch[1]) / other))


def test_losses_that_cannot_be_taken_apart():
    x, _ = data()
    model = nn.Sequential(nn.Linear(16, 1), nn.ReLU())
    evidence = evidence_of(model, x, lambda y: y.mean())
    assert measure(model, x, lambda y: y.mean(), evidence.trace, 0).learned is None
    wide = evidence_of(nn.Linear(16, 4), x, lambda y: y.square().mean())
    assert output_activation(wide.trace) is None
    assert math.isnan(measure(wide.model, x, lambda y: y.mean(), wide.trace, 0).loss)
