"""Tasks 3a, 3b and 3c: first the signal, then noise of variance 0.2."""

from __future__ import annotations

import pytest
import torch

from signalprop.errors import SignalpropError
from signalprop.studies.tasks import two_sequences


@pytest.mark.parametrize("variant", ["3a", "3b", "3c"])
@pytest.mark.parametrize(("length", "informative"), [(100, 3), (100, 1), (25, 4)])
def test_samples(variant, length, informative):
    task = two_sequences(length, informative, variant)
    batch = task.sample(4_000)
    values, lengths = batch.elements[..., 0], batch.lengths
    assert set(lengths.tolist()) == set(range(length, length + length // 10 + 1))
    inside = torch.arange(values.shape[1]) < lengths.unsqueeze(1)
    assert values[~inside].eq(0).all()
    assert batch.mask.sum(1).eq(1).all()
    assert batch.mask[torch.arange(4_000), lengths - 1].all()

    noise = values[:, informative:][inside[:, informative:]]
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.var()) == pytest.approx(0.2, abs=0.01)

    upper = {"3a": 1.0, "3b": 1.0, "3c": 0.2}[variant]  # the target of class 1
    lower = {"3a": 0.0, "3b": 0.0, "3c": 0.8}[variant]
    first = torch.where(batch.truth.sub(upper).abs() < 1e-6, 1.0, -1.0)
    assert batch.truth[first == -1].sub(lower).abs().max() < 1e-6
    assert float((first == 1).float().mean()) == pytest.approx(0.5, abs=0.04)
    off = values[:, :informative] - first
    if variant == "3b":
        assert float(off.mean()) == pytest.approx(0, abs=0.03)
        assert float(off.var()) == pytest.approx(0.2, abs=0.02)
    else:
        assert off.eq(0).all()

    target_noise = batch.targets - batch.truth
    if variant == "3c":
        assert float(target_noise.mean()) == pytest.approx(0, abs=0.03)
        assert float(target_noise.var()) == pytest.approx(0.1, abs=0.01)
    else:
        assert target_noise.eq(0).all()

    # to the last element that tells the class
    measured = (lengths - 1 - (informative - 1)).min()
    assert int(measured) == task.lag == task.nearest


def test_success():
    for variant, near, far in (("3a", 0.19, 0.21), ("3b", 0.19, 0.21), ("3c", 0.09, 0.11)):
        task = two_sequences(variant=variant)
        batch = task.sample(256)
        score = lambda outputs: task.score(outputs, batch.truth, batch.mask)  # noqa: B023, E731
        assert score(batch.truth + near).solved == 1
        assert score(batch.truth - far).solved == 0
        assert not task.criterion.met(score(batch.truth + near))  # mean error too large
        assert task.criterion.met(score(batch.truth + 0.005))
        assert score(torch.full((256, 1), 0.5)).solved == 0


def test_allowed_errors():
    for variant, allowed in (("3a", 0), ("3b", 5), ("3c", 0)):
        task = two_sequences(variant=variant)
        batch = task.sample(256)
        outputs = batch.truth.clone()
        outputs[:allowed] += 0.5
        assert task.criterion.met(task.score(outputs, batch.truth, batch.mask))
        outputs[allowed] += 0.5
        assert not task.criterion.met(task.score(outputs, batch.truth, batch.mask))


def test_noise_of_the_target_is_not_judged():
    task = two_sequences(variant="3c")
    batch = task.sample(500)
    assert task.evaluate(batch.truth, batch).solved == 1
    assert task.evaluate(batch.targets, batch).solved < 0.5
    # yet it is what the net is trained on: the loss of the best answer is the noise's variance
    assert float(task.objective(batch.truth, batch)) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 3, "3d"), "variant has to be '3a', '3b' or '3c', not '3d'"),
        ((3, 3), "length has to be a whole number of at least 4, not 3"),
        ((100, 0), "informative has to be a whole number of at least 1"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(SignalpropError, match=message):
        two_sequences(*arguments)
