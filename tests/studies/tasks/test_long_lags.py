"""Tasks 2a, 2b and 2c against loops that read the paper's definitions word by word."""

from __future__ import annotations

import pytest
import torch

from signalprop.errors import SignalpropError
from signalprop.studies.tasks import no_regularities, noise_free, very_long_lags


@pytest.mark.parametrize("p", [2, 4, 100])
def test_noise_free(p):
    task = noise_free(p)
    batch = task.sample(400)
    x, y = p - 1, p
    wanted = {(end, *range(p - 1), end) for end in (x, y)}
    whole = torch.cat((batch.elements, batch.targets[:, -1:]), 1)
    assert {tuple(row) for row in whole.tolist()} == wanted
    assert batch.elements[:, 1:].equal(batch.targets[:, :-1])
    assert batch.truth.equal(batch.targets)
    assert batch.inputs.shape == (400, p, p + 1)
    assert float((batch.elements[:, 0] == x).float().mean()) == pytest.approx(0.5, abs=0.1)
    # asked for at step p, read at step 1
    assert task.lag == task.nearest == p - 1


def test_no_regularities():
    task = no_regularities(20)
    batch = task.sample(2_000)
    first, between = batch.elements[:, 0], batch.elements[:, 1:]
    assert batch.targets[:, -1].equal(first)
    assert set(first.tolist()) == {19, 20}
    assert set(between.unique().tolist()) == set(range(19))
    share = torch.bincount(between.flatten(), minlength=19) / between.numel()
    assert float((share - 1 / 19).abs().max()) < 0.005
    assert len({tuple(row) for row in between.tolist()}) == 2_000


def test_noise_free_is_judged_at_every_step_and_2b_at_the_end():
    for task, solved in ((noise_free(6), 0.0), (no_regularities(6), 1.0)):
        batch = task.sample(30)
        right = torch.nn.functional.one_hot(batch.truth, 7).float()
        assert task.score(right, batch.truth, batch.mask).solved == 1
        assert task.score(right * 0.76, batch.truth, batch.mask).solved == 1
        assert task.score(right * 0.74, batch.truth, batch.mask).solved == 0
        early = right.clone()
        early[:, 2] = 0.5
        assert task.score(early, batch.truth, batch.mask).solved == solved
        late = right.clone()
        late[:, -1] = torch.tensor([0, 0, 0, 0, 0, 0.5, 0.5])
        assert task.score(late, batch.truth, batch.mask).solved == 0
        # evaluate takes logits
        assert task.evaluate(20 * right, batch).solved == 1


@pytest.mark.parametrize(("p", "q"), [(7, 5), (3, 12)])
def test_very_long_lags(p, q):
    task = very_long_lags(p, q)
    batch = task.sample(3_000)
    e, b, x, y = p, p + 1, p + 2, p + 3
    distances = []
    for row, length, target, mask in zip(
        batch.elements.tolist(),
        batch.lengths.tolist(),
        batch.targets.tolist(),
        batch.mask.tolist(),
        strict=True,
    ):
        assert row[0] == b
        assert row[1] == (x, y)[target]
        distractors = row[2 : length - 1]
        assert set(distractors) <= set(range(p))
        assert len(distractors) >= q
        assert row.index(e) == length - 1
        assert set(row[length:]) <= {-1}
        assert [i for i, there in enumerate(mask) if there] == [length - 1]
        distances.append(length - 1 - 1)
    assert min(distances) == task.lag == task.nearest == q + 1
    assert float(batch.targets.float().mean()) == pytest.approx(0.5, abs=0.05)
    # minimal length q + 4, with the answer as last symbol; expected 4 + sum 0.1 0.9^k (q + k)
    expected = 4 + sum(0.1 * 0.9**k * (q + k) for k in range(1_000))
    whole = batch.lengths.float() + 1
    assert int(whole.min()) == q + 4
    assert float(whole.mean()) == pytest.approx(expected, abs=0.6)
    assert float((whole == q + 4).float().mean()) == pytest.approx(0.1, abs=0.02)
    inside = (batch.elements >= 0) & (batch.elements < p)
    share = torch.bincount(batch.elements[inside], minlength=p) / inside.sum()
    assert float((share - 1 / p).abs().max()) < 0.01


def test_full_length():
    task = very_long_lags()
    batch = task.sample(3)
    assert (task.n_in, task.n_out, task.lag) == (1_004, 2, 1_001)
    assert int(batch.lengths.min()) >= 1_003
    assert batch.inputs.shape[2] == 1_004
    assert task.published[0].sequences == 49_000


def test_success_of_2c():
    task = very_long_lags(4, 4)
    batch = task.sample(100)
    right = torch.nn.functional.one_hot(batch.truth, 2).float()
    steps = torch.rand(100, batch.mask.shape[1], 2)
    steps[torch.arange(100), batch.lengths - 1] = 0.81 * right + 0.19 * (1 - right)
    assert task.score(steps, batch.truth, batch.mask).solved == 1
    assert task.criterion.met(task.score(steps, batch.truth, batch.mask))
    assert task.score(0.79 * right, batch.truth, batch.mask).solved == 0
    chance = torch.full((100, 2), 0.5)
    assert task.score(chance, batch.truth, batch.mask).solved == 0
    assert task.score(chance, batch.truth, batch.mask).error == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: noise_free(1), "p has to be a whole number of at least 2, not 1"),
        (lambda: no_regularities(2.0), "p has to be a whole number of at least 2, not 2.0"),
        (lambda: very_long_lags(0, 5), "p has to be a whole number of at least 1"),
        (lambda: very_long_lags(5, True), "q has to be a whole number of at least 1"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(SignalpropError, match=message):
        make()
