"""Cures of parameters without a gradient; and what only the user can repair."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name
from tests.cures.program.programs import adam as adam_of
from torch import nn

import signalprop as sp
from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program.gradient import freeze, guard_operation, reconnect
from signalprop.cures.program.modes import train_mode
from signalprop.cures.training import Recipe, Training


def case_of(name):
    model, data, loss = by_name(name).build()
    return Training(model, loss, Recipe(adam_of)), data


def test_the_finding_is_gone():
    before, data = case_of("left-in-eval")
    after = train_mode.treat(before, data)
    assert "SP208" not in {f.code for f in sp.diagnose(after.model, data, after.loss).findings}
    for name in ("unused-parameter", "detached-encoder"):
        before, data = case_of(name)
        after = freeze.treat(before, data)
        assert "SP201" not in {f.code for f in sp.diagnose(after.model, data, after.loss).findings}
        namespace = {"model": copy.deepcopy(before.model)}
        for line in after.lines:
            exec(line, namespace)
        frozen = [n for n, p in after.model.named_parameters() if not p.requires_grad]
        assert frozen
        assert frozen == [
            n for n, p in namespace["model"].named_parameters() if not p.requires_grad
        ]


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.idle = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.experts[0](x)


def test_experts_that_others_choose_stay():
    data = torch.randn(8, 4), torch.randn(8, 4)
    after = freeze.treat(Training(Experts(), F.mse_loss, Recipe(adam_of)), data)
    assert [n for n, p in after.model.named_parameters() if not p.requires_grad] == ["idle"]
    assert after.lines == ("model.get_parameter('idle').requires_grad_(False)",)
    with pytest.raises(DoesNotApply, match="every trained parameter"):
        freeze.treat(Training(nn.Linear(4, 4), F.mse_loss, Recipe(adam_of)), data)


@pytest.mark.parametrize(
    ("cure", "name", "told"),
    [
        (reconnect, "detached-encoder", "'head' reads a tensor detached"),
        (reconnect, "unused-parameter", "'forgotten': never called"),
        (reconnect, "nan-data", "gets a gradient"),
        (guard_operation, "nan-gradient", "no finite slope"),
        (guard_operation, "own-softmax-overflows", "first to put out"),
        (guard_operation, "softmax-cross-entropy", "are finite"),
    ],
)
def test_what_only_the_user_can_repair(cure, name, told):
    with pytest.raises(DoesNotApply, match=told):
        cure.treat(*case_of(name))
