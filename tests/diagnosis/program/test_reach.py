"""SP214: targets that Adam's steps do not lead to."""

import pytest
import torch
import torch.nn.functional as F
from tests.diagnosis.support import evidence_of, features, judge, mlp, optimizer_facts, rehearsal

import signalprop as sp
from signalprop.diagnosis.program.reach import out_of_reach
from signalprop.diagnosis.rule import NotApplicable


def told(scale, after, name="Adam", loss=F.mse_loss):
    model, x = mlp(1), features()
    y = scale * (1 + x[:, :1])
    learning = rehearsal(model, after=after, optimizer=name, rate=1e-3)
    facts = optimizer_facts(model, name=name, rate=1e-3)
    return judge(out_of_reach, evidence_of(model, (x, y), loss, optimizer=facts, learning=learning))


CRAWLS, FALLS = (1e12, 1e12 * (1 - 1e-8)), (1e12, 0.9e12)


def test_far_targets_and_a_loss_that_crawls():
    (found,) = told(1e6, CRAWLS)
    assert found.cures == ("scale-targets",)
    assert found.value == pytest.approx(1e-8, rel=1e-3)
    assert told(1e6, CRAWLS, loss=F.l1_loss)


@pytest.mark.parametrize(
    ("scale", "after"),
    [(1e6, FALLS), (1.0, CRAWLS), (1e6, (1e12, 1.1e12)), (1e6, (1e12, float("nan")))],
)
def test_silent_where_the_loss_falls_the_targets_are_near_or_something_else_is_wrong(scale, after):
    assert told(scale, after) == []


def test_it_is_for_steps_that_do_not_grow_with_the_gradient():
    with pytest.raises(NotApplicable, match="SGD"):
        told(1e6, CRAWLS, "SGD")
    with pytest.raises(NotApplicable, match="regression"):
        told(1e6, CRAWLS, loss=lambda p, y: F.binary_cross_entropy_with_logits(p, y.sigmoid()))


@pytest.mark.parametrize(("scale", "expected"), [(3e6, True), (20.0, False), (1.0, False)])
def test_with_a_real_optimizer(scale, expected):
    """House prices in dollars, in ten thousands of dollars, standardised."""
    torch.manual_seed(0)
    model, x = mlp(1), features(64)
    y = scale * (1 + 0.3 * x[:, :1])
    found = sp.diagnose(model, (x, y), F.mse_loss, torch.optim.Adam(model.parameters()))
    assert ("SP214" in {f.code for f in found.findings}) == expected


def test_silent_where_it_has_come_near():
    torch.manual_seed(0)
    model, x = mlp(1), features(64)
    y = 3e6 * (1 + 0.3 * x[:, :1])
    with torch.no_grad():
        model[-1].bias.fill_(3e6)
    found = sp.diagnose(model, (x, y), F.mse_loss, torch.optim.Adam(model.parameters()))
    assert "SP214" not in {f.code for f in found.findings}
