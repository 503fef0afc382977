"""SP202: where the first value that is no number comes from."""

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
)
from torch import nn

from signalprop.diagnosis.engine import diagnose
from signalprop.diagnosis.program.finite import not_finite
from signalprop.diagnosis.rule import NotApplicable
from signalprop.errors import SignalpropError


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


class Exponential(nn.Module):
    def forward(self, x):
        return torch.exp(x)


class Halves(nn.Module):
    def forward(self, x):
        return x / (x > 0).float()


def test_growth_like_exp_is_cured_by_another_activation():
    hidden = [m for _ in range(4) for m in (nn.Linear(WIDTH, WIDTH), Exponential())]
    for m in hidden[::2]:
        nn.init.constant_(m.weight, 0.5)
    found = first(nn.Sequential(*hidden, nn.Linear(WIDTH, 5)), features(), labels())
    assert "overflows float32" in found.explanation
    assert found.cures[0] == "swap-activation"
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Halves(), nn.Linear(WIDTH, 5))
    divided = first(model, features(), labels())
    assert divided.cures == ("guard-operation",)


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
