"""Cures of the optimizer: what it holds, and Adam in its place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.cures.program.programs import data, tuned

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program.optimizer import adam, rebuild_optimizer
from signalprop.cures.training import Group, Recipe, Training


def test_what_the_optimizer_misses_joins_the_largest_group():
    before = tuned(momentum=0.9)
    model = before.model
    part = Recipe.of(torch.optim.SGD(model[0].parameters(), lr=0.2, momentum=0.9), model)
    after = rebuild_optimizer.treat(Training(model, F.mse_loss, part), data())
    made = after.optimizer.build(after.model)
    held = {id(p) for group in made.param_groups for p in group["params"]}
    assert held == {id(p) for p in after.model.parameters()}
    assert after.lines == ("optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)",)
    none = Recipe(torch.optim.SGD, (Group((), {"lr": 0.2}),))
    after = rebuild_optimizer.treat(Training(model, F.mse_loss, none), data())
    assert len(after.optimizer.groups[0].names) == 4
    with pytest.raises(DoesNotApply, match="holds every"):
        rebuild_optimizer.treat(before, data())


def test_adam_in_place_of_sgd():
    model = tuned().model
    groups = [
        {"params": model[0].parameters(), "lr": 0.01, "weight_decay": 0.1},
        {"params": model[2].parameters()},
    ]
    recipe = Recipe.of(torch.optim.SGD(groups, lr=0.1, momentum=0.9), model)
    after = adam.treat(Training(model, F.mse_loss, recipe), data())
    made = after.optimizer.build(after.model)
    assert type(made) is torch.optim.Adam
    assert [g["lr"] for g in made.param_groups] == pytest.approx([1e-4, 1e-3])
    assert [g["weight_decay"] for g in made.param_groups] == [0.1, 0]
    with pytest.raises(DoesNotApply, match="already"):
        adam.treat(tuned(torch.optim.RMSprop), data())
