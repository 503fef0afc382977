"""Warm-up, clipping and larger batches."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.cures.program.programs import data, tuned
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program.updates import clip_gradient, larger_batch, warm_up


def test_warm_up():
    after = warm_up.treat(tuned(), data())
    assert after.warmup == 100
    with pytest.raises(DoesNotApply, match="already"):
        warm_up.treat(after, data())
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    namespace = {"torch": torch, "optimizer": optimizer}
    exec(after.lines[0], namespace)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        namespace["warmup"].step()
    assert rates[0] == pytest.approx(0.005)
    assert rates[-1] == pytest.approx(0.5)
    assert rates[50] == pytest.approx(0.5 * (0.01 + 0.99 * 0.5), rel=1e-6)


def test_the_clip_is_the_median_norm():
    x, y = data(160)
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    before = tuned(torch.optim.Adam, 1e-3)
    after = clip_gradient.treat(before, loader)
    norms = []
    for xs, ys in loader:
        before.model.zero_grad()
        F.mse_loss(before.model(xs), ys).backward()
        squares = sum(float(p.grad.square().sum()) for p in before.model.parameters())
        norms.append(math.sqrt(squares))
    assert after.clip == pytest.approx(sorted(norms)[2], rel=0.05)
    with pytest.raises(DoesNotApply, match="already"):
        clip_gradient.treat(after, loader)


def test_the_clip_of_sgd_bounds_the_update():
    model = nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(6, 6), nn.Identity())])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    before = tuned(lr=0.1, model=model)
    after = clip_gradient.treat(before, (torch.randn(16, 6), torch.randn(16, 6)))
    size = math.sqrt(sum(float(p.detach().square().sum()) for p in model.parameters()))
    assert after.clip == pytest.approx(0.03 * size / 0.1, rel=0.05)


def test_batches_are_put_together():
    x, y = data(3)
    after = larger_batch.treat(tuned(), (x, y))
    assert after.merge == 11
    assert "batch_size=33" in after.lines[0]
    with pytest.raises(DoesNotApply, match="33 samples already"):
        larger_batch.treat(after, (x, y))
