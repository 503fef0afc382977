"""The metric is right, and the right one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from signalprop.cures.trials.metric import infer

Y = torch.tensor([0, 1, 2, 1])
LOGITS = torch.eye(3)[Y] * 4
BINARY = torch.tensor([0.0, 1, 1, 0])


def value(output, target, loss, parts=2):
    metric = infer(output, target, loss)
    pairs = zip(output.chunk(parts), target.chunk(parts), strict=True)
    return metric.name, metric.value(sum(metric.sums(o, t) for o, t in pairs))


def test_classes():
    wrong = LOGITS.clone()
    wrong[0] = torch.tensor([0.0, 1, 0])
    assert value(LOGITS, Y, F.cross_entropy) == ("accuracy", 1.0)
    assert value(wrong, Y, F.cross_entropy) == ("accuracy", 0.75)
    assert value(wrong, Y[:, None], F.cross_entropy) == ("accuracy", 0.75)


@pytest.mark.parametrize("last", [True, False])
def test_classes_of_tokens_leave_out_what_is_ignored(last):
    target = torch.tensor([[0, 1, -100], [2, -100, 1]])
    output = torch.zeros(2, 3, 5)
    output[..., 1] = 1  # always class 1
    if not last:
        output = output.transpose(1, 2)
    name, found = value(output, target, None)
    assert (name, found) == ("accuracy", 0.5)


def test_one_hot():
    assert value(LOGITS.softmax(1), torch.eye(3)[Y], F.mse_loss) == ("accuracy", 1.0)


def test_binary_from_probabilities_and_from_logits():
    p = torch.tensor([[0.1], [0.9], [0.4], [0.2]])
    y = BINARY[:, None]
    assert value(p, y, F.binary_cross_entropy) == ("accuracy", 0.75)
    assert value(p, y, F.mse_loss) == ("accuracy", 0.75)
    logits = torch.logit(p)
    for loss in (
        F.binary_cross_entropy_with_logits,
        nn.BCEWithLogitsLoss(),
        lambda o, t: F.binary_cross_entropy_with_logits(o.squeeze(), t.squeeze()),
    ):
        assert value(logits, y, loss) == ("accuracy", 0.75)
    assert value(logits.flatten(), BINARY, F.binary_cross_entropy_with_logits)[1] == 0.75


def test_signs():
    y = BINARY * 2 - 1
    assert value(torch.tensor([-0.2, 0.3, -0.1, -3]), y, F.mse_loss) == ("accuracy", 0.75)


def test_values():
    y = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    assert value(y, y, F.mse_loss) == ("R2", 1.0)
    assert value(torch.full_like(y, 3.0), y, F.mse_loss)[1] == pytest.approx(0)
    p = torch.tensor([[1.0], [2.0], [3.0], [5.0]])
    assert value(p, y, F.mse_loss)[1] == pytest.approx(1 - 1 / 14)


def test_class_numbers_and_one_output():
    """Broken, and judged as what replaces it will be."""
    y = torch.tensor([[0.0], [1], [2], [1]])
    of_logits = nn.BCEWithLogitsLoss()
    assert value(torch.tensor([[-3.0], [2], [5], [1]]), y, of_logits) == ("accuracy", 0.75)

    def of_probabilities(p, t):
        return (-t * p.log() - (1 - t) * (1 - p).log()).mean()

    assert value(torch.tensor([[0.1], [0.9], [0.9], [0.4]]), y, of_probabilities)[1] == 0.5
    assert value(y, y, F.mse_loss) == ("R2", 1.0)
    assert value(y, y, F.poisson_nll_loss) == ("R2", 1.0)


def test_without_a_target_the_loss_counts():
    assert infer(torch.tensor(3.0), None, None).name == "minus the loss"
    assert infer(torch.zeros(4, 2), torch.zeros(4, 7), F.mse_loss).name == "minus the loss"


def test_of_the_user():
    def share(output, target):
        return float((output.argmax(1) == target).double().mean())

    metric = infer(LOGITS, Y, F.cross_entropy, share)
    sums = sum(metric.sums(o, t) for o, t in zip(LOGITS.split(3), Y.split(3), strict=True))
    assert (metric.name, metric.value(sums)) == ("share", 1.0)
