"""The time axis as plain data."""

import math

import pytest

from signalprop.capture.time import Horizon


def curve(credit, floor=1e-7):
    return Horizon("rnn", "rnn_tanh", 0, False, tuple(range(len(credit))), tuple(credit), floor)


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.97])
def test_a_leaky_integrator_reaches_as_far_as_its_logarithms_say(gamma):
    leaky = curve([gamma**k for k in range(1200)])
    for alpha in (0.7, 1 / math.e, 0.01, 1e-6):
        assert leaky.reach(alpha) == math.floor(math.log(alpha) / math.log(gamma))
    assert leaky.steps == math.floor(-1 / math.log(gamma))
    assert leaky.silent == math.floor(math.log(1e-7) / math.log(gamma))
    assert leaky.rate == pytest.approx(math.log(gamma), rel=1e-9)


def test_what_has_not_fallen_has_no_horizon():
    assert curve([1.0, 0.9, 0.8]).steps is None
    assert curve([1.0, 0.9, 0.8]).rate == pytest.approx(math.log(0.8) / 2, rel=1e-2)


def test_what_comes_back_counts_to_where_it_was_last_seen():
    assert curve([1.0, 0.1, 0.5, 0.1]).steps == 2


def test_what_is_lost_at_once_has_no_rate():
    assert math.isnan(curve([1.0, 0.0, 0.0]).rate)
    assert curve([1.0, 0.0, 0.0]).silent == 0
