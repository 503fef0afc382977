"""SP203 and SP204: the end of the network and its loss."""

import pytest
import torch
import torch.nn.functional as F
from tests.diagnosis.support import evidence_of, features, judge, labels, mlp
from torch import nn

from signalprop.diagnosis.program.output import unfit_output
from signalprop.diagnosis.program.squashed import squashed_twice
from signalprop.diagnosis.rule import NotApplicable


def yes_no():
    return torch.randint(2, (32, 1)).float()


def squash(model, target, loss):
    return judge(squashed_twice, evidence_of(model, (features(), target), loss))


def unfit(model, target, loss):
    return judge(unfit_output, evidence_of(model, (features(), target), loss))


@pytest.mark.parametrize(
    ("last", "loss"),
    [
        ([nn.Softmax(1)], F.cross_entropy),
        ([nn.Softmax(1)], nn.CrossEntropyLoss(label_smoothing=0.1)),
        ([], lambda o, t: F.cross_entropy(F.softmax(o, 1), t)),
        ([], lambda o, t: F.cross_entropy(o.exp() / o.exp().sum(1, keepdim=True), t)),
        ([nn.Sigmoid()], F.cross_entropy),
    ],
    ids=["module", "smoothed", "in-the-loss", "written-by-hand", "sigmoid"],
)
def test_probabilities_for_cross_entropy(last, loss):
    (found,) = squash(mlp(5, *last), labels(), loss)
    assert found.severity == "issue"
    assert found.value == pytest.approx(0.904, abs=1e-3)  # ln(1 + 4 / e)
    assert "0.90" in found.explanation


def test_floor_is_the_lowest_loss_that_training_reaches():
    logits = torch.full((1, 10), -1e4)
    logits[0, 3] = 1e4
    lowest = F.cross_entropy(logits.softmax(1), torch.tensor([3])).item()
    (found,) = squash(mlp(10, nn.Softmax(1)), labels(classes=10), F.cross_entropy)
    assert found.value == pytest.approx(lowest, rel=1e-5)


def test_sigmoid_before_the_binary_loss_with_logits():
    (found,) = squash(mlp(1, nn.Sigmoid()), yes_no(), nn.BCEWithLogitsLoss())
    assert found.cures == ("remove-sigmoid",)
    assert 0.31 < found.value < 0.70


@pytest.mark.parametrize("last", [[], [nn.Softmax(1)]], ids=["scores", "probabilities"])
def test_no_log_before_nll(last):
    (found,) = squash(mlp(5, *last), labels(), nn.NLLLoss())
    assert "log_softmax" in found.explanation


def test_no_log_before_kl():
    target = torch.rand(32, 5).softmax(1)
    (found,) = squash(mlp(5, nn.Softmax(1)), target, nn.KLDivLoss(reduction="batchmean"))
    assert "probabilities" in found.explanation


def focal(o, t):
    return F.nll_loss((1 - o.softmax(1)) ** 2 * o.log_softmax(1), t)


@pytest.mark.parametrize(
    ("last", "loss"),
    [
        ([], F.cross_entropy),
        ([nn.LogSoftmax(1)], F.cross_entropy),
        ([nn.LogSoftmax(1)], F.nll_loss),
        ([], focal),
        ([nn.Sigmoid()], lambda o, t: F.cross_entropy(20 * o - 10, t)),
        ([nn.Softmax(1)], lambda o, t: F.mse_loss(o, F.one_hot(t, 5).float())),
        ([nn.Softmax(1)], lambda o, t: F.nll_loss(o.clamp(min=1e-9).log(), t)),
    ],
    ids=["logits", "idempotent", "nll", "focal", "scaled", "brier", "log-of-softmax"],
)
def test_fitting_ends_are_silent(last, loss):
    evidence = evidence_of(mlp(5, *last), (features(), labels()), loss)
    assert judge(squashed_twice, evidence) == []
    assert judge(unfit_output, evidence) == []


def test_half_precision_sums_are_not_exactly_one():
    model = mlp(5, nn.Softmax(1)).bfloat16()
    evidence = evidence_of(model, (features().bfloat16(), labels()), F.cross_entropy)
    assert len(judge(squashed_twice, evidence)) == 1


# ---- SP204


@pytest.mark.parametrize(
    ("last", "loss", "word"),
    [
        ([nn.ReLU()], F.cross_entropy, "ReLU"),
        ([nn.Tanh()], F.cross_entropy, "tanh"),
    ],
    ids=["relu", "tanh"],
)
def test_activation_on_logits(last, loss, word):
    (found,) = unfit(mlp(5, *last), labels(), loss)
    assert found.severity == "issue"
    assert word in found.explanation


def test_relu_before_the_binary_loss_with_logits():
    (found,) = unfit(mlp(1, nn.ReLU()), yes_no(), nn.BCEWithLogitsLoss())
    assert "0.5" in found.explanation


def test_softmax_over_one_unit():
    (found,) = unfit(mlp(1, nn.Softmax(1)), yes_no(), nn.BCELoss())
    assert "single output" in found.explanation
    zeros = torch.zeros(32, dtype=torch.long)
    (found,) = unfit(mlp(1), zeros, F.cross_entropy)
    assert "single output" in found.explanation


def test_no_sigmoid_before_bce():
    (found,) = unfit(mlp(1), yes_no(), nn.BCELoss())
    assert "sigmoid" in found.explanation or "weights" in found.explanation
    model = mlp(1)
    nn.init.zeros_(model[-1].weight)
    nn.init.constant_(model[-1].bias, 0.5)  # inside 0..1, by chance
    (found,) = unfit(model, yes_no(), nn.BCELoss())
    assert found.cures[0] == "use-bce-with-logits"


@pytest.mark.parametrize(
    ("last", "scale"), [(nn.ReLU(), 1.0), (nn.Sigmoid(), 5.0), (nn.Tanh(), 10.0)]
)
@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss])
def test_targets_out_of_reach(last, scale, loss):
    (found,) = unfit(mlp(1, last), scale * torch.randn(32, 1), loss)
    assert found.severity == "issue"
    assert found.value > found.threshold


@pytest.mark.parametrize(
    ("last", "target"),
    [
        (nn.ReLU(), lambda: torch.rand(32, 1) + 0.5),
        (nn.Softplus(), lambda: torch.rand(32, 1) + 0.5),
        (nn.Sigmoid(), lambda: torch.rand(32, 1)),
        (nn.Tanh(), lambda: torch.randn(32, 1).tanh()),
        (nn.Tanh(), lambda: torch.cat([torch.randn(31, 1).tanh(), torch.tensor([[1.1]])])),
        (nn.LeakyReLU(), lambda: torch.randn(32, 1)),
        (nn.Identity(), lambda: 100 * torch.randn(32, 1)),
    ],
    ids=["relu", "softplus", "sigmoid", "tanh", "one-just-outside", "leaky", "linear"],
)
def test_targets_within_reach(last, target):
    model = mlp(1, last)
    nn.init.constant_(model[-2].bias, 0.5)
    assert unfit(model, target(), F.mse_loss) == []


def test_squared_error_on_yes_and_no_is_a_tip():
    (found,) = unfit(mlp(1, nn.Sigmoid()), yes_no(), F.mse_loss)
    assert found.severity == "tip"


def test_dead_relu_output():
    model = mlp(1, nn.ReLU())
    nn.init.constant_(model[-2].bias, -10.0)
    (found,) = unfit(model, torch.rand(32, 1), F.mse_loss)
    assert found.severity == "issue"
    dry = (torch.arange(32) > 28).float()[:, None]  # nearly all targets are what it puts out
    (found,) = unfit(model, dry, F.mse_loss)
    assert found.severity == "tip"


@pytest.mark.parametrize("rule", [squashed_twice, unfit_output])
def test_unseen_loss_is_not_applicable(rule):
    evidence = evidence_of(
        mlp(1), (features(), torch.rand(32, 1)), lambda o, t: (o - t).abs().max()
    )
    with pytest.raises(NotApplicable, match="by hand"):
        judge(rule, evidence)
