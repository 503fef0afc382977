"""Losses of healthy runs raise nothing, however they look."""

import pytest
from tests.watching.rules.courses import healthy

from signalprop.watching.rules.judge import Judge

STEPS = 12_000
COURSES = list(healthy(STEPS))


@pytest.mark.parametrize(("name", "loss"), COURSES, ids=[name for name, _ in COURSES])
def test_silent(name, loss):
    if name == "game, in bursts":
        pytest.skip("leaps of its own kind: some are told, see the rule")
    judge, found = Judge(), []
    for step, value in enumerate(loss.tolist()):
        found += judge.step(step, {"loss": value}, None)
    assert found == []


@pytest.mark.parametrize(("name", "loss"), COURSES, ids=[name for name, _ in COURSES])
def test_a_spike_far_above_the_noise_is_told(name, loss):
    """It takes what the course has by itself: six times all of it, for six steps."""
    if name in ("game, in bursts", "cauchy-like", "heavy tails", "student t3", "zigzag"):
        pytest.skip("single values stray as far")
    at = 9000
    before = loss[at - 1000 : at]
    top = float(before.max() - before.mean())
    loss = loss[: at + 6].copy()
    loss[at:] += max(6 * top, 0.5 * abs(before.mean()), 0.1 * (loss[:8].mean() - before.mean()))
    judge, found = Judge(), []
    for step, value in enumerate(loss.tolist()):
        found += judge.step(step, {"loss": value}, None)
    assert [(a.code, a.since) for a in found] == [("SP405", at)]
