"""Data as they are given: a batch, a list of batches, or a loader."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from signalprop.cures.catalogue import CURES
from signalprop.cures.program.given import batches_of, first_of, is_many
from signalprop.cures.program.inputs import clean_data, normalise_inputs
from signalprop.cures.program.targets import scale_targets, shift_labels
from signalprop.cures.training import Recipe, Training
from signalprop.errors import BatchError, SignalpropError

X, Y = torch.randn(24, 6), torch.arange(24) % 4
PAIR = (X, Y)
LOADER = DataLoader(TensorDataset(X, Y), batch_size=8)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (PAIR, 1),
        ([X, Y], 1),  # as a loader collates it
        (((X, X), (Y, Y)), 1),
        ({"x": X, "y": Y}, 1),
        (X, 1),
        ([PAIR], 1),
        ([PAIR, PAIR, PAIR], 3),
        ([[X, Y], [X, Y]], 2),
        ([{"x": X}, {"x": X}], 2),
        (list(LOADER), 3),
        (LOADER, 3),
        ((one for one in LOADER), 3),
    ],
    ids=lambda x: type(x).__name__,
)
def test_how_many(data, count):
    assert is_many(data) == (isinstance(data, list) and not isinstance(data[0], torch.Tensor))
    found = list(batches_of(data, 10))
    assert len(found) == count
    if count == 1 and not is_many(data):
        assert found[0] is data
    again = data if not hasattr(data, "send") else iter(LOADER)
    assert len(list(batches_of(again, 2))) == min(count, 2)


def test_the_first():
    assert first_of(PAIR) is PAIR
    assert first_of([PAIR, (Y, X)]) is PAIR
    assert torch.equal(first_of(LOADER)[0], X[:8])
    with pytest.raises(BatchError, match="empty"):
        list(batches_of(iter(()), 3))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1e-3)


def program(loss=F.cross_entropy):
    return Training(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), loss, Recipe(sgd))


FEW = {"lower-learning-rate": {"updates": 4, "trial": 2}}
FEW["raise-learning-rate"] = FEW["lower-learning-rate"]
SETTINGS = [c.with_options(**FEW.get(c.name, {})) for c in CURES if c.changes == "settings"]


def outcome(cure, before, data):
    try:
        return cure.treat(before, data).lines
    except SignalpropError as why:
        return str(why)


@pytest.mark.parametrize("cure", SETTINGS, ids=lambda c: c.name)
def test_settings_take_a_batch_a_list_and_a_loader(cure):
    before = program()
    raw = 50 + 9 * X, Y
    loader = DataLoader(TensorDataset(*raw), batch_size=24)
    one = outcome(cure, before, raw)
    for data in ([raw], loader, list(loader)):
        assert outcome(cure, before, data) == one
    after = None
    try:
        after = cure.treat(before, loader)
    except SignalpropError:
        return
    # settings alone: the model is a copy of the same
    assert str(after.model) == str(before.model)
    for a, b in zip(after.model.parameters(), before.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_measured_over_all_batches():
    x = torch.cat([X, 100 + X])
    after = normalise_inputs.treat(program(), [(x[:24], Y), (x[24:], Y)])
    torch.testing.assert_close(
        after.prepare[0].moments[0][0][0].double(), x.double().mean(0), rtol=1e-5, atol=1e-5
    )

    gap = X.clone()
    gap[3, 2] = torch.nan
    after = clean_data.treat(program(), [(X, Y), (gap, Y)])  # not in the first batch
    args, _, target = after.prepare[0](((gap,), {}, Y))
    assert len(args[0]) == len(target) == 23

    labels = 1 + torch.arange(24) % 3  # 1 to 3 fit four outputs; the second batch does not
    after = shift_labels.treat(program(), [(X, labels), (X, Y + 1)])
    assert after.prepare[0](((X,), {}, Y + 1))[2].tolist() == Y.tolist()

    y = torch.randn(48, 4) * 7 + 3
    after = scale_targets.treat(program(F.mse_loss), [(X, y[:24]), (X, y[24:])])
    new = after.prepare[0](((X,), {}, y))[2]
    torch.testing.assert_close(new.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
