"""SP208, SP209 and SP212: modes, batch size, optimizer."""

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

from signalprop.diagnosis.program.state import batch_of_one, other_parameters, wrong_mode
from signalprop.diagnosis.rule import NotApplicable


def regularised(drop=0.5):
    return nn.Sequential(
        nn.Linear(WIDTH, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(drop), nn.Linear(32, 5)
    )


def mode(model):
    return judge(wrong_mode, evidence_of(model, (features(), labels()), F.cross_entropy))


def test_left_in_eval():
    (found,) = mode(regularised().eval())
    assert found.severity == "issue"
    assert found.sites == ("1", "3")
    assert "model.train()" in found.explanation


def test_in_training_mode():
    assert mode(regularised()) == []


def test_a_part_left_in_eval_is_a_tip():
    model = regularised()
    model[1].eval()
    (found,) = mode(model)
    assert (found.severity, found.sites) == ("tip", ("1",))


class FineTuned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = regularised(), nn.Sequential(nn.Dropout(0.1), nn.Linear(5, 5))
        self.body.requires_grad_(False)
        self.body.eval()

    def forward(self, x):
        return self.head(self.body(x))


def test_frozen_parts_belong_in_eval():
    assert mode(FineTuned()) == []
    model = FineTuned()
    model.train()
    (found,) = mode(model)
    assert (found.severity, found.sites) == ("tip", ("body.1",))


def test_nothing_depends_on_the_mode():
    with pytest.raises(NotApplicable):
        mode(mlp().eval())
    with pytest.raises(NotApplicable):
        mode(nn.Sequential(mlp(), nn.Dropout(0.0)).eval())
    with pytest.raises(NotApplicable, match="trained"):
        mode(regularised().requires_grad_(False).eval())


def test_mode_after_a_failure():
    evidence = evidence_of(regularised().eval(), (features(width=9), labels()), F.cross_entropy)
    assert [f.severity for f in judge(wrong_mode, evidence)] == ["issue"]


# ---- SP209


def convolution(norm):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


def batch(model, n, *shape):
    x = torch.randn(n, *shape)
    return judge(batch_of_one, evidence_of(model, (x, torch.arange(n) % 5), F.cross_entropy))


def test_one_sample():
    (found,) = batch(convolution(nn.BatchNorm2d(8)), 1, 3, 8, 8)
    assert (found.severity, found.sites) == ("issue", ("1",))
    assert "36 values" in found.explanation


def test_one_value_stops_the_pass():
    (found,) = batch(regularised(), 1, WIDTH)
    assert found.severity == "issue"
    assert "stops" in found.explanation


def test_two_values_per_channel_is_a_tip():
    (found,) = batch(regularised(), 2, WIDTH)
    assert found.severity == "tip"


@pytest.mark.parametrize("n", [2, 16])
def test_enough_values(n):
    assert batch(convolution(nn.BatchNorm2d(8)), n, 3, 8, 8) == []


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 8), nn.BatchNorm2d(8).eval(), nn.InstanceNorm2d(8), nn.Identity()]
)
def test_norms_that_look_at_one_sample(norm):
    with pytest.raises(NotApplicable):
        batch(convolution(norm), 1, 3, 8, 8)


# ---- SP212


def held(model, **facts):
    evidence = evidence_of(
        model, (features(), labels()), F.cross_entropy, optimizer=optimizer_facts(model, **facts)
    )
    return judge(other_parameters, evidence)


def test_of_a_copy():
    (found,) = held(mlp(), held=[], foreign=6)
    assert (found.severity, found.value) == ("issue", 1)
    assert "none of the model's 6" in found.explanation


def test_stale_head():
    model = mlp()
    names = [n for n, _ in model.named_parameters() if not n.startswith("4")]
    (found,) = held(model, held=names, foreign=2)
    assert (found.severity, found.sites) == ("issue", ("4",))


def test_left_out_without_strangers_is_a_tip():
    model = mlp()
    names = [n for n, _ in model.named_parameters() if not n.startswith("4")]
    (found,) = held(model, held=names)
    assert (found.severity, found.sites) == ("tip", ("4",))


def test_holds_everything_that_is_trained():
    assert held(mlp()) == []
    assert held(mlp(), foreign=3) == []  # parameters of the loss, for example
    model = mlp()
    model[0].requires_grad_(False)
    assert held(model, held=[n for n, p in model.named_parameters() if p.requires_grad]) == []


def test_no_optimizer():
    evidence = evidence_of(mlp(), (features(), labels()), F.cross_entropy)
    assert "optimizer" in evidence.missing
    with pytest.raises(NotApplicable):
        judge(other_parameters, evidence)
