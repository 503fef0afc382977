"""Cures of modes and of parameters without a gradient."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from tests.cases import CASES, by_name
from torch import nn

import signalprop as sp
from signalprop.cures.cure import DoesNotApply
from signalprop.cures.modes import (
    eval_frozen,
    freeze,
    guard_operation,
    look,
    reconnect,
    train_mode,
)
from signalprop.cures.training import Recipe, Training
from signalprop.errors import SignalpropError


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def case_of(name):
    model, data, loss = by_name(name).build()
    return Training(model, loss, Recipe(adam)), data


def norms():
    return nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)),
    )


@pytest.mark.filterwarnings("ignore")
def test_on_all_networks():
    told, applied = [], set()
    for case in CASES:
        model, data, loss = case.build()
        state = pickle.dumps(model.state_dict())
        modes = [m.training for m in model.modules()]
        grads = [p.requires_grad for p in model.parameters()]
        before = Training(model, loss, Recipe(adam))
        for cure in (train_mode, eval_frozen, freeze):
            try:
                after = cure.treat(before, data)
            except SignalpropError as why:
                told.append(str(why))
                continue
            applied.add((case.name, cure.name))
            if cure is freeze:
                assert torch.isfinite(torch.tensor(look(after, data).trace.loss)), case.name
        assert pickle.dumps(model.state_dict()) == state
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == grads
    assert all(len(one) > 15 for one in told)
    assert {("left-in-eval", "train-mode"), ("unused-parameter", "freeze")} <= applied


def test_training_mode_spares_frozen_parts():
    model = norms().eval()
    model[0].requires_grad_(False)
    kept = copy.deepcopy(model)
    after = train_mode(model)
    assert [m.training for m in after[0].modules()] == [False] * 4
    assert [m.training for m in after[1].modules()] == [True] * 4
    assert after.training
    assert [m.training for m in model.modules()] == [m.training for m in kept.modules()]
    assert train_mode(model, inplace=True) is model
    with pytest.raises(DoesNotApply, match="already"):
        train_mode(model)


def test_frozen_parts_go_to_evaluation_mode():
    model = norms()
    with pytest.raises(DoesNotApply, match="requires_grad_"):
        eval_frozen(model)
    model[0].requires_grad_(False)
    after = eval_frozen(model)
    assert [m.training for m in after[0]] == [True, False, False]
    assert all(m.training for m in after[1])
    assert all(m.training for m in model.modules())
    every = eval_frozen(model, every=True)
    assert [m.training for m in every[1]] == [True, False, True]


def test_a_norm_without_weights_follows_what_is_around_it():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)))
    model[0][0].requires_grad_(False)
    assert not eval_frozen(model)[0][1].training


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
    after = freeze.treat(Training(Experts(), F.mse_loss, Recipe(adam)), data)
    assert [n for n, p in after.model.named_parameters() if not p.requires_grad] == ["idle"]
    assert after.lines == ("model.get_parameter('idle').requires_grad_(False)",)
    with pytest.raises(DoesNotApply, match="every trained parameter"):
        freeze.treat(Training(nn.Linear(4, 4), F.mse_loss, Recipe(adam)), data)


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
