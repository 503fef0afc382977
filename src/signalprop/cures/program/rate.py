"""Cures of the learning rate, which is chosen by a range test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.program.range_test import chosen, range_test
from signalprop.cures.training import Recipe, Training


def _at(recipe: Recipe, rate: float) -> Recipe:
    if recipe.rate > 0:
        return recipe.scaled(rate / recipe.rate)
    return replace(
        recipe,
        groups=tuple(replace(g, options={**g.options, "lr": rate}) for g in recipe.groups),
    )


def _rate_of(training: Training) -> tuple[Recipe, float]:
    recipe = training.optimizer.explicit(training.model)
    if not any("lr" in g.options for g in recipe.groups):
        raise DoesNotApply("the optimizer has no learning rate")
    return recipe, recipe.rate


def _two_digits(rate: float) -> float:
    return float(f"{rate:.1e}")


@cure("lower-learning-rate", treats=("SP102", "SP110", "SP210"), changes="settings")
def lower_learning_rate(
    training: Training, data: Any, *, updates: int = 80, trial: int = 24, decades: float = 6.0
) -> Training:
    """Lower the learning rate to what a range test finds (Smith 2017).

    A copy is trained with a rate that rises exponentially up to the present one. The rates of
    steepest descent and a tenth and a thirtieth of where the loss diverges, or of where it is
    lowest, are tried for a few updates from the start, on the same batches and with the same
    random numbers, and the smallest that brings nine tenths of the best one's fall is taken.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader.
        updates: of the range test.
        trial: updates of every rate that is tried.
        decades: how far below the present rate the test begins.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no lower rate does better than the present one.
    """
    recipe, rate = _rate_of(training)
    if rate <= 0:
        raise DoesNotApply("the learning rate is 0 already")
    seen = range_test(training, data, low=rate / 10**decades, high=rate, updates=updates)
    if not seen.losses:
        raise DoesNotApply("the loss is not finite before the first update, at any learning rate")
    new = chosen(training, data, seen, (rate / 10**decades, rate / 2), trial)
    return training.rebuilt(_at(recipe, _two_digits(new)))


@cure("raise-learning-rate", treats=("SP103", "SP211"), changes="settings")
def raise_learning_rate(
    training: Training, data: Any, *, updates: int = 80, trial: int = 24, most: float = 10.0
) -> Training:
    """Raise the learning rate to what a range test finds (Smith 2017).

    As for `lower_learning_rate`, from the present rate upwards.

    Args:
        training: the network and how it is trained.
        data: a batch, or better a loader.
        updates: of the range test.
        trial: updates of every rate that is tried.
        most: the largest rate of the test.

    Returns:
        The changed training.

    Raises:
        DoesNotApply: no higher rate does better than the present one.
    """
    recipe, rate = _rate_of(training)
    low = rate if rate > 0 else 1e-8
    if low >= most:
        raise DoesNotApply(f"the learning rate is {rate:g} already")
    seen = range_test(training, data, low=low, high=max(most, 1e3 * low), updates=updates)
    if not seen.losses:
        raise DoesNotApply("the loss is not finite before the first update, at any learning rate")
    new = chosen(training, data, seen, (2 * low, max(most, 1e3 * low)), trial)
    return training.rebuilt(_at(recipe, _two_digits(new)))
