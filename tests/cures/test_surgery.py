"""Replacing modules: what changes, and that everything else stays."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from signalprop.cures.surgery import copied, fitted, operate
from signalprop.errors import SignalpropError


def selu(name, module):
    return nn.SELU() if isinstance(module, nn.ReLU) else None


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_what_is_asked_for_and_replaced():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), nn.ReLU())
    before, asked = state(net), []

    def change(name, module):
        asked.append(name)
        return selu(name, module)

    after = operate(net, change)
    assert asked == ["", "0", "1", "1.0", "1.1", "2"]
    assert [type(m) for m in after.modules() if not list(m.children())] == [
        nn.Linear, nn.SELU, nn.Linear, nn.SELU,
    ]  # fmt: skip
    assert isinstance(net[2], nn.ReLU)
    assert same(state(net), before)
    assert same(state(after), before)
    shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in after.parameters()}
    assert not shared


def test_in_place_is_the_same_object():
    net = nn.Sequential(nn.ReLU(), nn.ReLU())
    assert operate(net, selu, inplace=True) is net
    assert isinstance(net[1], nn.SELU)
    assert operate(net, lambda name, module: module, inplace=True) is net


def test_the_root_itself():
    net = nn.ReLU().eval()
    for inplace in (False, True):
        after = operate(net, selu, inplace=inplace)
        assert isinstance(after, nn.SELU)
        assert not after.training
    assert isinstance(net, nn.ReLU)


def test_what_is_inside_a_replaced_module_is_not_asked_for():
    asked = []

    def change(name, module):
        asked.append(name)
        return nn.Sequential(nn.ReLU(), module) if name == "0" else None

    operate(nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU()), change)
    assert asked == ["", "0", "1"]


def test_a_module_used_twice_is_replaced_in_both_places():
    relu, layer = nn.ReLU(), nn.Linear(4, 4)
    net = nn.Sequential(layer, relu, nn.Sequential(layer, relu))
    made = []

    def change(name, module):
        if isinstance(module, nn.ReLU):
            made.append(name)
            return nn.Tanh()
        return None

    after = operate(net, change)
    assert made == ["1"]
    assert after[1] is after[2][1]
    assert after[0] is after[2][0]
    assert after[0].weight is after[2][0].weight


def test_tied_weights_stay_tied():
    net = nn.ModuleDict({"table": nn.Embedding(7, 4), "act": nn.ReLU(), "head": nn.Linear(4, 7)})
    net["head"].weight = net["table"].weight
    after = operate(net, selu)
    assert after["head"].weight is after["table"].weight
    assert list(after.state_dict()) == list(net.state_dict())


def test_ties_inside_what_is_new():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double()
    new = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    new[1].weight = new[0].weight
    after = operate(net, lambda name, _: new if name == "1" else None)
    assert after[1][0].weight is after[1][1].weight
    assert after[1][0].weight.dtype == torch.float64


class Itself(nn.Module):
    """A module that holds itself."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.me = self
        self.nothing = None
        self.register_module("none", None)


def test_a_module_that_holds_itself():
    after = operate(Itself(), selu)
    assert after.me is after
    assert isinstance(after.act, nn.SELU)
    assert after.none is None


def test_dtype_device_and_mode_are_those_of_the_old_module():
    net = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), nn.ReLU(), nn.Linear(4, 4)).eval()

    def change(name, module):
        if name == "0":
            return nn.BatchNorm1d(4)
        return nn.Sequential(nn.PReLU(), nn.Dropout()) if name == "1" else None

    after = operate(net, change)
    assert after[0].weight.dtype == after[0].running_mean.dtype == torch.float64
    assert after[0].num_batches_tracked.dtype == torch.int64
    assert after[1][0].weight.dtype == torch.float64  # no tensors of its own: the root's first
    assert not any(m.training for m in after.modules())
    meta = nn.Sequential(nn.Linear(4, 4, device="meta"))
    meta = operate(meta, lambda name, _: nn.Linear(4, 4) if name else None)
    assert meta[0].weight.is_meta


def test_a_new_recurrent_layer_computes_in_the_dtype_of_the_old_one():
    net = nn.Sequential(nn.RNN(3, 5, batch_first=True)).double()
    after = operate(net, lambda name, _: nn.LSTM(3, 5, batch_first=True) if name else None)
    output, _ = after(torch.randn(2, 4, 3, dtype=torch.float64))
    output.sum().backward()
    assert output.dtype == torch.float64
    assert after[0].weight_hh_l0.grad is not None


class Around(nn.Module):
    """Something new around a module that was there."""

    def __init__(self, inner, scale=None):
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.ones(1)) if scale is None else scale

    def forward(self, x):
        return self.scale * self.inner(x)


def test_a_wrapper_leaves_what_it_wraps_alone():
    inner = nn.Sequential(nn.Linear(4, 4).bfloat16(), nn.Dropout()).eval()
    inner[1].train()
    inner[0].weight.grad = torch.ones_like(inner[0].weight)
    root = nn.Sequential(nn.Linear(4, 4).double(), inner)
    new = fitted(Around(inner), inner, root)
    assert new.scale.dtype == torch.bfloat16
    assert not new.training
    assert [m.training for m in inner.modules()] == [False, False, True]
    assert inner[0].weight.grad.dtype == torch.bfloat16

    # a parameter of the old module keeps a dtype that is not the first one's
    odd = nn.Linear(4, 4).double()
    odd.bias = nn.Parameter(torch.zeros(4))
    odd.bias.grad = torch.ones(4)
    bias = odd.bias
    after = fitted(Around(nn.ReLU(), bias), odd, odd)
    assert after.scale is bias
    assert bias.dtype == bias.grad.dtype == torch.float32


def test_hooks_buffers_and_gradient_flags_stay():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    net[2].weight.requires_grad_(False)
    calls = []
    net[2].register_forward_hook(lambda *_: calls.append(1))
    net(torch.randn(8, 4))
    after = operate(net, selu)
    assert torch.equal(after[0].running_mean, net[0].running_mean)
    assert not after[2].weight.requires_grad
    assert after[2].bias.requires_grad
    after(torch.randn(8, 4))
    assert len(calls) == 2


def test_frozen_and_integer_parameters_of_what_is_new():
    new = nn.Linear(4, 4)
    new.weight.requires_grad_(False)
    after = fitted(new, nn.Linear(4, 4).double(), nn.Identity())
    assert not after.weight.requires_grad
    assert after.weight.dtype == torch.float64


class Locked(nn.Module):
    """torch cannot copy it."""

    def __init__(self):
        super().__init__()
        self.lock, self.act = threading.Lock(), nn.ReLU()


def test_what_cannot_be_copied_is_said_and_can_be_changed_in_place():
    net = Locked()
    with pytest.raises(SignalpropError, match=r"cannot be copied .* pass inplace=True"):
        operate(net, selu)
    assert isinstance(net.act, nn.ReLU)
    assert isinstance(operate(net, selu, inplace=True).act, nn.SELU)


def test_a_copy_has_its_own_tensors():
    net = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    net[1].weight = net[0].weight
    twin = copied(net)
    assert twin[1].weight is twin[0].weight
    assert twin[0].weight is not net[0].weight
    assert same(state(twin), state(net))


def test_an_error_on_the_way_leaves_the_original():
    net = nn.Sequential(nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
    before, words = state(net), str(net)

    def change(name, module):
        if name == "2":
            raise ValueError("no")
        return selu(name, module)

    with pytest.raises(ValueError, match="no"):
        operate(net, change)
    assert str(net) == words
    assert same(state(net), before)
