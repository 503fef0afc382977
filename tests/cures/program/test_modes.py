"""Cures of modes, and `freeze`, on every network."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tests.cases import CASES
from tests.cures.program.programs import adam as adam_of
from torch import nn

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program.gradient import freeze
from signalprop.cures.program.modes import eval_frozen, train_mode
from signalprop.cures.program.seen import look
from signalprop.cures.training import Recipe, Training
from signalprop.errors import SignalpropError


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
        before = Training(model, loss, Recipe(adam_of))
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
