import math

import pytest
import torch
from tests.nets.support import checked, nudge, on_meta, ordinary, ratio, through
from torch import nn

from signalprop.nets import Residual, ResidualConv2d, ResidualNet, ResNet

DOUBLE = {"dtype": torch.float64}
BRANCHES = [None, "skipinit", "rezero", "fixup", 0.25]
SHAPES = {
    "dense": (lambda **k: Residual(4, depth=5, **k), (6, 4)),
    "dense, projected": (lambda **k: Residual(4, 6, layers=3, depth=5, **k), (6, 4)),
    "conv": (lambda **k: ResidualConv2d(2, depth=5, **k), (3, 2, 4, 5)),
    "net": (lambda **k: ResidualNet(5, 4, 2, 3, **k), (6, 5)),
}


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("kind", "AB")
@pytest.mark.parametrize("name", ["dense, projected", "net"])
def test_it_is_an_ordinary_module(name, kind, branch):
    make, shape = SHAPES[name]
    x = torch.randn(shape)
    ordinary(lambda: make(kind=kind, branch=branch), x)
    on_meta(lambda **k: make(kind=kind, branch=branch, **k), x)


@pytest.mark.parametrize("branch", [0.25, "skipinit", "fixup"])
@pytest.mark.parametrize("kind", "AB")
@pytest.mark.parametrize("name", ["dense, projected", "conv"])
def test_gradients_are_those_of_finite_differences(name, kind, branch):
    make, shape = SHAPES[name]
    checked(nudge(make(kind=kind, branch=branch, **DOUBLE), 0.3), torch.randn(shape))


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("kind", "AB")
def test_gradients_through_a_normalisation(kind, norm):
    checked(nudge(Residual(3, 4, kind=kind, norm=norm, **DOUBLE)), torch.randn(5, 3))
    checked(nudge(ResidualConv2d(2, kind=kind, norm=norm, **DOUBLE)), torch.randn(3, 2, 3, 3))


# ---- the equations, written out ------------------------------------------------------------------


def test_kind_a_rectifies_the_sum():
    block = nudge(Residual(4, kind="A", branch=0.5, **DOUBLE))
    x = torch.randn(9, 4, **DOUBLE)
    one, two = block.branch.weight1, block.branch.weight2
    inner = (x @ one.weight.T + one.bias).clamp(min=0) @ two.weight.T + two.bias
    torch.testing.assert_close(block(x), (x + 0.5 * inner).clamp(min=0), rtol=1e-13, atol=1e-15)


def test_kind_b_leaves_the_skip_alone():
    block = nudge(Residual(4, kind="B", branch=0.5, **DOUBLE))
    x = torch.randn(9, 4, **DOUBLE)
    one, two = block.branch.weight1, block.branch.weight2
    inner = (x.clamp(min=0) @ one.weight.T + one.bias).clamp(min=0) @ two.weight.T + two.bias
    torch.testing.assert_close(block(x), x + 0.5 * inner, rtol=1e-13, atol=1e-15)


def test_fixup_has_a_scalar_bias_before_every_layer_and_relu():
    x = torch.randn(9, 4, **DOUBLE)
    a = nudge(Residual(4, kind="A", branch="fixup", depth=3, **DOUBLE), 0.3)
    f = a.branch
    inner = (((x + f.before1.bias) @ f.weight1.weight.T) + f.shift1.bias).clamp(min=0)
    inner = (inner + f.before2.bias) @ f.weight2.weight.T * f.scale.alpha + f.after.bias
    torch.testing.assert_close(a(x), (x + inner).clamp(min=0), rtol=1e-13, atol=1e-15)
    assert sum(p.numel() for p in a.parameters() if p.dim() == 0) == 5
    b = nudge(Residual(4, kind="B", branch="fixup", depth=3, **DOUBLE), 0.3)
    f = b.branch
    inner = (x + b.enter.shift.bias).clamp(min=0) + f.before1.bias
    inner = (inner @ f.weight1.weight.T + f.shift1.bias).clamp(min=0) + f.before2.bias
    inner = inner @ f.weight2.weight.T * f.scale.alpha
    torch.testing.assert_close(b(x), x + inner, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("A", ["weight1", "norm1", "relu1", "weight2", "norm2"]),
        ("B", ["weight1", "norm1", "relu1", "weight2"]),
    ],
)
def test_where_the_normalisation_stands(kind, order):
    for block, batch, layer in (
        (lambda n: Residual(3, kind=kind, norm=n), nn.BatchNorm1d, nn.LayerNorm),
        (lambda n: ResidualConv2d(3, kind=kind, norm=n), nn.BatchNorm2d, nn.GroupNorm),
    ):
        assert [name for name, _ in block("auto").branch.named_children()] == order
        assert [name for name, _ in block("auto").enter.named_children()] == (
            ["norm", "relu"] if kind == "B" else []
        )
        assert isinstance(block("auto").branch.norm1, batch)
        assert isinstance(block("layer").branch.norm1, layer)
        assert block("auto").branch.weight1.bias is None
        assert not any("norm" in name for name, _ in block(None).named_modules())
        assert block(None).branch.weight1.bias is not None


# ---- how they start ------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", ["skipinit", "rezero", "fixup"])
@pytest.mark.parametrize("name", ["dense", "conv"])
def test_a_block_b_is_the_identity_at_the_start_and_a_on_what_is_not_negative(name, branch):
    make, shape = SHAPES[name]
    x = torch.randn(shape)
    assert torch.equal(make(kind="B", branch=branch)(x), x)
    a = make(kind="A", branch=branch)
    assert torch.equal(a(x), x.clamp(min=0))
    assert torch.equal(a(x.abs()), x.abs())


@pytest.mark.parametrize("branch", ["skipinit", "rezero", "fixup"])
def test_hundreds_of_blocks_of_b_pass_delta_unchanged(branch):
    net = ResidualNet(6, 8, 300, 2, branch=branch, **DOUBLE)
    states, deltas = through(net.blocks, torch.randn(5, 8, **DOUBLE))
    assert torch.equal(states[0], states[-1])
    assert torch.equal(deltas[0], deltas[-1])
    # in A a unit that is zero is switched off, once; what is left passes all blocks
    net = ResidualNet(6, 8, 300, 2, kind="A", branch=branch, **DOUBLE)
    states, deltas = through(net.blocks, torch.randn(5, 8, **DOUBLE))
    assert torch.equal(deltas[0], deltas[-1] * (states[0] > 0))


def test_zero_multipliers_learn_first_and_the_branch_after_them():
    net = ResidualNet(6, 8, 3, 2, branch="rezero")
    x = torch.randn(32, 6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    weight, alpha = net.blocks[1].branch.weight1.weight, net.blocks[1].branch.scale.alpha
    for step in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        assert alpha.grad.abs() > 0
        assert bool(weight.grad.any()) == (step == 1)
        optimizer.step()


@pytest.mark.parametrize(
    ("branch", "expected"), [(None, 2.0**12), (1 / math.sqrt(12), (1 + 1 / 12) ** 12)]
)
def test_the_variance_of_b_grows_by_one_plus_alpha_squared_per_block(branch, expected):
    grown = []
    for seed in range(6):
        torch.manual_seed(seed)
        net = ResidualNet(4, 300, 12, 2, branch=branch, norm=None, **DOUBLE)
        states, deltas = through(net.blocks, torch.randn(16, 300, **DOUBLE))
        grown.append(float(states[-1].square().mean() / states[0].square().mean()))
        # backward the same factor, in the mean square of delta
        grown.append(ratio(deltas) ** 2)
    assert sum(grown) / len(grown) == pytest.approx(expected, rel=0.15)


def test_with_normalisation_the_variance_of_b_grows_by_one_per_block():
    net = ResidualNet(4, 300, 20, 2, **DOUBLE)
    states, _ = through(net.blocks, torch.randn(64, 300, **DOUBLE))
    assert float(states[-1].square().mean()) == pytest.approx(21.0, rel=0.15)


def test_without_normalisation_a_grows_where_a_small_multiplier_holds_it():
    def growth(kind, branch):
        net = ResidualNet(4, 100, 30, 2, kind=kind, branch=branch, norm=None, **DOUBLE)
        return ratio(through(net.blocks, torch.randn(16, 100, **DOUBLE).clamp(min=0))[1])

    assert growth("A", None) > 1e3
    assert growth("B", None) > 1e3
    assert 0.3 < growth("A", 30**-0.5) < 3.0
    assert 1.0 < growth("B", 30**-0.5) < 3.0


@pytest.mark.parametrize(("layers", "power"), [(2, 1 / 2), (3, 1 / 4), (4, 1 / 6)])
def test_fixup_scales_the_weights_of_a_branch_by_its_rule(layers, power):
    block = Residual(200, branch="fixup", layers=layers, depth=16)
    for i in range(1, layers):
        weight = getattr(block.branch, f"weight{i}").weight
        assert weight.std().item() == pytest.approx(math.sqrt(2 / 200) * 16**-power, rel=0.02)
    assert not getattr(block.branch, f"weight{layers}").weight.any()
    assert block.branch.scale.alpha == 1.0


def test_fixup_of_networks_has_a_zero_head_and_the_networks_depth():
    for net in (ResidualNet(4, 200, 9, 3, branch="fixup"), ResNet(20, branch="fixup")):
        assert not net.head.weight.any()
        assert len(net.blocks) == 9
        weight = net.blocks[1].branch.weight1.weight
        fan = weight[0].numel()
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan) / 3, rel=0.05)
        assert len(net.blocks[1].branch) == 7 + (net.plan.kind == "A")


def test_weights_start_after_he():
    block = ResidualConv2d(50, branch="skipinit")
    assert block.branch.weight1.weight.var().item() == pytest.approx(2 / 450, rel=0.05)
    assert not block.branch.weight1.bias.any()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Residual(3, kind="C"), "kind has to be 'A' .* or 'B'"),
        (lambda: Residual(3, branch="fixdown"), "branch has to be None, 'skipinit'"),
        (lambda: Residual(3, branch=True), "branch has to be None, 'skipinit'"),
        (lambda: Residual(3, branch=math.inf), "branch has to be a finite number"),
        (lambda: Residual(3, branch="rezero", norm="batch"), "do without norm='batch'"),
        (lambda: Residual(3, branch="fixup"), "'fixup' needs depth="),
        (lambda: Residual(3, norm="group"), "norm has to be 'auto', 'batch', 'layer' or None"),
        (lambda: Residual(3, layers=0), "layers has to be a whole number"),
        (lambda: Residual(3, 0), "out_features has to be a whole number"),
        (lambda: Residual(3, depth=0), "depth has to be a whole number"),
        (lambda: ResidualNet(3, 4, 0, 2), "depth has to be a whole number"),
    ],
)
def test_bad_arguments_are_one_sentence(make, said):
    with pytest.raises(ValueError, match=said):
        make()
