"""More outputs: the old ones stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.cures.program.programs import batch, net, training
from torch import nn

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program import outputs
from signalprop.cures.training import applied


def test_old_outputs_stay():
    x, y = batch(7)
    model = net(4)
    torch.manual_seed(5)
    after = outputs.add_outputs.treat(training(model, F.cross_entropy), (x, y))
    out = after.model(x)
    assert out.shape == (24, 7)
    torch.testing.assert_close(out[:, :4], model(x))
    new = after.model[2]
    assert new.out_features == 7
    assert float(new.weight[4:].detach().abs().max()) <= 1 / 4
    assert float(new.weight[4:].detach().std()) == pytest.approx(0.25 / 3**0.5, rel=0.3)
    torch.manual_seed(5)
    again_ = outputs.add_outputs.treat(training(model, F.cross_entropy), (x, y))
    assert torch.equal(again_.model[2].weight, new.weight)


def test_outputs_of_a_convolution():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    data = torch.randn(2, 3, 5, 5), torch.randint(4, (2, 5, 5))
    after = outputs.add_outputs.treat(training(model, F.cross_entropy), data)
    assert after.model(data[0]).shape == (2, 4, 5, 5)
    assert after.model[2].out_channels == 4


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(4, 6), nn.Linear(6, 4, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.table(x))


def test_outputs_that_are_refused():
    x, y = batch(4)
    cases = [
        (net(4), F.cross_entropy, (x, y), "fits"),
        (net(4), F.cross_entropy, (x, torch.where(y == 1, 255, y)), "set_ignore_index"),
        (net(4), nn.CrossEntropyLoss(weight=torch.ones(4)), (x, y + 3), "weight"),
        (net(4), F.cross_entropy, (x, y * 3 - 2), "below 0"),
        (Tied(), F.cross_entropy, (y, y + 3), "shared"),
        (net(4), F.mse_loss, (x, torch.randn(24, 4)), "no class numbers"),
    ]
    for model, loss, data, told in cases:
        with pytest.raises(DoesNotApply, match=told):
            outputs.add_outputs.treat(training(model, loss), data)


@pytest.mark.parametrize("probabilities", [True, False])
def test_one_output_and_several_classes(probabilities):
    torch.manual_seed(0)
    x, y = batch(3)
    y = y.float()[:, None]
    model = net(1)
    if probabilities:
        model.append(nn.Sigmoid())
    loss = nn.BCEWithLogitsLoss()
    given = (lambda p, t: loss(p.logit(), t)) if probabilities else loss
    after = outputs.add_outputs.treat(training(model, given), (x, y))
    scores = after.model(x)
    assert scores.shape == (24, 3)
    assert scores.sum(1).std() > 0.01  # logits
    _, _, numbers = applied(after.prepare, ((x,), {}, y))
    assert torch.equal(numbers, y.flatten().long())
    assert float(after.loss(scores, numbers).detach()) < 2
    assert torch.allclose(applied(after.readout, scores).sum(1), torch.ones(24))
    assert "target = target.flatten().long()" in after.lines
    with pytest.raises(DoesNotApply, match="more than two"):
        outputs.add_outputs.treat(training(model, given), (x, (y > 0).float()))
