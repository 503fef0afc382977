"""Losers are stopped, the untouched network goes on, and what cannot be told apart stays."""

import math

import pytest
from tests.cures.trials.support import faster, helps

from signalprop.cures.trials.leg import Outcome
from signalprop.cures.trials.prescribe import prescribe
from signalprop.cures.trials.race import UNTOUCHED, Track, race, rungs
from signalprop.cures.trials.result import judged
from signalprop.diagnosis.finding import Finding


class Fake:
    """An engine that knows what becomes of every candidate, and may be interrupted."""

    def __init__(self, metrics, after=math.inf):
        self.metrics, self.after, self.calls = metrics, after, []

    def run(self, task, calls):
        for i, (_, key, seed, _, until) in enumerate(calls):
            if len(self.calls) >= self.after:
                raise KeyboardInterrupt
            self.calls.append((key, seed, until))
            value = self.metrics[key]
            value = value[seed] if isinstance(value, tuple) else value + 0.001 * seed
            failed = "" if math.isfinite(value) else "it diverged"
            yield i, Outcome(until, value, "accuracy", 1.0, (1.0,), 0.0, failed, 0.1)


def run(metrics, seeds=(0, 1, 2), steps=100, after=math.inf):
    tracks = [Track(name) for name in metrics]
    engine = Fake(metrics, after)
    told = []
    whole = race(tracks, seeds, steps, engine, "nowhere", lambda *now: told.append(now))
    return {t.key: t for t in tracks}, engine, whole, told


def test_the_better_half_goes_on_and_so_does_the_untouched():
    names = {UNTOUCHED: 0.1, "a": 0.9, "b": 0.8, "c": 0.5, "d": 0.2, "e": -math.inf}
    tracks, engine, whole, told = run(names)
    assert whole
    assert {k: len(t.outcomes) for k, t in tracks.items()} == {
        UNTOUCHED: 3, "a": 3, "b": 2, "c": 1, "d": 1, "e": 1,
    }  # fmt: skip
    assert [k for k, t in tracks.items() if t.stopped] == ["b", "c", "d", "e"]
    assert len(engine.calls) == 3 * (6 + 3 + 2)
    assert told[-1][0] == len(engine.calls)


def test_what_the_spread_cannot_tell_apart_stays():
    names = {UNTOUCHED: 0.1, "a": (0.7, 0.9, 0.8), "b": (0.9, 0.5, 0.9), "c": 0.1}
    tracks, _, _, _ = run(names)
    assert len(tracks["b"].outcomes) == 3
    assert len(tracks["c"].outcomes) == 1


def test_an_interrupt_keeps_what_is_whole():
    names = {UNTOUCHED: 0.1, "a": 0.9, "b": 0.8}
    tracks, _, whole, _ = run(names, after=7)
    assert not whole
    assert [len(t.outcomes) for t in tracks.values()] == [1, 1, 0]


@pytest.mark.parametrize(("steps", "expected"), [(100, [25, 50, 100]), (2, [1, 2]), (1, [1])])
def test_rungs(steps, expected):
    assert rungs(steps) == expected


@pytest.mark.parametrize(
    ("metric", "untouched", "verdict"),
    [
        ((0.9, 0.91, 0.92), (0.3, 0.3, 0.3), "helps"),
        ((0.9, 0.9), (0.3, 0.3), "better"),
        ((0.9,), (0.3,), "better"),
        ((0.9, 0.2, 0.9), (0.3, 0.3, 0.3), "no difference"),
        ((0.8, 0.8, 0.8, 0.79, 0.8, 0.8), (0.8, 0.3, 0.3, 0.8, 0.3, 0.3), "helps"),
        ((0.8, 0.8, 0.8, 0.79, 0.8, 0.8), (0.8, 0.8, 0.3, 0.8, 0.8, 0.8), "no difference"),
        ((-0.7, -0.9, -1.0), (-136.0, -12.0, -60.0), "helps"),
        ((-0.7, -0.9, -1.0), (-136.0, -1.1, -60.0), "no difference"),
        ((0.303, 0.302, 0.303), (0.3, 0.3, 0.3), "no difference"),
        ((0.1, 0.1, 0.1), (0.3, 0.3, 0.3), "worse"),
        ((0.1, -math.inf, 0.1), (0.3, 0.3, 0.3), "failed"),
        ((0.5, 0.5, 0.5), (-math.inf,) * 3, "helps"),
        ((0.31, 0.45, 0.38), (0.3, 0.3, 0.3), "no difference"),
    ],
)
def test_verdicts(metric, untouched, verdict):
    assert judged(metric, untouched) == verdict


def finding(code, *cures, severity="issue"):
    return Finding(code, code, severity, (), 1.0, "", 0.0, "", cures)


def test_prescriptions():
    catalogue = {c.name: c for c in (faster, helps)}
    found = [finding("SP103", "faster", "unknown"), finding("SP205", "helps", "faster")]
    plan = prescribe(found, catalogue)
    assert [[c.name for c in p] for p in plan] == [["faster", "helps"], ["helps"], ["faster"]]
    assert len(prescribe(found, catalogue, most=2)) == 2
    assert prescribe([finding("SP206", "helps", severity="tip")], catalogue) == [(helps,)]
    assert prescribe([], catalogue) == []


def test_few_samples_prove_nothing():
    """Two constant answers differ by what the classes of a small set happen to be."""
    assert judged((0.41,) * 3, (0.33,) * 3, sampling=0.0) == "helps"
    assert judged((0.41,) * 3, (0.33,) * 3, sampling=0.055) == "no difference"
