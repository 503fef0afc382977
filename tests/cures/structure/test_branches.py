"""Branches of residual networks: scaled, or zero at the start."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name
from tests.cures.everywhere import on_all_cases
from torch import nn

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.structure.branches import residual_scaling, rezero
from signalprop.errors import SignalpropError


def task(n: int = 16, width: int = 8):
    return torch.randn(n, width), torch.randint(3, (n,))


class Pre(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
            for _ in range(blocks)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_residual_scaling_scales_every_branch():
    net, data = Pre(9), task()
    cured = residual_scaling(net, data)
    for old, new in zip(net.blocks, cured.blocks, strict=True):
        torch.testing.assert_close(new(data[0]), old(data[0]) / 3)
        assert torch.equal(new[1].weight, old[1].weight)
    other = residual_scaling(net, data, scale=0.1)
    torch.testing.assert_close(other.blocks[4](data[0]), 0.1 * net.blocks[4](data[0]))


def test_residual_scaling_of_gpt2_is_the_papers():
    model, batch, _ = by_name("gpt2").build()
    cured = residual_scaling(model, batch)
    changed = {
        name
        for (name, a), b in zip(model.named_parameters(), cured.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    # biases are zero
    expected = {
        f"transformer.h.{i}.{part}.c_proj.weight" for i in range(4) for part in ("attn", "mlp")
    }
    assert changed == expected
    old = model.transformer.h[1].mlp.c_proj.weight
    torch.testing.assert_close(cured.transformer.h[1].mlp.c_proj.weight, old / math.sqrt(2 * 4))


@pytest.mark.parametrize("name", ["transformer-encoder-pre", "resnet-a", "weights-normed"])
def test_residual_scaling_acts_through_normalisation_attention_and_parametrisation(name):
    if name == "weights-normed":
        model, batch = Pre(4), task()
        for block in model.blocks:
            nn.utils.parametrizations.weight_norm(block[3])
        ends, scale = ["blocks.0.3.weight", "blocks.0.3.bias"], 0.5
    elif name == "resnet-a":
        model, batch, _ = by_name(name).build()
        ends, scale = ["layers.0.0.bn2.weight"], 3**-0.5
    else:
        model, batch, _ = by_name(name).build()
        ends = [f"encoder.layers.1.{p}.weight" for p in ("self_attn.out_proj", "linear2")]
        scale = 6**-0.5
    cured = residual_scaling(model, batch)

    def at(net: nn.Module, path: str):
        parent, _, key = path.rpartition(".")
        return getattr(net.get_submodule(parent), key)

    for end in ends:
        torch.testing.assert_close(at(cured, end), scale * at(model, end))


def test_rezero_makes_every_block_the_identity():
    net, data = Pre(5), task()
    cured = rezero(net, data)
    assert torch.equal(cured(data[0]), net.head(data[0]))
    with pytest.raises(DoesNotApply, match="already"):
        rezero(cured, data)
    F.cross_entropy(cured(data[0]), data[1]).backward()
    assert all(block[3].weight.grad.abs().sum() > 0 for block in cured.blocks)


def test_rezero_of_batchnorm():
    model, batch, _ = by_name("resnet-20").build()
    cured = rezero(model, batch)
    block, x = cured.layers[0][1], torch.randn(4, 16, 8, 8)
    assert torch.equal(block(x), x.relu())


def test_branches_that_could_not_leave_zero_are_left_alone():
    class Rectified(Pre):
        def forward(self, x):
            for block in self.blocks:
                x = x + F.relu(block(x))
            return self.head(x)

    with pytest.raises(DoesNotApply, match="could not leave"):
        rezero(Rectified(3), task())
    net = Rectified(4)
    cured = residual_scaling(net, task())
    x = torch.randn(5, 8)
    torch.testing.assert_close(F.relu(cured.blocks[0](x)), 0.5 * F.relu(net.blocks[0](x)))


def test_branch_cures_say_why_not():
    for cure in (residual_scaling, rezero):
        with pytest.raises(DoesNotApply, match="no residual additions"):
            cure(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), task())
    with pytest.raises(SignalpropError, match="above 0"):
        residual_scaling(Pre(2), task(), scale=-1.0)


# everywhere

EXPECTED = {
    residual_scaling: {"residual-mlp-grows", "gpt2", "llama", "bert", "t5", "vit", "resnet-b"},
    rezero: {"residual-mlp-grows", "gpt2", "transformer-encoder", "resnet-a", "checkpoint"},
}


@pytest.mark.parametrize("cure", EXPECTED, ids=lambda cure: cure.name)
def test_on_all_cases(cure):
    assert on_all_cases(cure) >= EXPECTED[cure]
