"""Convolutions recorded for J v: the same numbers, at the price of a convolution."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from signalprop.jacobian.convolution import CheapConvolutions
from signalprop.jacobian.operator import End, Jacobian

KINDS = {
    "1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 9)),
    "2d": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 6, 5)),
    "2d dilated": (nn.Conv2d(4, 4, (3, 1), dilation=(2, 1), stride=(1, 2)), (4, 7, 6)),
    "2d same": (nn.Conv2d(4, 4, 3, padding="same"), (4, 6, 6)),
    "2d reflected": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (4, 6, 6)),
    "3d": (nn.Conv3d(2, 3, 2, bias=False), (2, 4, 3, 4)),
    "1d transposed": (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (4, 5)),
    "2d transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, dilation=2), (4, 4, 3)),
    "3d transposed": (nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 2)),
}


def passed(layer, shape, cheap, dtype=torch.float64):
    layer = copy.deepcopy(layer).to(dtype)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    x.requires_grad_()
    model = nn.Sequential(nn.Tanh(), layer, nn.Tanh())
    if not cheap:
        return layer, x, model(x)
    with CheapConvolutions():
        return layer, x, model(x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_as_torch(kind):
    (layer, x, y), (mine, x2, y2) = (passed(*KINDS[kind], cheap) for cheap in (False, True))
    assert torch.equal(y, y2)
    J, cheap = (Jacobian(End.at("y", b), End.at("x", a)) for a, b in ((x, y), (x2, y2)))
    v, u = torch.randn(3, J.columns, 4).double(), torch.randn(3, J.rows, 4).double()
    assert torch.allclose(J.apply(v), cheap.apply(v), atol=1e-12)
    assert torch.allclose(J.adjoint(u), cheap.adjoint(u), atol=1e-12)
    assert not mine.weight.grad
    assert layer.weight.requires_grad


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.convolutions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.convolutions += "convolution" in str(func)
        return func(*args, **(kwargs or {}))


def test_one_convolution_for_every_vector_forth_and_back():
    for cheap, least in ((True, 1), (False, 2)):
        _, x, y = passed(*KINDS["2d"], cheap)
        J = Jacobian(End.at("y", y), End.at("x", x))
        v = torch.randn(3, J.columns, 1).double()
        J.apply(v)  # makes the dual once
        with Counted() as counted:
            J.apply(v)
        assert counted.convolutions == 1 if cheap else counted.convolutions >= least


def test_under_autocast():
    layer, shape = KINDS["2d"]
    with torch.autocast("cpu", torch.bfloat16):
        _, x, y = passed(layer, shape, True, torch.float32)
    J = Jacobian(End.at("y", y), End.at("x", x))
    v, u = torch.randn(3, J.columns, 2), torch.randn(3, J.rows, 2)
    _, x, y = passed(layer, shape, False)
    truth = Jacobian(End.at("y", y), End.at("x", x))
    for found, exact in ((J.apply(v), truth.apply(v)), (J.adjoint(u), truth.adjoint(u))):
        assert (found - exact).norm() < 0.02 * exact.norm()


def test_what_is_no_batch_goes_torchs_way():
    with CheapConvolutions():
        assert nn.Conv2d(2, 3, 3)(torch.randn(2, 5, 5)).shape == (3, 3, 3)
        out = torch.conv2d(input=torch.randn(1, 2, 5, 5), weight=torch.randn(3, 2, 3, 3))
    assert out.shape == (1, 3, 3, 3)
