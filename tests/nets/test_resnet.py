import math

import pytest
import torch
from tests.nets.support import checked, nudge, on_meta, ordinary, through
from torch import nn

from signalprop.nets import ResidualConv2d, ResNet

DOUBLE = {"dtype": torch.float64}
SHAPES = {
    "conv, down": (lambda **k: ResidualConv2d(2, 3, stride=2, depth=5, **k), (3, 2, 5, 4)),
    "conv, padded": (
        lambda **k: ResidualConv2d(2, 3, stride=2, shortcut="pad", depth=5, **k),
        (3, 2, 5, 4),
    ),
    "net": (lambda **k: ResNet(8, 4, widths=(2, 3, 4), **k), (3, 3, 8, 8)),
}


@pytest.mark.parametrize("branch", [None, "skipinit", "fixup", 0.25])
@pytest.mark.parametrize("kind", "AB")
@pytest.mark.parametrize("name", ["conv, down", "net"])
def test_it_is_an_ordinary_module(name, kind, branch):
    make, shape = SHAPES[name]
    x = torch.randn(shape)
    ordinary(lambda: make(kind=kind, branch=branch), x)
    on_meta(lambda **k: make(kind=kind, branch=branch, **k), x)


@pytest.mark.parametrize("branch", [0.25, "fixup"])
@pytest.mark.parametrize("kind", "AB")
@pytest.mark.parametrize("name", ["conv, down", "conv, padded"])
def test_gradients_are_those_of_finite_differences(name, kind, branch):
    make, shape = SHAPES[name]
    checked(nudge(make(kind=kind, branch=branch, **DOUBLE), 0.3), torch.randn(shape))


def test_a_projection_sees_what_the_branch_sees():
    x = torch.randn(2, 3, 5, 5, **DOUBLE)
    for kind, seen in (("A", x), ("B", x.clamp(min=0))):
        block = ResidualConv2d(3, 4, kind=kind, stride=2, branch="rezero", **DOUBLE)
        w = block.project.weight
        want = torch.einsum("oi,bihw->bohw", w.weight[:, :, 0, 0], seen[..., ::2, ::2])
        torch.testing.assert_close(block(x), want.clamp(min=0) if kind == "A" else want)


def test_a_padded_skip_takes_every_second_pixel_and_has_no_parameters():
    block = ResidualConv2d(2, 5, kind="B", stride=2, shortcut="pad", branch="rezero")
    x = torch.randn(2, 2, 5, 4)
    y = block(x)
    assert y.shape == (2, 5, 3, 2)
    assert torch.equal(y[:, :2], x[..., ::2, ::2])
    assert not y[:, 2:].any()
    assert block.project is None


def test_fixup_learns():
    net = ResNet(8, branch="fixup", widths=(4, 8, 8))
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(10))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.03


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85), (110, 1.7)])
def test_parameters_are_those_of_the_papers_table(depth, millions):
    net = ResNet(depth, shortcut="pad", device="meta")
    count = sum(p.numel() for p in net.parameters())
    assert round(count / 1e6, 2 if depth < 100 else 1) == pytest.approx(millions, abs=0.011)
    weights = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weights) == depth


def test_stages_halve_the_image():
    net = ResNet(14, kind="B", widths=(4, 6, 8))
    states, _ = through(net.blocks, net.first(torch.randn(2, 3, 9, 12)))
    assert [tuple(s.shape[1:]) for s in states[1::2]] == [(4, 9, 12), (6, 5, 6), (8, 3, 3)]
    assert ResNet(8, 7, in_channels=1)(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    assert ResNet(6, 7, widths=(4, 4))(torch.randn(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ResidualConv2d(4, 3, shortcut="pad"), "cannot go from 4 to 3 channels"),
        (lambda: ResidualConv2d(4, shortcut="none"), "shortcut has to be 'projection' or 'pad'"),
        (lambda: ResidualConv2d(4, kernel_size=2), "kernel_size has to be odd"),
        (lambda: ResidualConv2d(4, stride=0), "stride has to be a whole number"),
        (lambda: ResNet(18), "depth has to be 6n . 2 with n >= 1, for example 20, not 18"),
        (lambda: ResNet(2), "for example 8, not 2"),
        (lambda: ResNet(widths=()), "widths has to name"),
        (lambda: ResNet(widths=(4, 0, 4)), "widths has to be a whole number"),
    ],
)
def test_bad_arguments_are_one_sentence(make, said):
    with pytest.raises(ValueError, match=said):
        make()
