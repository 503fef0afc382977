"""The range test on a problem that can be solved."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.cures.program.programs import data, quadratic, tuned
from torch import nn

from signalprop.cures.program.range_test import race, range_test
from signalprop.cures.training import Recipe, Training


def test_the_range_test_finds_the_stability_bound():
    before, batch, bound = quadratic(1.0)
    seen = range_test(before, batch, low=bound / 1e4, high=bound * 1e3, updates=80)
    assert seen.diverged is not None
    # the running mean needs a few updates to notice, each of them a factor 1.22
    assert bound < seen.diverged < 10 * bound
    assert seen.steepest is not None
    assert bound / 1e3 < seen.steepest < bound
    ratio = seen.rates[1] / seen.rates[0]
    assert ratio == pytest.approx(1e7 ** (1 / 79))
    again_ = range_test(before, batch, low=bound / 1e4, high=bound * 1e3, updates=80)
    assert again_ == seen


def test_dropout_draws_the_same_in_every_run():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    before, batch = tuned(model=model), data()
    assert race(before, batch, 0.1, 5) == race(before, batch, 0.1, 5)
    lbfgs = Training(model, F.mse_loss, Recipe.of(torch.optim.LBFGS(model.parameters()), model))
    assert math.isfinite(race(lbfgs, batch, 0.1, 2))
