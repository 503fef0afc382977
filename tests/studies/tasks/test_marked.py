"""Adding and multiplication against a loop over pairs."""

from __future__ import annotations

import pytest
import torch

from signalprop.errors import SignalpropError
from signalprop.studies.tasks import adding, multiplication

MAKE = {"adding": adding, "multiplication": multiplication}


def by_loop(pairs, length, product):
    """Target and marked places of one sequence, as the paper says it."""
    idle = 1.0 if product else 0.0
    assert pairs[0][1] == -1
    assert pairs[length - 1][1] == -1
    marked = [i for i in range(length) if pairs[i][1] == 1]
    assert all(pairs[i][1] == 0 for i in range(1, length - 1) if i not in marked)
    assert all(pair == [0, 0] for pair in pairs[length:])
    if len(marked) == 1:  # the first pair was marked: its number is neutral
        assert pairs[0][0] == idle
        marked = [0, *marked]
    one, two = (pairs[i][0] for i in marked)
    return (one * two if product else 0.5 + (one + two) / 4.0), marked


@pytest.mark.parametrize("name", ["adding", "multiplication"])
@pytest.mark.parametrize("length", [22, 51, 100])
def test_samples(name, length):
    task = MAKE[name](length)
    batch = task.sample(3_000)
    places = []
    for i, (pairs, steps) in enumerate(
        zip(batch.elements.tolist(), batch.lengths.tolist(), strict=True)
    ):
        target, marked = by_loop(pairs, steps, name == "multiplication")
        assert float(batch.targets[i, 0]) == pytest.approx(target, abs=1e-6)
        assert len(marked) == 2
        assert marked[0] < 10
        assert marked[1] < length // 2
        assert batch.mask[i].nonzero().flatten().tolist() == [steps - 1]
        places.append((steps, *marked))
    assert set(batch.lengths.tolist()) == set(range(length, length + length // 10 + 1))
    # every place that may be marked is: the early ones by one mark or the other
    assert {m for _, *marks in places for m in marks} == set(range(length // 2))
    two = [p for p in places if p[1] != 0]
    assert min(steps - 1 - one for steps, one, _ in two) == task.lag == length - 10
    assert min(steps - 1 - late for steps, _, late in two) == task.nearest
    assert task.nearest == length - length // 2

    low = -1 if name == "adding" else 0
    steps = torch.arange(batch.mask.shape[1])
    free = batch.elements[..., 0][(steps > 0) & (steps < batch.lengths.unsqueeze(1))]
    assert low <= float(free.min()) < low + 0.01
    assert 0.99 < float(free.max()) <= 1
    assert float(free.mean()) == pytest.approx((low + 1) / 2, abs=0.02)


def test_marks_are_drawn_evenly():
    batch = adding(100).sample(40_000)
    marks = batch.elements[..., 1].eq(1).float().mean(0)
    late, early = marks[10:50], marks[1:10]
    # the first mark is on each of ten pairs with 1/10; the second on each unmarked with 1/49
    assert float((late - 1 / 49).abs().max()) < 0.004
    assert float((early - (0.1 + 0.9 / 49)).abs().max()) < 0.008
    assert marks[50:].eq(0).all()


@pytest.mark.parametrize(("name", "chance"), [("adding", 1 / 24), ("multiplication", 7 / 144)])
def test_chance(name, chance):
    task = MAKE[name](1_000)
    batch = task.sample(4_000)
    outputs = torch.full((4_000, 1), 0.5 if name == "adding" else 0.25)
    # with a mark on the first pair, only one number varies
    rare = 0.1 + 0.9 / 499
    other = 1 / 48 if name == "adding" else 1 / 12 + 1 / 16
    wanted = (1 - rare) * chance + rare * other
    assert float(task.objective(outputs, batch)) == pytest.approx(wanted, rel=0.07)
    score = task.evaluate(outputs, batch)
    assert score.solved < 0.3
    assert not task.criterion.met(score)


def test_success():
    task = adding()
    batch = task.sample(2_000)
    assert task.evaluate(batch.truth + 0.0399, batch).solved == 1
    assert task.evaluate(batch.truth - 0.0401, batch).solved == 0
    assert task.criterion.met(task.evaluate(batch.truth + 0.009, batch))
    assert not task.criterion.met(task.evaluate(batch.truth + 0.011, batch))
    off = batch.truth.clone()
    off[0] += 0.05
    assert task.evaluate(off, batch).solved == pytest.approx(1999 / 2000)
    assert not task.criterion.met(task.evaluate(off, batch))
    task = multiplication()
    batch = task.sample(2_000)
    off = batch.truth.clone()
    off[:12] += 0.05
    assert task.criterion.met(task.evaluate(off, batch))
    off[12] += 0.05
    assert not task.criterion.met(task.evaluate(off, batch))


def test_last_output_is_judged():
    task = adding(30)
    batch = task.sample(64)
    steps = torch.randn(64, batch.mask.shape[1], 1)
    steps[torch.arange(64), batch.lengths - 1] = batch.truth
    assert task.evaluate(steps, batch).solved == 1
    assert float(task.objective(steps, batch)) == 0


@pytest.mark.parametrize("make", [adding, multiplication])
def test_bad_parameters(make):
    with pytest.raises(SignalpropError, match="length has to be a whole number of at least 22"):
        make(21)
    with pytest.raises(SignalpropError, match="not '100'"):
        make("100")
