"""SP201: parameters that no gradient reaches."""

import copy

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
)
from torch import nn

from signalprop.diagnosis.program.gradient import unused
from signalprop.diagnosis.rule import NotApplicable


def looked_at(model, rule=unused, **facts):
    x = features()
    return judge(rule, evidence_of(model, (x, labels()), F.cross_entropy, **facts))


class Parts(nn.Module):
    """An encoder and a head; subclasses say what lies between and beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 8))
        self.side = nn.Linear(8, 8)
        self.codes = nn.Embedding(8, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 5)
        for name in ("side", "codes", "experts"):
            getattr(self, name).requires_grad_(name in self.uses)

    uses = ()

    def between(self, z):
        return z

    def forward(self, x):
        return self.head(self.between(self.encoder(x)))


class Detached(Parts):
    def between(self, z):
        return torch.relu(z).detach()


class NoGrad(Parts):
    def forward(self, x):
        with torch.no_grad():
            z = self.encoder(x)
        return self.head(z)


class Argmax(Parts):
    uses = ("codes",)

    def between(self, z):
        return self.codes(z.argmax(1))


@pytest.mark.parametrize("model", [Detached, NoGrad, Argmax])
def test_cut_encoder(model):
    (found,) = looked_at(model())
    assert found.severity == "issue"
    assert found.sites == ("encoder",)
    assert 0 < found.value < 1


class Forgotten(Parts):
    uses = ("side",)


def test_never_called():
    (found,) = looked_at(Forgotten())
    assert (found.severity, found.sites) == ("issue", ("side",))
    assert "never called" in found.explanation


class Pooler(Parts):
    uses = ("side",)

    def between(self, z):
        self.side(z).tanh()
        return z


class Experts(Parts):
    uses = ("experts",)

    def between(self, z):
        return self.experts[0](z) + self.experts[2](z)


class OneScale(Parts):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


class PartsOfParts(nn.Module):
    """Takes a network apart and leaves its head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Parts(), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.backbone.encoder(x))


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (Pooler, "side"),
        (Experts, "experts.1"),
        (OneScale, "scale"),
        (PartsOfParts, "backbone.head"),
    ],
)
def test_harmless_leftovers_are_tips(model, site):
    (found,) = looked_at(model())
    assert (found.severity, found.sites) == ("tip", (site,))


class StopGradient(nn.Module):
    """Two views, one of them without a gradient (SimSiam)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.predictor = mlp(5), nn.Linear(5, 5)

    def forward(self, x):
        return self.predictor(self.encoder(x)) + self.encoder(x.flip(0)).detach()


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = mlp(5)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x):
        return self.student(x) - self.teacher(x).detach()


def zeroed(model, *layers):
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def test_silent_where_every_parameter_is_reached():
    model = mlp(5)
    for network in (Parts(), StopGradient(), Teacher(), zeroed(model, model[-1])):
        assert looked_at(network) == []


def test_frozen_and_other_optimizers_parameters_are_not_meant():
    frozen = Detached()
    frozen.encoder.requires_grad_(False)
    assert looked_at(frozen) == []
    model = Detached()
    held = [n for n, _ in model.named_parameters() if n.startswith("head")]
    assert looked_at(model, optimizer=optimizer_facts(model, held=held)) == []
    # an optimizer of another model says nothing about this one
    assert looked_at(model, optimizer=optimizer_facts(model, held=[], foreign=2))


def test_unused_after_a_failure():
    evidence = evidence_of(mlp(5), (features(width=9), labels()), F.cross_entropy)
    with pytest.raises(NotApplicable, match="stopped"):
        judge(unused, evidence)


def _hits(output, target):
    """A step: what is right counts, and nothing has a slope."""
    return ((output > 0).float() + 0 * output - target).square().mean()


def test_a_step_before_the_loss_stops_everything():
    torch.manual_seed(0)
    x = features()
    model = mlp(1)
    (found,) = judge(unused, evidence_of(model, (x, (x[:, :1] > 0).float()), _hits))
    assert found.severity == "issue"
    assert found.value == 1.0
    assert "every gradient is exactly zero" in found.explanation


def test_nothing_to_learn_is_no_step():
    torch.manual_seed(0)
    x = features()
    model = mlp(1)

    def hinge(y, t):  # every margin is met
        return F.relu(1e-3 - (y * 0 + t) * t).mean()

    assert judge(unused, evidence_of(model, (x, x[:, :1].sign()), hinge)) == []
    truth = model(x).detach()
    assert judge(unused, evidence_of(model, (x, truth), F.mse_loss)) == []
    cut = evidence_of(model, (x, truth), lambda y, t: (y - t - 9).square().clamp(max=1.0).mean())
    assert judge(unused, cut) == []  # all beyond a robust loss's cut: alike
