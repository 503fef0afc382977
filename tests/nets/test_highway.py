import math

import pytest
import torch
import torch.nn.functional as F
from tests.nets.support import checked, nudge, on_meta, ordinary, ratio, through
from torch import nn

from signalprop.nets import Highway, HighwayConv1d, HighwayConv2d, HighwayNet, gate_bias_for

DOUBLE = {"dtype": torch.float64}
MADE = {
    "dense": (lambda **k: Highway(5, **k), (3, 5)),
    "conv1d": (lambda **k: HighwayConv1d(4, 3, dilation=2, groups=2, **k), (2, 4, 7)),
    "conv2d": (lambda **k: HighwayConv2d(2, 3, padding_mode="circular", **k), (2, 2, 4, 5)),
    "net": (lambda **k: HighwayNet(6, 5, 3, 2, **k), (3, 6)),
}


@pytest.mark.parametrize("name", MADE)
def test_it_is_an_ordinary_module(name):
    make, shape = MADE[name]
    x = torch.randn(shape)
    ordinary(make, x)
    on_meta(make, x)


@pytest.mark.parametrize("name", MADE)
def test_gradients_are_those_of_finite_differences(name):
    make, shape = MADE[name]
    checked(nudge(make(activation=torch.tanh, **DOUBLE)), torch.randn(shape))


def test_a_layer_is_the_equation():
    layer = nudge(Highway(4, activation=torch.tanh, gate_bias=-2.0, **DOUBLE))
    x = torch.randn(7, 4, **DOUBLE)
    h, g = layer.transform, layer.gate
    for row, y in zip(x, layer(x), strict=True):
        t = 1 / (1 + torch.exp(-(g.weight @ row + g.bias)))
        want = torch.tanh(h.weight @ row + h.bias) * t + row * (1 - t)
        torch.testing.assert_close(y, want, rtol=1e-13, atol=0)


def test_a_convolution_is_the_equation_at_every_pixel():
    layer = nudge(HighwayConv2d(3, 1, activation=torch.tanh, **DOUBLE))
    dense = Highway(3, activation=torch.tanh, **DOUBLE)
    with torch.no_grad():
        for name in ("transform", "gate"):
            ours, theirs = getattr(dense, name), getattr(layer, name)
            ours.weight.copy_(theirs.weight[:, :, 0, 0])
            ours.bias.copy_(theirs.bias)
    x = torch.randn(2, 3, 4, 5, **DOUBLE)
    torch.testing.assert_close(layer(x), dense(x.movedim(1, -1)).movedim(-1, 1))


def test_closed_gates_carry_and_open_gates_transform():
    x = torch.randn(3, 4)
    assert torch.equal(Highway(4, gate_bias=-200.0)(x), x)
    layer = Highway(4, gate_bias=200.0)
    torch.testing.assert_close(layer(x), F.relu(layer.transform(x)))


@pytest.mark.parametrize("depth", [1, 10, 50, 100])
@pytest.mark.parametrize("bias", [-1.0, -2.0, -4.0])
def test_the_carry_passes_one_minus_sigmoid_to_the_power_of_depth(depth, bias):
    layers = HighwayNet(4, 6, depth, 2, gate_bias=bias, **DOUBLE).layers
    for layer in layers:
        nn.init.zeros_(layer.gate.weight)
        nn.init.zeros_(layer.transform.weight)
    _, deltas = through(layers, torch.randn(3, 6, **DOUBLE))
    assert ratio(deltas) == pytest.approx((1 - 1 / (1 + math.exp(-bias))) ** depth, rel=1e-12)


@pytest.mark.parametrize("bias", [-4.0, -6.0])
def test_with_its_random_weights_a_net_passes_about_that(bias):
    net = HighwayNet(20, 50, 100, 2, activation=torch.tanh, gate_bias=bias, **DOUBLE)
    state = torch.tanh(net.first(torch.randn(64, 20, **DOUBLE)))
    _, deltas = through(net.layers, state)
    expected = (1 - 1 / (1 + math.exp(-bias))) ** 100
    assert 0.6 * expected < ratio(deltas) < 1.3 * expected


@pytest.mark.parametrize("carry", [1e-300, 0.01, 0.5, 0.999999])
@pytest.mark.parametrize("depth", [1, 7, 1000, 10**6])
def test_the_gate_bias_solves_its_equation(depth, carry):
    b = gate_bias_for(depth, carry)
    # ln(1 - sigmoid(b)) = -ln(1 + e^b)
    log_carry = -b if b > 50 else -math.log1p(math.exp(b))
    assert depth * log_carry == pytest.approx(math.log(carry), rel=1e-9)


def test_gate_biases_of_known_depths():
    assert gate_bias_for(100) == pytest.approx(-4.968, abs=1e-3)
    assert gate_bias_for(50, (1 - 1 / (1 + math.exp(2))) ** 50) == pytest.approx(-2.0)
    assert HighwayNet(2, 3, 100, 2).layers[5].gate.bias[0].item() == pytest.approx(-4.968, abs=1e-3)
    assert HighwayNet(2, 3, 1, 2).layers[0].gate.bias[0].item() == -1.0
    assert HighwayNet(2, 3, 9, 2, gate_bias=-3.0).layers[0].gate.bias[0].item() == -3.0


def test_weights_start_after_he():
    for layer, fan in (
        (Highway(400), 400),
        (HighwayConv2d(60, 3), 540),
        (HighwayConv1d(60, 5), 300),
    ):
        for part, bias in ((layer.transform, 0.0), (layer.gate, -1.0)):
            assert part.weight.var().item() == pytest.approx(2 / fan, rel=0.05)
            assert part.bias.unique().tolist() == [bias]


def test_every_layer_has_its_own_copy_of_an_activation_with_parameters():
    net = HighwayNet(3, 4, 2, 2, activation=nn.PReLU())
    assert sum(isinstance(m, nn.PReLU) for m in net.modules()) == 3
    assert net.layers[0].activation is not net.layers[1].activation


def test_it_says_what_it_is():
    assert "gate_bias=-2, activation=tanh" in repr(Highway(3, activation=torch.tanh, gate_bias=-2))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Highway(0), "width has to be a whole number of at least 1, not 0"),
        (lambda: Highway(2.5), "width has to be a whole number"),
        (lambda: Highway(3, gate_bias=math.nan), "gate_bias has to be a finite number"),
        (lambda: Highway(3, activation="relu"), "activation has to be a function"),
        (lambda: HighwayConv2d(3, 2), "kernel_size has to be odd"),
        (lambda: HighwayConv2d(3, groups=2), "channels .3. has to be divisible by groups .2."),
        (lambda: HighwayConv1d(3, dilation=0), "dilation has to be a whole number"),
        (lambda: HighwayConv1d(3, padding_mode="mirror"), "padding_mode"),
        (lambda: HighwayNet(3, 4, 0, 2), "depth has to be a whole number"),
        (lambda: HighwayNet(3, 4, True, 2), "depth has to be a whole number"),
        (lambda: gate_bias_for(10, 1.0), "carry has to lie between 0 and 1"),
        (lambda: gate_bias_for(0), "depth has to be a whole number"),
    ],
)
def test_bad_arguments_are_one_sentence(make, said):
    with pytest.raises(ValueError, match=said):
        make()
