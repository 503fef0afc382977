"""SP215: no activation anywhere."""

import pytest
import torch
import torch.nn.functional as F
from tests.diagnosis.support import WIDTH, evidence_of, features, judge, labels, mlp
from torch import nn

from signalprop.diagnosis.program.linear import all_linear
from signalprop.diagnosis.rule import NotApplicable


def told(model, x=None, y=None, loss=F.cross_entropy):
    x = features() if x is None else x
    return judge(all_linear, evidence_of(model, (x, labels() if y is None else y), loss))


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (nn.Linear(WIDTH, n) for n in (WIDTH, WIDTH, 5))

    def forward(self, x):
        h = self.first(x)
        return self.head(h * self.second(h))


class Folded(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x).abs())


LINEAR = {
    "two layers": nn.Sequential(nn.Linear(WIDTH, 32), nn.Linear(32, 5)),
    "with dropout": nn.Sequential(nn.Linear(WIDTH, 32), nn.Dropout(0.1), nn.Linear(32, 5)),
    "softmax at the end": nn.Sequential(nn.Linear(WIDTH, 8), nn.Linear(8, 5), nn.Softmax(1)),
}
OTHER = {
    "a ReLU": mlp(),
    "a factorisation": nn.Sequential(nn.Linear(WIDTH, 2), nn.Linear(2, 5)),
    "a normalisation": nn.Sequential(nn.Linear(WIDTH, 32), nn.LayerNorm(32), nn.Linear(32, 5)),
    "a product": Skip(),
    "a function that is no site": Folded(nn.Linear(WIDTH, 32), nn.Linear(32, 5)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_throughout(name):
    (found,) = told(LINEAR[name])
    assert found.severity == "tip"
    assert found.cures == ("add-activations",)
    assert found.value == 2


def test_convolutions_and_pooling():
    pools = (nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *pools, nn.Linear(128, 5))
    assert told(model, torch.randn(32, 3, 12, 12))
    model[1] = nn.MaxPool2d(2)
    assert told(model, torch.randn(32, 3, 12, 12)) == []


@pytest.mark.parametrize("name", OTHER)
def test_silent_on(name):
    assert told(OTHER[name]) == []


def test_a_linear_autoencoder_is_meant():
    model = nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH))
    x = features()
    assert told(model, x, x, F.mse_loss) == []


def test_one_layer_is_a_linear_model():
    with pytest.raises(NotApplicable):
        told(nn.Sequential(nn.Linear(WIDTH, 5)))
