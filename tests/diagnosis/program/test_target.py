"""SP205 and SP207: the targets."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from tests.diagnosis.support import WIDTH, evidence_of, features, judge, labels, mlp
from torch import nn

from signalprop.diagnosis.program.target import labels_out_of_range, unfit_targets
from signalprop.diagnosis.rule import NotApplicable


def both(model, x, target, loss):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a target size", UserWarning)
        evidence = evidence_of(model, (x, target), loss)
    if not evidence.trace.losses:
        return [], []
    return judge(unfit_targets, evidence), judge(labels_out_of_range, evidence)


def by_hand(prediction, target):
    return ((prediction - target) ** 2).mean()


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, nn.HuberLoss(), by_hand])
@pytest.mark.parametrize("flat", ["target", "prediction"])
def test_every_prediction_meets_every_target(loss, flat):
    y = torch.randn(32, 1)
    model = mlp(1) if flat == "target" else nn.Sequential(mlp(1), nn.Flatten(0))
    (found,), _ = both(model, features(), y[:, 0].clone() if flat == "target" else y, loss)
    assert found.severity == "issue"
    assert found.value == 32 * 32
    assert "(32, 32)" in found.explanation


def ranking(o, t):
    d = o.squeeze(1)
    return F.relu(1 - (d[:, None] - d[None, :]) * torch.sign(t[:, None] - t[None, :])).mean()


def quantiles(o, t):
    error = t.unsqueeze(1) - o
    return torch.maximum(torch.linspace(0.1, 0.9, 5) * error, error * -0.5).mean()


def kernels(o, t):
    widths = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    return torch.exp(-(torch.cdist(o, o) ** 2) * widths).mean()


@pytest.mark.parametrize("loss", [ranking, quantiles, kernels])
def test_broadcasting_on_purpose(loss):
    outputs = 1 if loss is ranking else 5
    assert both(mlp(outputs), features(), torch.randn(32), loss) == ([], [])


@pytest.mark.parametrize("shape", [(32, 1), (32,)])
def test_class_numbers_for_squared_error(shape):
    y = labels().reshape(shape)
    (found,), _ = both(mlp(5), features(), y.float() if len(shape) == 2 else y, nn.MSELoss())
    assert found.severity == "issue"
    assert "cross_entropy" in found.explanation


def test_one_number_for_several_outputs_is_a_tip():
    (found,), _ = both(mlp(5), features(), torch.randn(32, 1), nn.MSELoss())
    assert found.severity == "tip"


RAISED = {
    "float class numbers": (5, lambda: labels().float(), F.cross_entropy, "target.long()"),
    "numbers to predict": (5, lambda: torch.randn(32), F.cross_entropy, "mse_loss"),
    "a column": (5, lambda: labels()[:, None], F.cross_entropy, "target.squeeze(1)"),
    "one-hot of int": (5, lambda: F.one_hot(labels(), 5), F.cross_entropy, "argmax(1)"),
    "int32": (5, lambda: labels().int(), F.cross_entropy, "target.long()"),
    "fewer samples": (5, lambda: labels()[:30], F.cross_entropy, "numbers of samples"),
    "flat yes and no": (1, lambda: torch.ones(32), nn.BCEWithLogitsLoss(), "reshape(32, 1)"),
    "integer yes and no": (
        1,
        lambda: torch.ones(32, 1, dtype=torch.long),
        nn.BCEWithLogitsLoss(),
        "target.float()",
    ),
}


@pytest.mark.parametrize("name", RAISED)
def test_why_the_loss_raised(name):
    outputs, target, loss, cure = RAISED[name]
    (found,), _ = both(mlp(outputs), features(), target(), loss)
    assert found.severity == "issue"
    assert cure in found.explanation


def test_classes_last():
    x = torch.randn(8, 6, WIDTH)
    (found,), _ = both(nn.Linear(WIDTH, 5), x, torch.randint(5, (8, 6)), F.cross_entropy)
    assert "transpose(1, 2)" in found.explanation


@pytest.mark.parametrize("target", [torch.randn(32, 5), torch.ones(32, 5)])
def test_targets_that_are_no_probabilities(target):
    (found,), _ = both(mlp(5), features(), target, F.cross_entropy)
    assert found.severity == "issue"


@pytest.mark.parametrize(
    ("outputs", "target", "loss"),
    [
        (5, lambda: labels(), F.cross_entropy),
        (5, lambda: torch.rand(32, 5).softmax(1), F.cross_entropy),
        (5, lambda: labels().where(torch.arange(32) < 20, -100), F.cross_entropy),
        (
            5,
            lambda: labels().where(torch.arange(32) < 20, 255),
            nn.CrossEntropyLoss(ignore_index=255),
        ),
        (5, lambda: (torch.rand(32, 5) < 0.4).float(), nn.BCEWithLogitsLoss()),
        (1, lambda: torch.rand(32, 1), nn.BCEWithLogitsLoss()),
        (1, lambda: torch.randn(32, 1), F.mse_loss),
        (1, lambda: torch.randint(9, (32, 1)).float(), F.mse_loss),
        (1, lambda: torch.randint(9, (32, 1)).float(), nn.PoissonNLLLoss()),
        (1, lambda: 2 * torch.randint(2, (32, 1)).float() - 1, nn.SoftMarginLoss()),
        (5, lambda: labels(), nn.MultiMarginLoss()),
    ],
)
def test_fitting_targets_are_silent(outputs, target, loss):
    assert both(mlp(outputs), features(), target(), loss) == ([], [])


# ---- SP207


@pytest.mark.parametrize(
    ("target", "cure"),
    [
        (lambda: labels() + 1, "shift-labels"),
        (lambda: labels() - 1, "set-ignore-index"),
        (lambda: 3 * labels(), "add-outputs"),
    ],
)
def test_class_numbers_out_of_range(target, cure):
    _, (found,) = both(mlp(5), features(), target(), F.cross_entropy)
    assert found.severity == "issue"
    assert found.cures[0] == cure
    assert "0 to 4" in found.explanation


@pytest.mark.parametrize(
    ("target", "loss", "words"),
    [
        (lambda: 2 * torch.eye(32)[:, :1] - 1, nn.BCEWithLogitsLoss(), "(y + 1) / 2"),
        (lambda: labels().float()[:, None], nn.BCEWithLogitsLoss(), "cross_entropy"),
        (lambda: torch.randn(32, 1), nn.BCEWithLogitsLoss(), "no lower bound"),
        (lambda: torch.eye(32)[:, :1], nn.SoftMarginLoss(), "-1 and +1"),
        (lambda: -torch.ones(32, 1), nn.PoissonNLLLoss(), "counts"),
    ],
)
def test_other_targets_out_of_range(target, loss, words):
    _, (found,) = both(mlp(1), features(), target(), loss)
    assert words in found.explanation


@pytest.mark.parametrize("rule", [unfit_targets, labels_out_of_range])
def test_without_a_loss_seen(rule):
    evidence = evidence_of(mlp(1), (features(), torch.rand(32, 1)), lambda o, t: o.abs().max())
    with pytest.raises(NotApplicable):
        judge(rule, evidence)


@pytest.mark.parametrize("rule", [unfit_targets, labels_out_of_range])
def test_a_pass_that_stopped_before_the_loss(rule):
    evidence = evidence_of(mlp(5), (features(width=9), labels()), F.cross_entropy)
    assert evidence.trace.failure is not None
    with pytest.raises(NotApplicable):
        judge(rule, evidence)
