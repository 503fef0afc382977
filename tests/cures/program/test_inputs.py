"""Cures of the inputs: mean and deviation against numpy, and what is left out or filled in."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.cases import CASES, by_name
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import signalprop as sp
from signalprop.capture import batch as batches
from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program.given import batches_of
from signalprop.cures.program.inputs import clean_data, normalise_inputs
from signalprop.cures.program.seen import again, prepared
from signalprop.cures.training import Recipe, Training, applied
from signalprop.errors import SignalpropError


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def training(loss=F.cross_entropy, model=None):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)) if model is None else model
    return Training(model, loss, Recipe(adam))


def data(n=40):
    return torch.randn(n, 6) * torch.logspace(-2, 4, 6) + 300, torch.arange(n) % 4


def changed(after, x, y):
    args, _, target = applied(pickle.loads(pickle.dumps(after.prepare)), ((x,), {}, y))
    return args[0], target


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cure", [normalise_inputs, clean_data], ids=lambda c: c.name)
def test_on_all_networks(cure):
    told, count = [], 0
    for case in CASES:
        model, batch, loss = case.build()
        if not any(p.requires_grad for p in model.parameters()):
            continue
        state = pickle.dumps(model.state_dict())
        try:
            after = cure.treat(Training(model, loss, Recipe(adam)), batch)
        except SignalpropError as why:
            told.append(str(why))
            continue
        count += 1
        if "raised" in case.name or case.name == "labels-from-one":
            continue
        b = prepared(after, batch)
        value = batches.loss_of(after.model(*b.args, **b.kwargs), b, after.loss)
        assert torch.isfinite(value), case.name
        assert pickle.dumps(model.state_dict()) == state, case.name
    assert count >= 1
    assert all(len(one) > 15 for one in told)


@pytest.mark.parametrize("name", ["raw-pixels", "one-feature-unscaled", "nan-data"])
def test_the_finding_is_gone(name):
    case = by_name(name)
    model, batch, loss = case.build()
    cure = clean_data if name == "nan-data" else normalise_inputs
    after = cure.treat(training(loss, model), batch)
    found = sp.diagnose(after.model, again(prepared(after, batch)), loss).findings
    assert not case.expect & {f.code for f in found}
    assert case.expect & set(cure.treats)


# ---- normalise-inputs ------------------------------------------------------------------------


def test_features_against_numpy():
    x, y = data()
    x[:, 2] = 7.0  # constant and harmless
    x[:, 3] = 4e4  # constant and large
    after = normalise_inputs.treat(training(), (x, y))
    new, _ = changed(after, x, y)
    wide = x.double().numpy()
    for i in (0, 1, 4, 5):
        slow = (wide[:, i] - wide[:, i].mean()) / wide[:, i].std()
        np.testing.assert_allclose(new[:, i].numpy(), slow, atol=2e-2 if i == 0 else 1e-3)
    assert torch.equal(new[:, 2], x[:, 2])
    assert bool((new[:, 3].abs() < 1e-2).all())
    with pytest.raises(DoesNotApply, match="already"):
        normalise_inputs.treat(training(), (new, y))


def test_a_loader_is_taken_whole_and_not_moved_on():
    x, y = data(100)
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(x, y), batch_size=9, shuffle=True, generator=generator)
    program = training()
    before, random = generator.get_state(), torch.get_rng_state()
    after = normalise_inputs.treat(program, loader)
    assert torch.equal(before, generator.get_state())
    assert torch.equal(random, torch.get_rng_state())
    mean, std = after.prepare[0].moments[0]
    torch.testing.assert_close(mean[0].double(), x.double().mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(std[0].double(), x.double().std(0, correction=0), rtol=1e-4, atol=0)
    assert len(list(batches_of(loader, 3))) == 3
    assert len(list(batches_of((x, y), 3))) == 1


def test_channels_of_images_and_keywords():
    x = torch.randn(8, 3, 5, 5) * torch.tensor([1.0, 50.0, 200.0]).view(3, 1, 1) + 90
    y = torch.arange(8) % 4
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(4))
    model(x)
    new, _ = changed(normalise_inputs.treat(training(model=model), (x, y)), x, y)
    torch.testing.assert_close(new.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(new.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.layer = nn.Embedding(5, 4), nn.Linear(6, 4)

        def forward(self, ids, extra):
            return self.table(ids) + self.layer(extra)

    extra, labels = data(8)
    inputs = {"ids": torch.arange(8) % 5, "extra": extra}
    after = normalise_inputs.treat(training(model=Named()), (inputs, labels))
    _, kwargs, _ = applied(after.prepare, ((), inputs, labels))
    assert torch.equal(kwargs["ids"], inputs["ids"])
    assert float(kwargs["extra"].abs().max()) < 6
    assert after.lines[0].startswith("extra = (extra - mean) / std")


def test_what_is_not_normalised():
    model = nn.Sequential(nn.Embedding(5, 6), nn.Flatten(), nn.Linear(12, 4))
    ids = torch.randint(5, (8, 2))
    with pytest.raises(DoesNotApply, match="no floating input"):
        normalise_inputs.treat(training(model=model), (ids, torch.arange(8) % 4))


# ---- clean-data ------------------------------------------------------------------------------


def test_few_bad_samples_are_left_out():
    x, y = torch.randn(40, 6), torch.arange(40) % 4
    x[3, 1], x[7, 2] = torch.nan, torch.inf
    after = clean_data.treat(training(), (x, y))
    good = [i for i in range(40) if i not in (3, 7)]
    new, target = changed(after, x, y)
    assert torch.equal(new, x[good])
    assert torch.equal(target, y[good])
    namespace = {"inputs": x, "target": y, "torch": torch}
    for line in after.lines:
        exec(line, namespace)
    assert torch.equal(namespace["inputs"], x[good])
    # a batch of which nothing would be left is filled in
    bad = torch.full((2, 6), torch.nan)
    assert bool(changed(after, bad, y[:2])[0].isfinite().all())


def test_many_gaps_are_filled_with_the_mean():
    x, y = torch.randn(40, 6), torch.arange(40) % 4
    x[::2, 1] = torch.nan
    after = clean_data.treat(training(), (x, y))
    new, target = changed(after, x, y)
    assert torch.equal(target, y)
    torch.testing.assert_close(new[::2, 1], x[1::2, 1].mean().expand(20))
    assert torch.equal(new[:, 0], x[:, 0])
    assert "torch.where" in after.lines[0]


def test_bad_targets_are_left_out():
    x, y = torch.randn(40, 6), torch.randn(40, 4)
    y[5, 2] = torch.nan
    new, target = changed(clean_data.treat(training(F.mse_loss), (x, y)), x, y)
    assert len(new) == len(target) == 39
    assert bool(target.isfinite().all())


def test_what_is_not_cleaned():
    x, y = torch.randn(8, 6), torch.arange(8) % 4
    cases = [
        (F.cross_entropy, (x, y), "finite"),
        (F.cross_entropy, (x, torch.full_like(y, -100)), "ignored value"),
        (F.mse_loss, (x, torch.full((8, 4), torch.nan)), "nothing to learn"),
    ]
    for loss, batch, told in cases:
        with pytest.raises(DoesNotApply, match=told):
            clean_data.treat(training(loss), batch)
