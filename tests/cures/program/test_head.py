"""Cures of the last activation: what is taken off, and what stays."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from tests.cures.program.programs import (
    Functional,
    batch,
    codes,
    keras_binary,
    keras_categorical,
    loss_of,
    net,
    softmax,
    training,
)
from torch import nn

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program import head
from signalprop.cures.program.ends import OfLog
from signalprop.cures.training import Training, applied


def test_the_softmax_moves_to_the_readout():
    model, data = net(4, nn.Softmax(dim=1)), batch(4)
    after = head.remove_softmax.treat(training(model, nn.CrossEntropyLoss()), data)
    assert isinstance(after.model[3], nn.Identity)
    torch.testing.assert_close(applied(after.readout, after.model(data[0])), model(data[0]))
    assert list(after.model.state_dict()) == list(model.state_dict())
    assert after.lines == ("model.set_submodule('3', torch.nn.Identity())",)
    namespace = {"model": copy.deepcopy(model), "torch": torch}
    exec(after.lines[0], namespace)
    assert torch.equal(namespace["model"](data[0]), after.model(data[0]))


def test_a_softmax_in_forward_is_undone_by_the_loss():
    model, data = Functional(softmax).double(), batch(4)
    data = data[0].double(), data[1]
    loss = nn.CrossEntropyLoss(weight=torch.rand(4).double(), label_smoothing=0.1)
    after = head.remove_softmax.treat(training(model, loss), data)
    slow = loss(model.net(data[0]), data[1])
    torch.testing.assert_close(loss_of(after, data), slow)
    pickle.loads(pickle.dumps(after.loss))
    namespace = {"loss": loss, "torch": torch}
    exec(after.lines[0], namespace)
    torch.testing.assert_close(namespace["loss"](model(data[0]), data[1]), slow)


def test_a_softmax_that_is_used_twice_stays():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.soft = nn.Linear(6, 6), nn.Linear(6, 4), nn.Softmax(dim=1)

        def forward(self, x):
            return self.soft(self.last(self.soft(self.first(x))))

    after = head.remove_softmax.treat(training(Shared(), F.cross_entropy), batch(4))
    assert isinstance(after.model.soft, nn.Softmax)
    assert isinstance(after.loss, OfLog)


def soft_in_loss(output, target):
    return F.cross_entropy(output.softmax(1), target)


def test_a_softmax_in_the_loss():
    after = head.remove_softmax.treat(training(net(4), soft_in_loss), batch(4))
    assert isinstance(after.loss, nn.CrossEntropyLoss)


def test_where_the_softmax_belongs_it_stays():
    x, y = batch(4)
    model = net(4, nn.Softmax(dim=1))
    with pytest.raises(DoesNotApply, match="belongs there"):
        head.remove_softmax.treat(training(model, keras_categorical), (x, F.one_hot(y, 4)))
    with pytest.raises(DoesNotApply, match="no softmax"):
        head.remove_softmax.treat(training(net(4), F.cross_entropy), (x, y))


def test_log_softmax_for_nll():
    x, y = batch(4)
    for model in (net(4, nn.Softmax(dim=1)), net(4), Functional(softmax)):
        after = head.use_log_softmax.treat(training(model, F.nll_loss), (x, y))
        scores = model.net(x) if isinstance(model, Functional) else model[:3](x)
        torch.testing.assert_close(loss_of(after, (x, y)), F.cross_entropy(scores, y))
        assert "SP203" not in codes(after, (x, y))
        assert set(model.state_dict()) == set(after.model.state_dict())
        pickle.dumps(after)


def test_a_sigmoid_in_forward_gets_the_loss_of_probabilities():
    x, y = batch(2)
    y = F.one_hot(y, 4).float()
    model = Functional(torch.sigmoid)
    after = head.remove_sigmoid.treat(training(model, nn.BCEWithLogitsLoss()), (x, y))
    slow = F.binary_cross_entropy_with_logits(model.net(x), y)
    torch.testing.assert_close(loss_of(after, (x, y)), slow)
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.ones(4))
    with pytest.raises(DoesNotApply, match="forward"):
        head.remove_sigmoid.treat(training(model, weighted), (x, y))


def test_weights_of_the_loss_stay():
    x, y = batch(4)
    weight = torch.rand(4)
    model = net(4, nn.Softmax(dim=1))
    loss = nn.NLLLoss(weight=weight, ignore_index=2)
    after = head.remove_softmax.treat(training(model, loss), (x, y))
    slow = F.cross_entropy(model[:3](x), y, weight=weight, ignore_index=2)
    torch.testing.assert_close(loss_of(after, (x, y)), slow)
    assert after.lines[1] == "loss = torch.nn.CrossEntropyLoss(weight=loss.weight, ignore_index=2)"


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus()])
def test_a_regression_ends_linear(last):
    x = torch.randn(24, 6)
    data = x, 5 * x[:, :1]
    model = net(1, last)
    after = head.remove_output_activation.treat(training(model, F.mse_loss), data)
    assert torch.equal(after.model(x), model[:3](x))
    assert after.readout == ()
    fine = x, last(x[:, :1])
    with pytest.raises(DoesNotApply, match="within the range"):
        head.remove_output_activation.treat(training(model, F.mse_loss), fine)


def test_a_sigmoid_for_bce():
    x = torch.randn(24, 6)
    data = x, (x[:, :1] > 0).float()
    for model in (net(1), Functional(lambda z: z[:, :1])):
        before = training(model, nn.BCEWithLogitsLoss())
        after = head.add_sigmoid.function(Training(model, keras_binary, before.optimizer), data)
        torch.testing.assert_close(after.model(x), torch.sigmoid(model(x)))
        assert set(after.model.state_dict()) == set(model.state_dict())
    with pytest.raises(DoesNotApply, match="already"):
        head.add_sigmoid.treat(training(net(1, nn.Sigmoid()), nn.BCELoss()), data)
