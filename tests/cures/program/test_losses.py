"""Cures of the loss: the same as what is written out by hand."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from tests.cures.program.programs import (
    Functional,
    batch,
    keras_binary,
    keras_categorical,
    loss_of,
    net,
    training,
)
from torch import nn

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program import losses
from signalprop.cures.training import applied


@pytest.mark.parametrize("form", ["numbers", "column", "floats", "one-hot"])
@pytest.mark.parametrize("last", [nn.Softmax(dim=-1), nn.Sigmoid(), None])
def test_cross_entropy_for_squared_error(form, last):
    x, y = batch(4)
    target = {
        "numbers": y,
        "column": y.unsqueeze(1),
        "floats": y.float().unsqueeze(1),
        "one-hot": F.one_hot(y, 4).float(),
    }[form]
    model = net(4, *([last] if last else []))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = losses.use_cross_entropy.treat(training(model, F.mse_loss), (x, target))
    slow = F.cross_entropy(model[:3](x), y)
    torch.testing.assert_close(loss_of(after, (x, target)), slow)
    if last is not None:
        scores = applied(after.readout, after.model(x))
        torch.testing.assert_close(scores.sum(1), torch.ones(len(x)))


@pytest.mark.parametrize("loss", [keras_categorical, keras_binary, F.l1_loss])
def test_losses_of_the_user_s_own(loss):
    x, y = batch(4)
    target = F.one_hot(y, 4).float()
    model = net(4, nn.Softmax(dim=-1))
    after = losses.use_cross_entropy.treat(training(model, loss), (x, target))
    torch.testing.assert_close(loss_of(after, (x, target)), F.cross_entropy(model[:3](x), y))


def test_classes_on_the_last_dimension():
    x, y = torch.randn(5, 7, 6), torch.arange(35).reshape(5, 7) % 4
    model = net(4, nn.Softmax(dim=-1))
    target = F.one_hot(y, 4).float()
    after = losses.use_cross_entropy.treat(training(model, F.mse_loss), (x, target))
    slow = F.cross_entropy(model[:3](x).flatten(0, 1), y.flatten())
    torch.testing.assert_close(loss_of(after, (x, target)), slow)


@pytest.mark.parametrize("cure", [losses.use_cross_entropy, losses.use_bce_with_logits])
@pytest.mark.parametrize("last", [nn.Softmax(dim=1), nn.Sigmoid(), None])
@pytest.mark.parametrize("loss", [F.mse_loss, keras_binary, F.l1_loss])
def test_one_output_for_two_classes(cure, last, loss):
    x, y = batch(2)
    model = net(1, *([last] if last else []))
    data = x, y.unsqueeze(1).float()
    after = cure.treat(training(model, loss), data)
    slow = F.binary_cross_entropy_with_logits(model[:3](x), data[1])
    torch.testing.assert_close(loss_of(after, data), slow)
    assert applied(after.readout, after.model(x)).min() > 0


def test_bce_refuses_what_it_does_not_fit():
    x, y = batch(4)
    cases = [
        (net(1), F.mse_loss, torch.randn(24, 1), "0 and 1"),
        (net(1), F.mse_loss, torch.rand(24, 1), "not 0 and 1"),
        (net(4, nn.Softmax(dim=1)), F.mse_loss, F.one_hot(y, 4).float(), "use_cross_entropy"),
        (net(1), F.binary_cross_entropy_with_logits, torch.ones(24, 1), "already"),
        (Functional(torch.tanh), keras_binary, torch.ones(24, 4), "forward"),
    ]
    for model, loss, target, told in cases:
        with pytest.raises(DoesNotApply, match=told):
            losses.use_bce_with_logits.treat(training(model, loss), (x, target))


def test_several_labels_at_once():
    x = torch.randn(24, 6)
    y = (torch.rand(24, 4) > 0.3).float()
    model = net(4)
    after = losses.use_bce_with_logits.treat(training(model, F.cross_entropy), (x, y))
    slow = F.binary_cross_entropy_with_logits(model(x), y)
    torch.testing.assert_close(loss_of(after, (x, y)), slow)


def test_squared_error_for_numbers():
    x, y = torch.randn(24, 6), torch.randn(24)
    model = net(1)
    after = losses.use_mse.treat(training(model, F.cross_entropy), (x, y))
    torch.testing.assert_close(loss_of(after, (x, y)), F.mse_loss(model(x)[:, 0], y))
    with pytest.raises(DoesNotApply, match="as many outputs"):
        losses.use_mse.treat(training(net(4), F.cross_entropy), (x, y))
