import math

import pytest
import torch
from tests.nets.support import checked, on_meta, ordinary, ratio, through
from torch import nn

from signalprop.nets import SelfNormalizing, SelfNormalizingConv2d, lecun_

DOUBLE = {"dtype": torch.float64}
MADE = {
    "dense": (lambda **k: SelfNormalizing(5, [6, 4], 3, **k), (4, 5)),
    "conv": (lambda **k: SelfNormalizingConv2d(2, [3, 4], 3, stride=[1, 2], **k), (3, 2, 4, 5)),
}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", MADE)
def test_it_is_an_ordinary_module(name, dropout):
    make, shape = MADE[name]
    x = torch.randn(shape)
    ordinary(lambda: make(dropout=dropout), x)
    on_meta(lambda **k: make(dropout=dropout, **k), x)


@pytest.mark.parametrize("name", MADE)
def test_gradients_are_those_of_finite_differences(name):
    make, shape = MADE[name]
    checked(make(**DOUBLE), torch.randn(shape))


def test_a_net_is_the_equation():
    net = SelfNormalizing(3, [5], 2, **DOUBLE)
    x = torch.randn(6, 3, **DOUBLE)
    layer = net.hidden[0].weight
    z = x @ layer.weight.T
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    h = scale * torch.where(z > 0, z, alpha * (z.exp() - 1))
    torch.testing.assert_close(net(x), h @ net.head.weight.T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_fifty_layers_keep_mean_zero_and_variance_one(dropout):
    net = SelfNormalizing(400, [400] * 50, 2, dropout=dropout, **DOUBLE)
    states, _ = through(net.hidden, torch.randn(200, 400, **DOUBLE))
    for state in states[1:]:
        assert abs(state.mean().item()) < 0.1
        assert state.var().item() == pytest.approx(1.0, abs=0.2)


def test_an_input_off_the_fixed_point_is_drawn_back_to_it():
    net = SelfNormalizing(400, [400] * 50, 2, **DOUBLE)
    states, _ = through(net.hidden, 0.8 * torch.randn(200, 400, **DOUBLE) + 0.1)
    assert states[0].square().mean() < 0.7
    assert states[-1].mean().item() == pytest.approx(0.0, abs=0.1)
    assert states[-1].var().item() == pytest.approx(1.0, abs=0.2)


def test_delta_grows_by_the_known_factor_per_layer():
    squares = []
    for seed in range(4):
        torch.manual_seed(seed)
        net = SelfNormalizing(300, [300] * 30, 2, **DOUBLE)
        _, deltas = through(net.hidden, torch.randn(64, 300, **DOUBLE))
        squares.append(ratio(deltas) ** 2)
    assert sum(squares) / 4 == pytest.approx(1.0716**30, rel=0.4)


@pytest.mark.parametrize("mode", ["replicate", "circular", "reflect"])
def test_convolutions_keep_mean_and_variance_up_to_the_border(mode):
    net = SelfNormalizingConv2d(3, [150] * 20, 2, padding_mode=mode)
    x = torch.randn(24, 3, 4, 4)
    states, _ = through(net.hidden, x)
    for part in (states[-1], states[-1][..., 0, 0]):
        assert part.mean().item() == pytest.approx(0.0, abs=0.15)
        assert part.var().item() == pytest.approx(1.0, abs=0.3)


def test_zeros_around_an_image_take_variance_at_its_corners():
    net = SelfNormalizingConv2d(3, [150] * 20, 2, padding_mode="zeros")
    states, _ = through(net.hidden, torch.randn(24, 3, 4, 4))
    assert states[-1][..., 0, 0].var().item() < 0.7


def test_strides_and_shapes():
    net = SelfNormalizingConv2d(1, [4, 5, 6], 3, stride=2, kernel_size=5)
    states, _ = through(net.hidden, torch.randn(2, 1, 9, 8))
    assert [tuple(s.shape[1:]) for s in states[1:]] == [(4, 5, 4), (5, 3, 2), (6, 2, 1)]
    assert SelfNormalizing(3, (4,), 2)(torch.randn(5, 7, 3)).shape == (5, 7, 2)


def test_dropout_is_alpha_dropout_and_off_by_default():
    net = SelfNormalizing(3, [4, 4], 2, dropout=0.05)
    rates = [m.p for m in net.modules() if isinstance(m, nn.AlphaDropout)]
    assert rates == [0.05, 0.05]
    assert not any(isinstance(m, nn.AlphaDropout) for m in SelfNormalizing(3, [4], 2).modules())
    x = torch.randn(4, 3)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


@pytest.mark.parametrize(
    ("layer", "fan"),
    [
        (nn.Linear(300, 200), 300),
        (nn.Conv2d(30, 200, 3), 270),
        (nn.Conv1d(40, 300, 5, groups=2), 100),
    ],
)
def test_lecun_has_variance_one_over_fan_in(layer, fan):
    assert lecun_(layer) is layer
    assert layer.weight.var().item() == pytest.approx(1 / fan, rel=0.05)
    assert not layer.bias.any()
    # normal, not uniform: the fourth moment tells
    standard = layer.weight / layer.weight.std()
    assert standard.pow(4).mean().item() == pytest.approx(3.0, rel=0.1)


def test_lecun_of_a_tensor_is_seeded_by_its_generator():
    first = lecun_(torch.empty(50, 20), generator=torch.Generator().manual_seed(4))
    again = lecun_(torch.empty(50, 20), generator=torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert first.var().item() == pytest.approx(1 / 20, rel=0.15)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SelfNormalizing(3, [], 2), "widths has to be a sequence of at least one"),
        (lambda: SelfNormalizing(3, 4, 2), "widths has to be a sequence"),
        (lambda: SelfNormalizing(3, [4, 0], 2), "every entry of widths has to be a whole number"),
        (
            lambda: SelfNormalizing(3, [4], 2, dropout=1.0),
            "dropout has to be at least 0",
        ),
        (lambda: SelfNormalizing(3, [4], 2, dropout=math.nan), "dropout has to be a finite number"),
        (lambda: SelfNormalizingConv2d(3, [4], 2, kernel_size=4), "kernel_size has to be odd"),
        (lambda: SelfNormalizingConv2d(3, [4], 2, stride=[1, 2]), "stride has 2 entries"),
        (lambda: SelfNormalizingConv2d(3, [4], 2, stride=0), "stride has to be a whole number"),
        (lambda: SelfNormalizingConv2d(3, [4], 2, padding_mode="mirror"), "padding_mode"),
    ],
)
def test_bad_arguments_are_one_sentence(make, said):
    with pytest.raises(ValueError, match=said):
        make()
