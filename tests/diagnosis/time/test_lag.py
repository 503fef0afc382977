"""The lag that data show: against the tasks whose lag is known, and nothing where there is none."""

from __future__ import annotations

import pytest
import torch
from tests.cases.base import classes, series, tokens
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from signalprop.diagnosis.time.lag import FEWEST, Lag, estimate
from signalprop.diagnosis.time.lag_data import of_data
from signalprop.errors import SignalpropError
from signalprop.studies import tasks
from signalprop.studies.tasks import TASKS


def estimated(task, samples, seed=0):
    drawn = task.sample(samples, torch.Generator().manual_seed(seed))
    target = drawn.targets
    if task.target == "every step":
        target = torch.where(drawn.mask, target, -100)
    return estimate(drawn.inputs, target, drawn.lengths)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["noise-free", "no-regularities", "copying"])
def test_one_input_long_before(name, seed):
    task = TASKS[name]()
    found = estimated(task, 256, seed)
    assert found.steps == task.lag
    assert found.usual > task.lag - 30  # copying has ten inputs


@pytest.mark.parametrize("name", ["two-sequences-3a", "two-sequences-3b", "two-sequences-3c"])
def test_what_is_said_at_the_beginning_of_sequences_of_all_lengths(name):
    task = TASKS[name]()
    found = estimated(task, 256)
    assert task.lag <= found.steps <= task.lag + 2
    assert found.nearest >= task.lag - 1


def test_a_distractor_at_every_step():
    task = tasks.very_long_lags(100, 150)
    assert estimated(task, 128).steps == task.lag == 151


@pytest.mark.parametrize("name", ["adding-100", "adding-500", "adding-1000", "multiplication"])
def test_a_value_counts_where_another_input_marks_it(name):
    task = TASKS[name]()
    found = estimated(task, 256)
    assert task.lag <= found.steps <= task.lag + 10
    assert found.usual > task.nearest


@pytest.mark.parametrize("name", ["temporal-order-2", "temporal-order-3"])
def test_symbols_among_others(name):
    task = TASKS[name]()
    found = estimated(task, 256)
    assert task.lag <= found.steps <= task.lag + 20
    assert found.nearest <= task.lag


def test_grammars():
    task = TASKS["embedded-reber"]()
    assert task.lag <= estimated(task, 512).steps < 20
    assert estimated(tasks.continual_reber(200), 128).steps < 20


@pytest.mark.parametrize("name", ["sequential-digits", "permuted-digits"])
def test_pixels_are_everywhere(name):
    found = estimated(TASKS[name](), 512)
    assert found.nearest < 5
    assert found.usual < 40


NOISE = {
    "classes": lambda: (torch.randn(128, 50, 4), torch.randint(4, (128,))),
    "numbers": lambda: (torch.randn(64, 100, 3), torch.randn(64, 1)),
    "symbols": lambda: (torch.randint(30, (64, 60)), torch.randint(2, (64,))),
    "heavy": lambda: (torch.randint(30, (64, 60)), torch.randn(64, 1).pow(5)),
    "sparse": lambda: (
        torch.randn(64, 60, 8).pow(5) * (torch.rand(64, 60, 8) < 0.05),
        torch.randn(64, 1).pow(5),
    ),
    "every step": lambda: (torch.randn(64, 40, 3), torch.randint(3, (64, 40))),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_shows_nothing(name):
    """False in one of a thousand: of 25 none, but for one test in forty."""
    torch.manual_seed(0)
    assert [estimate(*NOISE[name]()) for _ in range(25)] == [None] * 25


def test_what_a_near_input_tells_again_is_no_lag():
    """Neighbours are correlated over ten steps and more; the last four decide."""
    for seed in range(5):
        torch.manual_seed(seed)
        x = series(512, 60, 8)
        found = estimate(x, classes(x[:, -4:], 5))
        assert found.steps <= 4
    torch.manual_seed(0)
    x = tokens(512, 41, 24)
    assert estimate(x[:, :-1], x[:, 1:]).steps <= 1


def test_a_target_of_inputs_that_are_read_with_it():
    x = torch.randn(256, 30, 3)
    y = (x[:, 9, 0] + x[:, 25, 1] > 0).long()
    found = estimate(x, y)
    assert (found.steps, found.nearest, found.samples) == (20, 4, 256)


def test_products_of_three_inputs_and_parity_are_not_seen():
    x = torch.randn(256, 20, 3)
    assert estimate(x, ((x[:, 3, 0] > 0) ^ (x[:, 9, 0] > 0)).long()) is None


def test_constant_targets_and_inputs_and_few_samples():
    x, y = torch.randn(128, 20, 3), torch.randint(2, (128,))
    assert estimate(x, torch.zeros(128, dtype=torch.long)) is None
    assert estimate(torch.ones(128, 20, 3), y) is None
    assert estimate(torch.full((128, 20, 3), torch.nan), y) is None
    x[:, 0, 0] = 9.0 * y
    assert estimate(x, y).steps == 19
    assert estimate(x[: FEWEST - 1], y[: FEWEST - 1]) is None
    assert estimate(x, torch.full((128, 1), torch.nan)) is None
    assert estimate(x, torch.arange(128)) is None  # every sample a class of its own


# ---- what is given ---------------------------------------------------------------------------


def told(samples=256, steps=30):
    x, y = torch.randn(samples, steps, 3), torch.arange(samples) % 2
    x[:, 4, 0] += 4.0 * y
    return x, y


MODEL = nn.Linear(3, 2)


def test_batches_of_every_form():
    x, y = told()
    loss = nn.functional.cross_entropy
    assert of_data((x, y), MODEL, loss, 0, [30]).steps == 25
    assert of_data({"input": x, "labels": y}, MODEL, loss, 0, [30]).steps == 25
    assert of_data((x.transpose(0, 1), y), MODEL, loss, 1, [30]).steps == 25
    every = y[None].expand(30, -1)
    assert of_data((x.transpose(0, 1), every), MODEL, loss, 1, [30]).steps >= 10
    loader = DataLoader(TensorDataset(x, y), 32, shuffle=True)
    assert of_data(loader, MODEL, loss, 0, [30]) == of_data(loader, MODEL, loss, 0, [30, 7])
    assert of_data(loader, MODEL, loss, 0, [30]).samples == 256
    assert of_data((x, y), MODEL, loss, 0, [31]) is None  # no dimension is time
    assert of_data(x, MODEL, None, 0, [30]) is None


def test_lengths_that_are_handed_in():
    lengths = torch.randint(20, 31, (256,))
    x, y = told()
    at = lengths - 8
    x = torch.randn(256, 30, 3)
    x[torch.arange(256), at, 0] += 4.0 * y
    x = x * (torch.arange(30) < lengths[:, None])[..., None]

    class Two(nn.Module):
        def forward(self, x, lengths):
            return x

    found = of_data((x, lengths, y), Two(), nn.functional.cross_entropy, 0, [30])
    assert found.steps == 7


def test_random_numbers_stay():
    x, y = told()
    loader = DataLoader(
        TensorDataset(x, y), 64, shuffle=True, generator=torch.Generator().manual_seed(3)
    )
    states = torch.get_rng_state(), loader.generator.get_state()
    of_data(loader, MODEL, nn.functional.cross_entropy, 0, [30])
    assert torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], loader.generator.get_state())


def test_given():
    assert Lag.given(7) == Lag(7, 7, 7, 0)
    for wrong in (0, -1, 1.5, True, None, "7"):
        with pytest.raises(SignalpropError, match="whole number from 1 up"):
            Lag.given(wrong)
