"""SP201 and SP202: no gradient, or one that is no number."""

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

from signalprop.diagnosis.engine import diagnose
from signalprop.diagnosis.program_gradient import not_finite, unused
from signalprop.diagnosis.rule import NotApplicable
from signalprop.errors import SignalpropError


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


# ---- SP202


def first(model, x, y, loss=F.cross_entropy):
    found = judge(not_finite, evidence_of(model, (x, y), loss))
    assert len(found) == 1
    return found[0]


def test_nan_in_the_data():
    x = features()
    x[3, 5] = torch.nan
    assert first(mlp(), x, labels()).sites == ("input",)


def test_nan_in_the_weights():
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    assert first(model, features(), labels()).sites == ("2.weight",)


def test_nan_in_a_buffer():
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)).eval()
    model[1].running_var[2] = torch.inf
    model[1].running_mean[2] = torch.inf
    found = first(model, features(), labels())
    assert found.sites == ("1",)
    assert "running_mean" in found.explanation


def test_nan_in_the_targets():
    y = torch.randn(32, 1)
    y[4] = torch.nan
    assert first(mlp(1), features(), y, F.mse_loss).sites == ("target",)


def test_every_target_ignored():
    found = first(mlp(), features(), torch.full((32,), -100))
    assert "ignored value -100" in found.explanation


class Then(nn.Module):
    def __init__(self, function, last=None) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(WIDTH, 8), function
        self.last = last or nn.Linear(8, 5)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def test_the_first_site_is_named():
    found = first(Then(torch.log), features(), labels())
    assert found.sites == ("last",)  # torch.log is no site
    assert "'first'" in found.explanation
    assert first(Then(lambda z: torch.exp(1e3 * z)), features(), labels()).sites == ("exp",)


def test_overflow_is_named():
    model = Then(lambda z: 100 * z).half()
    found = first(model, (6e3 * features()).half(), labels())
    assert found.sites == ("last",)
    assert "overflows float16" in found.explanation


def test_in_the_loss():
    found = first(mlp(1), features(), features()[:, :1], lambda o, t: (o - o).abs().log().mean())
    assert found.sites == ("loss",)


def test_on_the_way_back():
    model = Then(lambda z: (z - z).pow(2).sum(1, keepdim=True).sqrt(), nn.Linear(1, 5))
    found = first(model, features(), labels())
    assert "no finite slope" in found.explanation


class Attention(nn.Module):
    def __init__(self, mask) -> None:
        super().__init__()
        self.q, self.k, self.head = (nn.Linear(WIDTH, n) for n in (WIDTH, WIDTH, 5))
        self.mask = mask

    def forward(self, x):
        scores = self.mask(self.q(x) @ self.k(x).transpose(1, 2))
        return self.head((scores.softmax(-1) @ x).mean(1))


FUTURE = torch.ones(6, 6).triu(1).bool()


@pytest.mark.parametrize(
    "mask",
    [
        lambda s: s.masked_fill(FUTURE, -torch.inf),
        lambda s: s + torch.zeros(6, 6).masked_fill(FUTURE, -torch.inf),
    ],
)
def test_masks_are_no_fault(mask):
    evidence = evidence_of(Attention(mask), (torch.randn(8, 6, WIDTH), labels(8)), F.cross_entropy)
    assert judge(not_finite, evidence) == []


def test_row_masked_everywhere():
    def mask(s):
        return s.masked_fill(torch.ones(6, 6).bool(), -torch.inf)

    found = first(Attention(mask), torch.randn(8, 6, WIDTH), labels(8))
    assert found.sites == ("softmax",)


class Cleans(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(torch.nan_to_num(x))


def test_handled_nan_is_no_fault():
    x = features()
    x[3, 5] = torch.nan
    assert judge(not_finite, evidence_of(Cleans(), (x, labels()), F.cross_entropy)) == []


def test_not_finite_after_a_failure():
    evidence = evidence_of(mlp(5), (features(width=9), labels()), F.cross_entropy)
    with pytest.raises(NotApplicable, match="stopped"):
        judge(not_finite, evidence)


class Roots(nn.Module):
    """A square root of what is negative for some samples, and a sigmoid."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(16, 8), nn.Linear(8, 1)

    def forward(self, x):
        return torch.sigmoid(self.head(self.first(x).sqrt()))


class Refuses(Roots):
    def forward(self, x):
        y = super().forward(x)
        if not torch.isfinite(y).all():
            raise ValueError("the output is not finite")
        return y


@pytest.mark.parametrize("model", [Roots, Refuses])
def test_a_pass_that_stopped_because_of_a_nan_is_reported_and_not_raised(model):
    torch.manual_seed(0)
    batch = (features(), torch.rand(32, 1).round())
    found = diagnose(model(), batch, F.binary_cross_entropy)  # it refuses a nan
    (own,) = [f for f in found.findings if f.code == "SP202"]
    assert own.sites == ("head",)  # sqrt as a method is no site
    assert own.cures == ("guard-operation",)
    assert "So the pass stopped: " in own.explanation
    assert found.verdict.startswith("First value that is not finite")


def test_a_pass_that_stopped_with_all_finite_still_raises():
    model = nn.Sequential(nn.Linear(16, 1))
    with pytest.raises(SignalpropError):
        diagnose(model, (features(), torch.rand(31, 2)), lambda y, t: F.mse_loss(y @ t, t))


# ---- every gradient exactly zero


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
