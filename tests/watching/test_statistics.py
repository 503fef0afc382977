"""What is known of a statistic, and on which scale it is drawn."""

import numpy as np
import pytest

from signalprop.watching.statistics import STATISTICS, is_log, spans_decades, statistic


@pytest.mark.parametrize("name", STATISTICS)
def test_known_statistics_say_it_themselves(name):
    known = statistic(name)
    assert known is STATISTICS[name]
    assert known.meaning
    for values in ([1.0, 1.0], [1e-9, 1.0], [0.0, 1.0], []):
        assert is_log(name, values) == known.log


def test_a_users_own_shows_it():
    assert statistic("mine").name == "mine"
    assert not statistic("mine").of
    assert is_log("mine", [1e-6, 1.0])
    assert not is_log("mine", [0.5, 1.0])


@pytest.mark.parametrize(
    ("values", "does"),
    [
        ([], False),
        ([np.nan, np.inf], False),
        ([3.0], False),
        ([1.0, 100.0], False),
        ([1.0, 100.1], True),
        ([0.0, 1.0, 1e9], False),
        ([-1.0, 1e9], False),
        ([1e-3, np.nan, 1.0, np.inf, -np.inf], True),
        (np.array([[1e-30, 1.0], [1.0, 1e30]], np.float32), True),
    ],
)
def test_numbers_span_decades(values, does):
    assert spans_decades(values) is does
