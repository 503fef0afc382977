"""Batches of a trial: the user's, the same for all, some held out."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from signalprop.cures.trials.data import read
from signalprop.errors import BatchError


def rows(n=100):
    return torch.arange(n).float()[:, None], torch.arange(n) % 3


def test_one_batch_is_divided():
    found = read(rows(), batch_size=16)
    kept = torch.cat([x for x, _ in found.train]).flatten()
    left = torch.cat([x for x, _ in found.held_out]).flatten()
    assert len(left) == 20
    assert len(kept) == 80
    assert not set(kept.tolist()) & set(left.tolist())
    assert all(len(x) == len(y) == 16 for x, y in found.train)
    assert all((x.long() % 3 == y[:, None]).all() for x, y in found.train)
    assert found.apart
    assert "100 samples" in found.said


def test_few_samples_are_not_divided():
    found = read(rows(20))
    assert len(found.train) == 1
    assert not found.apart
    assert "too few" in found.said


def test_a_dict_batch():
    x, y = rows()
    found = read({"x": x, "labels": y, "scale": 2.0}, batch_size=40)
    assert {len(b["x"]) for b in found.train} == {40}
    assert found.train[0]["scale"] == 2.0


def test_a_loader_every_fifth_batch():
    loader = DataLoader(TensorDataset(*rows()), batch_size=10)
    found = read(loader)
    assert len(found.train) == 8
    assert [b[0][0].item() for b in found.held_out] == [40.0, 90.0]


def test_a_list_of_batches_and_given_held_out():
    batches = [rows(8), rows(8)]
    found = read(batches, rows(12))
    assert len(found.train) == 2
    assert len(found.held_out) == 1
    assert found.apart


def test_reading_a_loader_leaves_its_generator():
    draw = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*rows()), batch_size=10, shuffle=True, generator=draw)
    before = draw.get_state()
    read(loader)
    assert torch.equal(draw.get_state(), before)


def test_the_order_takes_every_batch_once_per_epoch_and_depends_on_the_seed():
    found = read(rows(), batch_size=10)
    order = found.order(0, 20)
    assert sorted(order[:8]) == list(range(8))
    assert sorted(order[8:16]) == list(range(8))
    assert order == found.order(0, 20)
    assert order != found.order(1, 20)


@pytest.mark.parametrize("data", [[], (torch.zeros(0, 3), torch.zeros(0)), (x for x in ())])
def test_nothing(data):
    with pytest.raises(BatchError, match=r"no samples|empty"):
        read(data)
