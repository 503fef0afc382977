"""Where a loss spike began."""

import math

import numpy as np
import pytest

from signalprop.watching.rules.ring import LENGTH, Ring
from signalprop.watching.rules.spike import began


def window(seed=0, steps=256, sites=20, spike=250):
    rng = np.random.default_rng(seed)
    gradients = np.exp(0.3 * rng.normal(size=(steps, sites))) * np.exp(np.arange(sites))
    loss = 1 + 0.05 * rng.normal(size=steps)
    loss[spike:] += 3
    return np.arange(1000, 1000 + steps), gradients, loss


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("site", [0, 7, 19])
@pytest.mark.parametrize("ahead", [0, 3, 40])
def test_the_site_that_rose_first(seed, site, ahead):
    steps, gradients, loss = window(seed)
    gradients[250 - ahead :, site] *= 50
    gradients[250:] *= 20
    found, at = began(steps, gradients, loss)
    assert (found, at) == (site, 250 - ahead)


def test_all_at_once_it_is_the_one_that_rises_most():
    steps, gradients, loss = window()
    gradients[250:] *= np.where(np.arange(20) == 4, 300, 30)
    assert began(steps, gradients, loss) == (4, 250)


def test_an_earlier_rise_that_went_away_does_not_count():
    steps, gradients, loss = window()
    gradients[180:190, 2] *= 100
    gradients[247:, 9] *= 100
    assert began(steps, gradients, loss) == (9, 247)


def test_short_gaps_are_bridged():
    steps, gradients, loss = window()
    gradients[230:, 9] *= 100
    gradients[[235, 240, 241], 9] /= 100
    assert began(steps, gradients, loss) == (9, 230)


def test_no_gradient_rose():
    steps, gradients, loss = window()
    assert began(steps, gradients, loss) == (None, 250)
    assert began(steps, np.full_like(gradients, np.nan), loss) == (None, 250)
    assert began(steps, gradients[:, :0], loss) == (None, 250)


def test_odd_columns_do_not_disturb():
    steps, gradients, loss = window()
    gradients[245:, 9] *= 100
    gradients[:, 0], gradients[:, 1], gradients[:, 2] = 1.0, 0.0, np.nan
    gradients[::3, 3] = np.nan
    gradients[::7, 4] = np.inf
    gradients[::2, 5] = 0
    with np.errstate(all="raise"):
        assert began(steps, gradients, loss) == (9, 245)


def test_a_constant_column_that_rises():
    steps, gradients, loss = window()
    gradients[:, 6] = 1.0
    gradients[246:, 6] = 9.0
    assert began(steps, gradients, loss) == (6, 246)


def test_infinite_gradients():
    steps, gradients, loss = window()
    gradients[249:, :13] = np.inf
    loss[249:] = math.nan
    assert began(steps, gradients, loss) == (12, 249)  # nearest to the output


def test_short_windows():
    steps, gradients, loss = window()
    assert began(steps[:0], gradients[:0], loss[:0]) == (None, 0)
    for length in (1, 2, 5, 7):
        assert began(steps[:length], gradients[:length], loss[:length]) == (None, length - 1)
    assert began(steps[-20:], gradients[-20:], np.full(20, np.nan)) == (None, 19)


def test_ring_keeps_the_last_steps_in_order():
    ring = Ring(3)
    for step in range(5):
        ring.put(step, float(step), np.full(3, step))
    steps, gradients, loss = ring.window()
    assert steps.tolist() == list(range(5))
    assert loss.tolist() == gradients[:, 2].tolist() == [0, 1, 2, 3, 4]
    for step in range(5, 1000):
        ring.put(step, float(step), np.full(3 if step < 900 else 5, step))
    steps, gradients, loss = ring.window()
    assert steps.tolist() == list(range(1000 - LENGTH, 1000))
    assert gradients.shape == (LENGTH, 5)
    assert (gradients[:, 0] == steps).all()
    assert np.isnan(gradients[steps < 900, 4]).all()
    assert (gradients[steps >= 900, 4] == steps[steps >= 900]).all()
    ring.put(1000, math.nan, None)
    assert np.isnan(ring.window()[1][-1]).all()
