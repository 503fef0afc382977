"""Temporal order, copying, and digits pixel by pixel."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from signalprop.errors import SignalpropError
from signalprop.studies import data
from signalprop.studies.tasks import copying, memoryless, sequential_digits, temporal_order
from signalprop.studies.tasks.temporal_order import SYMBOLS

WINDOWS = {2: ((10, 20), (50, 60)), 3: ((10, 20), (33, 43), (66, 76))}


@pytest.mark.parametrize("relevant", [2, 3])
def test_temporal_order(relevant):
    task = temporal_order(100, relevant)
    batch = task.sample(4_000)
    orders = ["".join(order) for order in itertools.product("XY", repeat=relevant)]
    lags, nearest, found = [], [], []
    for i, (row, length) in enumerate(
        zip(batch.elements.tolist(), batch.lengths.tolist(), strict=True)
    ):
        text = "".join(SYMBOLS[s] for s in row[:length])
        assert set(row[length:]) <= {-1}
        assert text[0] == "E"
        assert text[-1] == "B"
        places = [t for t, symbol in enumerate(text) if symbol in "XY"]
        assert len(places) == relevant
        for t, (low, high) in zip(places, WINDOWS[relevant], strict=True):
            assert low <= t + 1 <= high
        assert {s for t, s in enumerate(text[1:-1], 1) if t not in places} <= set("abcd")
        assert orders[batch.targets[i]] == "".join(text[t] for t in places)
        assert batch.mask[i].nonzero().flatten().tolist() == [length - 1]
        lags.append(length - 1 - places[0])
        nearest.append(length - 1 - places[-1])
        found.append(tuple(t + 1 for t in places))
    assert set(batch.lengths.tolist()) == set(range(100, 111))
    assert min(lags) == task.lag == 80
    assert min(nearest) == task.nearest == {2: 40, 3: 24}[relevant]
    for column, (low, high) in zip(zip(*found, strict=True), WINDOWS[relevant], strict=True):
        assert set(column) == set(range(low, high + 1))
    share = torch.bincount(batch.targets, minlength=task.n_out) / 4_000
    assert float((share - 1 / task.n_out).abs().max()) < 0.03


def test_temporal_order_of_other_lengths():
    for length, relevant in itertools.product((20, 57, 250), (2, 3)):
        task = temporal_order(length, relevant)
        batch = task.sample(500)
        relevant_places = batch.elements >= SYMBOLS.index("X")
        assert relevant_places.sum(1).eq(relevant).all()
        assert (batch.elements == SYMBOLS.index("B")).sum(1).eq(1).all()
        assert not task.published


def test_temporal_order_success():
    task = temporal_order()
    batch = task.sample(200)
    right = torch.nn.functional.one_hot(batch.truth, 4).float()
    score = lambda outputs: task.score(outputs, batch.truth, batch.mask)  # noqa: E731
    assert score(right * 0.71).solved == 1
    assert score(right * 0.69).solved == 0
    assert score(torch.full((200, 4), 0.25)).solved == 0
    last_only = right.clone()  # knows the second symbol only
    last_only += right[:, [2, 3, 0, 1]]
    assert score(last_only / 2).solved == 0
    assert task.evaluate(20 * right, batch).solved == 1


@pytest.mark.parametrize(("length", "kept", "alphabet"), [(1, 1, 2), (7, 3, 4), (100, 10, 8)])
def test_copying(length, kept, alphabet):
    task = copying(length, kept, alphabet)
    batch = task.sample(200)
    blank, delimiter = alphabet, alphabet + 1
    for row, target in zip(batch.elements.tolist(), batch.targets.tolist(), strict=True):
        word = row[:kept]
        assert max(word) < alphabet
        assert row == [*word, *[blank] * (length - 1), delimiter, *[blank] * kept]
        assert target == [*[blank] * (length + kept), *word]
        assert len(row) == length + 2 * kept
    assert task.lag == task.nearest == length + kept
    assert batch.inputs.shape[2] == task.n_in == alphabet + 2
    assert set(batch.elements[:, 0].tolist()) == set(range(alphabet))

    right = torch.nn.functional.one_hot(batch.truth, task.n_out).float()
    assert task.criterion.met(task.evaluate(right, batch))
    # blanks, then an even guess: the loss is the one of a net without memory
    guess = torch.zeros_like(right)
    guess[:, : length + kept, blank] = 60
    guess[:, length + kept :, blank] = -60
    loss = float(task.objective(guess, batch))
    assert loss == pytest.approx(memoryless(length, kept, alphabet), rel=1e-5)
    assert loss == pytest.approx(kept * math.log(alphabet) / (length + 2 * kept), rel=1e-5)
    assert not task.criterion.met(task.evaluate(guess, batch))


def test_digits():
    task = sequential_digits()
    assert "scikit-learn" in task.data
    found = data.digits()
    rows = {tuple(x): y for x, y in zip(found.x.float().tolist(), found.y.tolist(), strict=True)}
    held_out = {tuple(x) for x in found.x_test.float().tolist()}
    batch = task.sample(50)
    assert batch.inputs.shape == (50, 64, 1)
    assert batch.inputs.dtype == torch.float32
    for x, y in zip(batch.inputs[..., 0].tolist(), batch.targets.tolist(), strict=True):
        assert rows[tuple(x)] == y
    test = task.sample_test(50)
    assert all(tuple(x) in held_out for x in test.inputs[..., 0].tolist())
    # the first and the last pixel that are not the same in all training images
    varying = [i for i in range(64) if len(set(found.x[:, i].tolist())) > 1]
    assert (task.lag, task.nearest) == (63 - varying[0], 63 - varying[-1])


def test_permuted_digits():
    plain, task = sequential_digits(), sequential_digits(permuted=True)
    assert task.name == "permuted-digits"
    g = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for draw in ("sample", "sample_test"):
        straight, shuffled = (getattr(t, draw)(40, g()) for t in (plain, task))
        assert straight.inputs[:, order].equal(shuffled.inputs)
        assert straight.targets.equal(shuffled.targets)
    other = sequential_digits(permuted=True, seed=1).sample(40, g())
    assert not other.inputs.equal(shuffled.inputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: temporal_order(19), "length has to be a whole number of at least 20"),
        (lambda: temporal_order(100, 4), "relevant has to be 2 or 3, not 4"),
        (lambda: copying(0), "length has to be a whole number of at least 1"),
        (lambda: copying(5, 0), "symbols has to be a whole number of at least 1"),
        (lambda: copying(5, 1, 1), "alphabet has to be a whole number of at least 2"),
        (lambda: sequential_digits(limit=2), "limit has to be a whole number of at least 3"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(SignalpropError, match=message):
        make()
