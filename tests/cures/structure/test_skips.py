"""Skips are put where they fit, are the identity at the start, and keep all names."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name
from tests.cures.everywhere import on_all_cases, same_elsewhere
from tests.references import state
from torch import nn
from torch.utils.hooks import RemovableHandle

import signalprop as sp
from signalprop.cures.cure import DoesNotApply
from signalprop.cures.structure.skips import highway, residual
from signalprop.cures.training import Recipe, Training
from signalprop.errors import SignalpropError

WIDTH = 12


def stack(depth: int, activation: type[nn.Module] = nn.Tanh, *more: nn.Module) -> nn.Sequential:
    layers = [m for _ in range(depth) for m in (nn.Linear(WIDTH, WIDTH), activation(), *more)]
    return nn.Sequential(nn.Linear(5, WIDTH), *layers, nn.Linear(WIDTH, 3))


def task(n: int = 16, width: int = 5):
    return torch.randn(n, width), torch.randint(3, (n,))


# residual


def test_residual_starts_as_the_identity():
    net, data = stack(30, nn.Sigmoid), task()
    cured = residual(net, data)
    short = nn.Sequential(net[0], net[-1])
    assert torch.equal(cured(data[0]), short(data[0]))
    inner = torch.randn(WIDTH)
    jacobian = torch.autograd.functional.jacobian(cured[1:-1], inner)
    assert torch.equal(jacobian, torch.eye(WIDTH))


def test_residual_is_x_plus_alpha_f():
    net, data = stack(4), task()
    cured = residual(net, data, start="scaled")
    x = net[0](data[0])
    for i in (1, 3, 5, 7):
        assert cured.get_parameter(f"alpha_{i}").item() == pytest.approx(0.5)
        x = x + 0.5 * net[i + 1](net[i](x))
    torch.testing.assert_close(cured(data[0]), net[-1](x))


def test_residual_keeps_every_name_and_value():
    net = stack(3)
    cured = residual(net, task())
    state = cured.state_dict()
    assert set(state) - set(net.state_dict()) == {"alpha_1", "alpha_3", "alpha_5"}
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert isinstance(cured, nn.Sequential)
    assert len(cured) == len(net)
    assert list(cured._modules) == list(net._modules)
    assert type(net) is nn.Sequential


def test_residual_in_place_is_the_same_object():
    net = stack(2)
    layer = net[1]
    handle = net[1].register_forward_hook(lambda *_: None)
    assert residual(net, task(), inplace=True) is net
    assert net[1] is layer
    assert handle.id in layer._forward_hooks
    with pytest.raises(DoesNotApply):  # what has a skip gets no second one
        residual(net, task())


def test_residual_learns_at_the_start_and_trains_a_depth_that_was_lost():
    torch.manual_seed(0)
    x = torch.randn(128, 5)
    y = (x @ torch.randn(5, 3)).argmax(1)

    def final(net: nn.Module) -> float:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        loss = torch.tensor(0.0)
        for _ in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
        return loss.item()

    net = stack(30, nn.Sigmoid)
    cured = residual(net, (x, y))
    # 1.1 is what chance gives
    assert final(cured) < 0.5 < 0.95 < final(net)
    assert any(cured.get_parameter(f"alpha_{i}").abs() > 1e-3 for i in range(1, 60, 2))


def test_residual_is_seen_as_residual():
    cured = residual(stack(5), (data := task()), start="scaled")
    blocks = sp.trace(cured, data, F.cross_entropy).blocks
    assert sum(block.residual for block in blocks) == 5


def test_residual_in_pairs_where_widths_alternate():
    wide = [m for _ in range(3) for m in (nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 8), nn.ReLU())]
    net = nn.Sequential(*wide, nn.Linear(8, 2))
    data = (torch.randn(9, 8), torch.randint(2, (9,)))
    with pytest.raises(DoesNotApply, match="layers=2"):
        residual(net, data)
    cured = residual(net, data, layers=2)
    assert dict(cured.skips) == {"3": "0", "7": "4", "11": "8"}
    assert torch.equal(cured(data[0]), net[-1](data[0]))


def test_residual_where_one_activation_serves_all_layers():
    act, tied = nn.ReLU(), nn.Linear(6, 6)
    net = nn.Sequential(tied, act, nn.Linear(6, 6), act, tied, act, nn.Linear(6, 2))
    data = (torch.randn(9, 6), torch.randint(2, (9,)))
    cured = residual(net, data)
    assert dict(cured.skips) == {"1": "0", "3": "2", "5": "4"}
    assert cured[0] is cured[4]
    assert torch.equal(cured(data[0]), net[-1](data[0]))


def test_residual_stops_before_what_changes_the_shape():
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 16),
    )
    data = torch.randn(8, 4, 8, 8), torch.randint(16, (8,))
    cured = residual(net, data)
    assert dict(cured.skips) == {"2": "0"}


def test_residual_leaves_the_output_alone():
    net = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid())
    with pytest.raises(DoesNotApply):
        residual(net, (torch.randn(8, 6), torch.rand(8, 6)))


def test_residual_leaves_what_overwrites_its_input():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x):
            return self.linear(x.tanh_())

    net = nn.Sequential(nn.Linear(4, 6), Block(), Block(), nn.Linear(6, 2))
    data = (torch.randn(8, 4), torch.randint(2, (8,)))
    cured = residual(net, data)  # not around the blocks, but around what is in them
    assert set(cured.state_dict()) - set(net.state_dict()) == {
        "1.linear.skip_alpha",
        "2.linear.skip_alpha",
    }
    F.cross_entropy(cured(data[0]), data[1]).backward()


class Called(nn.Module):
    """Layers as attributes, activations as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = F.relu(self.embed(x))
        x = F.relu(self.fc1(x))
        return self.head(F.relu(self.fc2(input=x)))


def test_residual_around_layers_that_a_forward_function_calls():
    net, data = Called(), task()
    cured = residual(net, data)
    new = set(cured.state_dict()) - set(net.state_dict())
    assert new == {"fc1.skip_alpha", "fc2.skip_alpha"}
    # a rectifier is the identity on what is rectified
    expected = net.head(F.relu(net.embed(data[0])))
    torch.testing.assert_close(cured(data[0]), expected)


def test_residual_around_attention_keeps_the_weights_it_returns():
    model, batch, loss = by_name("attention-only").build()
    cured = residual(model, batch)
    x = batch[0]
    out, weights = cured.attention[0](x, x, x)
    assert torch.equal(out, x)
    torch.testing.assert_close(weights, model.attention[0](x, x, x)[1])
    before = {f.code for f in sp.diagnose(model, batch, loss).findings}
    after = {f.code for f in sp.diagnose(cured, batch, loss).findings}
    assert "SP108" in before - after


@pytest.mark.parametrize("cure", [residual, highway])
@pytest.mark.parametrize("make", [lambda: stack(3), Called])
def test_a_skip_goes_along_with_copies(cure, make):
    net, data = make(), task()
    cured = cure(net, data)
    with torch.no_grad():
        for name, p in cured.named_parameters():
            if "alpha" in name:
                p.fill_(0.3)
    same_elsewhere(cured, data[0])


def test_a_hook_survives_the_next_one_in_another_process(monkeypatch):
    cured, (x, _) = residual(Called(), (data := task())), data
    sent, expected = pickle.dumps(cured), cured(x)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)  # as in a process that has just begun
    arrived = pickle.loads(sent)
    for module in arrived.modules():
        module.register_forward_hook(lambda *_: None)
    assert torch.equal(arrived(x), expected)


def test_a_slice_keeps_its_skips():
    cured = residual(stack(4), task(), start="scaled")
    part = cured[1:5]
    assert dict(part.skips) == {"2": "1", "4": "3"}
    x = torch.randn(3, WIDTH)
    assert torch.equal(cured[5:](part(cured[:1](y := torch.randn(3, 5)))), cured(y))
    assert part.get_parameter("alpha_1") is cured.get_parameter("alpha_1")
    assert torch.equal(cured[2](x), torch.tanh(x))


def test_names_of_children_are_free():
    net = nn.Sequential(
        OrderedDict(a=nn.Linear(4, 4), act=nn.Tanh(), b=nn.Linear(4, 4), out=nn.Tanh()),
    )
    cured = residual(
        nn.Sequential(net, nn.Linear(4, 2)), (torch.randn(8, 4), torch.zeros(8).long())
    )
    assert set(cured[0].state_dict()) > {"alpha_a", "alpha_b"}


@pytest.mark.parametrize("options", [{"start": "zero"}, {"layers": 0}, {"layers": 1.5}])
def test_residual_refuses(options):
    with pytest.raises(SignalpropError, match="has to be"):
        residual(stack(2), task(), **options)


# highway


def test_highway_is_the_gated_sum():
    net, data = stack(3), task()
    torch.manual_seed(1)
    cured = highway(net, data, bias=-2.0)
    x = net[0](data[0])
    for i in (1, 3, 5):
        w, b = cured.get_parameter(f"gate_weight_{i}"), cured.get_parameter(f"gate_bias_{i}")
        assert (b == -2.0).all()
        t = torch.sigmoid(x @ w.T + b)
        x = t * torch.tanh(net[i](x)) + (1 - t) * x
    torch.testing.assert_close(cured(data[0]), net[-1](x))


def test_highway_carries_half_of_the_signal_whatever_the_depth():
    cured = highway(stack(40), task())
    bias = cured.get_parameter("gate_bias_1")[0].item()
    assert (1 / (1 + math.exp(bias))) ** 40 == pytest.approx(0.5, rel=1e-4)


def test_highway_gate_of_a_convolution():
    net = nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 2)
    )
    data = torch.randn(8, 6, 4, 4), torch.randint(2, (8,))
    cured = highway(net, data)
    w, b = cured.get_parameter("gate_weight_0"), cured.get_parameter("gate_bias_0")
    assert w.shape == (6, 6, 1, 1)
    t = torch.sigmoid(torch.einsum("oi,nihw->nohw", w[..., 0, 0], data[0]) + b[:, None, None])
    y = t * F.relu(net[0](data[0])) + (1 - t) * data[0]
    torch.testing.assert_close(cured(data[0]), net[3](y.flatten(1)))


def test_highway_refuses():
    with pytest.raises(SignalpropError, match="finite"):
        highway(stack(2), task(), bias=float("nan"))


def test_a_cure_of_a_training_leaves_the_model_alone():
    net, data = stack(3), task()
    recipe = Recipe.of(torch.optim.SGD(net.parameters(), lr=0.1), net)
    before = state.of_model(net)
    after = residual.with_options(start="scaled").treat(
        Training(net, F.cross_entropy, recipe), data
    )
    assert state.of_model(net) == before
    assert after.lines == ("model = signalprop.cures.residual(model, data, start='scaled')",)
    held = {id(p) for group in recipe.build(after.model).param_groups for p in group["params"]}
    assert held == {id(p) for p in after.model.parameters()}


# everywhere

EXPECTED = {
    residual: {"mlp-sigmoid-30", "attention-only", "bf16", "data-parallel", "compiled", "unet"},
    highway: {"mlp-tanh-30-default", "attention-only", "autocast-bf16", "weight-norm"},
}


@pytest.mark.parametrize("cure", EXPECTED, ids=lambda cure: cure.name)
def test_on_all_cases(cure):
    assert on_all_cases(cure) >= EXPECTED[cure]
