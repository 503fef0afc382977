"""Cures of the learning rate against the bound of stability."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name
from tests.cures.program.programs import data, quadratic, tuned
from torch.utils.data import DataLoader, TensorDataset

import signalprop as sp
from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program import rate
from signalprop.cures.program.range_test import race
from signalprop.cures.training import Recipe, Training


@pytest.mark.parametrize("times", [3.0, 1e3])
def test_a_rate_above_the_bound_is_lowered(times):
    before, batch, bound = quadratic(0.0)
    before = tuned(lr=times * bound, model=before.model)
    after = rate.lower_learning_rate.treat(before, batch)
    assert bound / 300 < after.optimizer.rate < bound
    assert after.lines == (f"optimizer = {after.optimizer.line}",)
    assert race(after, batch, after.optimizer.rate, 60) < 1.0
    assert race(before, batch, before.optimizer.rate, 60) == math.inf or times < 10


def test_a_rate_below_is_raised():
    before, batch, bound = quadratic(1e-9)
    after = rate.raise_learning_rate.treat(before, batch)
    assert bound / 300 < after.optimizer.rate < bound
    again_ = rate.raise_learning_rate.treat(before, batch)
    assert again_.optimizer.rate == after.optimizer.rate
    nothing = tuned(lr=0.0, model=before.model)
    assert rate.raise_learning_rate.treat(nothing, batch).optimizer.rate > bound / 300


def test_a_good_rate_stays():
    before, batch, bound = quadratic(0.0)
    good = tuned(lr=bound / 2, model=before.model)
    for cure in (rate.lower_learning_rate, rate.raise_learning_rate):
        with pytest.raises(DoesNotApply, match="does better"):
            cure.treat(good, batch)


def test_groups_keep_their_ratios_and_a_loader_is_walked_through():
    x, y = data(128)
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    model = tuned().model
    groups = [
        {"params": model[0].parameters(), "lr": 1e-7},
        {"params": model[2].parameters(), "lr": 1e-6},
    ]
    before = Training(model, F.mse_loss, Recipe.of(torch.optim.SGD(groups, lr=1.0), model))
    after = rate.raise_learning_rate.treat(before, loader)
    low, high = (g.options["lr"] for g in after.optimizer.groups)
    assert high / low == pytest.approx(10)
    assert high > 1e-3


@pytest.mark.parametrize("name", ["learning-rate-too-large", "learning-rate-too-small"])
def test_the_finding_is_gone(name):
    case = by_name(name)
    model, batch, loss = case.build()
    before = Training(model, loss, Recipe.of(case.optimizer(model), model))
    large = "large" in name
    cure = rate.lower_learning_rate if large else rate.raise_learning_rate
    after = cure.treat(before, batch)
    made = after.optimizer.build(after.model)
    found = sp.diagnose(after.model, batch, loss, optimizer=made).findings
    assert not case.expect & {f.code for f in found}
    assert case.expect & set(cure.treats)
