"""SP213: units that can never become different."""

import pytest
import torch
import torch.nn.functional as F
from tests.diagnosis.support import WIDTH, evidence_of, features, judge, labels, mlp
from torch import nn

from signalprop.diagnosis.program.symmetry import symmetric
from signalprop.diagnosis.rule import NotApplicable


def alike(model, x=None):
    x = features() if x is None else x
    return judge(symmetric, evidence_of(model, (x, labels(len(x))), F.cross_entropy))


def constant(model, value, *, biases=True):
    for name, p in model.named_parameters():
        if biases or not name.endswith("bias"):
            nn.init.constant_(p, value)
    return model


class ReadsLast(nn.Module):
    def __init__(self, layer) -> None:
        super().__init__()
        self.layer, self.head = layer(4, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.parametrize("value", [0.0, 0.05])
@pytest.mark.parametrize("biases", [True, False])
def test_constant(value, biases):
    (found,) = alike(constant(mlp(), value, biases=biases))
    assert found.severity == "issue"
    assert found.sites == ("0.weight", "2.weight")
    assert found.value == 1


def test_constant_convolution_before_a_flattened_head():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    (found,) = alike(constant(model, 0.1), torch.randn(8, 3, 8, 8))
    assert found.sites == ("0.weight",)


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
def test_constant_recurrent(layer):
    (found,) = alike(constant(ReadsLast(layer), 0.1), torch.randn(16, 6, 4))
    assert found.sites[0] == "layer.weight_ih_l0"
    broken = ReadsLast(layer)
    nn.init.zeros_(broken.layer.weight_ih_l0)
    assert alike(broken, torch.randn(16, 6, 4)) == []


def test_updates_keep_such_units_equal():
    model = constant(mlp(), 0.05)
    x, y = features(), labels()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    weight = model[2].weight
    assert torch.allclose(weight, weight[:1].expand_as(weight), atol=1e-6)
    assert not torch.allclose(model[4].weight, model[4].weight[:1].expand(5, -1), atol=1e-3)


class Branches(nn.Module):
    """Residual branches of one or two layers, all starting at zero, and a zero head (Fixup)."""

    def __init__(self, branch, up=None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.ups = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head, self.branch, self.up = nn.Linear(WIDTH, 5), branch, up
        for layer in (*self.layers, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        for layer, up in zip(self.layers, self.ups, strict=True):
            x = x + self.branch(layer(torch.relu(up(x)) if self.up else x))
        return self.head(x)


def identity(model):
    for layer in (model[0], model[2]):
        nn.init.eye_(layer.weight[:WIDTH])
    return model


def only(model, *places):
    for place in places:
        nn.init.constant_(model[place].weight, 0.1)
    return model


HEALTHY = {
    "random": lambda: mlp(),
    "zero head": lambda: only(mlp(), 4),
    "constant before random": lambda: only(mlp(), 0),
    "identity": lambda: identity(mlp()),
    "zero branches": lambda: Branches(nn.Identity()),
    "zero branches, tanh": lambda: Branches(nn.Tanh()),
    "zero branches, dropout": lambda: Branches(nn.Dropout(0.1)),
    "fixup": lambda: Branches(nn.Identity(), up=True),
    "frozen": lambda: constant(mlp(), 0.1)[:4].requires_grad_(False).append(nn.Linear(32, 5)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_known_practice_is_silent(name):
    assert alike(HEALTHY[name]()) == []


def test_depthwise_and_embeddings_have_no_units():
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    nn.init.constant_(depthwise.weight, 1 / 9)
    head = nn.Linear(8 * 16, 5)
    nn.init.zeros_(head.weight)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), depthwise, nn.Flatten(), head)
    assert alike(model, torch.randn(8, 3, 8, 8)) == []


def test_no_hidden_layer():
    with pytest.raises(NotApplicable):
        alike(nn.Linear(WIDTH, 5))


def test_after_a_failure():
    evidence = evidence_of(mlp(), (features(width=9), labels()), F.cross_entropy)
    with pytest.raises(NotApplicable):
        judge(symmetric, evidence)
