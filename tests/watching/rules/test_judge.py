"""The judge: every alert once, bounded in time and memory, beside a run and afterwards."""

import inspect
import json
import logging
import time
import tracemalloc

import numpy as np
import pytest
from tests.watching.rules.samples import SITES, codes, healthy, loss_at, run
from tests.watching.rules.test_rules import ONSET, dead, dying, leap, no_fall, vanishing

from signalprop.cures.catalogue import CATALOGUE
from signalprop.errors import SignalpropError
from signalprop.watching.file.reader import Run
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter
from signalprop.watching.rules.judge import DEFAULT_RULES_OVER_TIME, Judge, judge
from signalprop.watching.rules.rule import alarm, over_time
from signalprop.watching.sample import Sample
from signalprop.watching.statistics import STATISTICS

# ---- the rules -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", DEFAULT_RULES_OVER_TIME, ids=lambda r: r.rule.code)
def test_what_a_rule_says_of_itself(rule):
    about = inspect.getdoc(rule)
    for section in ("How it is detected:", "Why it matters:", "How to cure it:"):
        assert section in about
    for name in rule.rule.thresholds:
        assert f"`{name}`" in about, name
    assert set(rule.rule.cures) <= set(CATALOGUE)
    assert len(set(rule.rule.cures)) == len(rule.rule.cures)
    scalars = {"loss", "learning_rate", "skipped", "loss_scale", "seconds", "page_faults"}
    assert {*rule.rule.needs, *rule.rule.wants} <= set(STATISTICS) | scalars
    assert rule.rule.needs or rule.rule.wants


def test_codes_are_in_order():
    found = [rule.rule.code for rule in DEFAULT_RULES_OVER_TIME]
    assert found == [f"SP4{k:02d}" for k in range(1, len(found) + 1)]


def test_ignore_and_own_rules():
    assert "SP403" not in codes(run(dead, judge=Judge(ignore=["SP403"])))
    assert "SP403" not in codes(run(dead, judge=Judge(ignore="SP403")))
    with pytest.raises(SignalpropError, match="SP401, SP402"):
        Judge(ignore=["SP499"])

    @over_time("MINE1", "Mine", when="steps", needs=("accuracy",))
    def mine(past, *, low=0.5):
        if past.scalars["accuracy"] < low:
            told = f"it is {past.scalars['accuracy']}"
            yield alarm(mine, past, value=0, unit="", threshold=low, since=0, explanation=told)

    (found,) = run(judge=Judge([mine]), accuracy=lambda step: 0.1)
    assert (found.code, found.severity, found.explanation) == ("MINE1", "issue", "it is 0.1.")
    assert run(judge=Judge([mine])) == []


def test_a_rule_that_fails_is_left_out_and_said_once(caplog):
    @over_time("MINE2", "Breaks", when="block")
    def breaks(past):
        raise ZeroDivisionError
        yield

    with caplog.at_level(logging.WARNING, "signalprop"):
        found = run(dead, judge=Judge([breaks, *DEFAULT_RULES_OVER_TIME]))
    assert "SP403" in codes(found)
    assert [r.message for r in caplog.records] == ["rule MINE2 failed and is left out"]


# ---- once ------------------------------------------------------------------------------------


def test_an_alert_is_told_once_with_all_its_sites():
    def all_die(step, v):
        v["dead"][:] = np.where(step >= ONSET, 1.0, 0.1)

    found = [a for a in run(all_die, samples=800) if a.code == "SP403"]
    assert len(found) == 1
    assert set(found[0].sites) == {site.name for site in SITES}


def test_again_after_it_was_gone_for_long():
    def twice(step, v):
        if 2000 <= step < 4000 or step >= 9000:
            v["dead"][3] = 1.0

    found = [a for a in run(twice, samples=800) if a.code == "SP403"]
    assert [a.since for a in found] == [2000, 9000]


def test_sites_one_after_another_are_no_flood():
    sites = tuple(RunSite(f"s{k}") for k in range(60))

    def one_by_one(step, v):
        v["dead"][: max(0, (step - 1000) // 100)] = 1.0

    found = [a for a in run(one_by_one, samples=700, every=10, sites=sites) if a.code == "SP403"]
    assert 1 < len(found) <= 20
    assert set().union(*(a.sites for a in found)) >= {f"s{k}" for k in range(40)}


def test_spikes_all_the_time_are_no_flood():
    rng, told, found = np.random.default_rng(0), Judge(), []
    for step in range(30_000):
        loss = loss_at(rng, step) + (3 if step % 400 > 385 else 0)
        found += told.step(step, {"loss": loss}, None)
    assert 1 <= len(found) <= 25


def test_spike_says_where_and_the_window_shows_it():
    rng, told, found = np.random.default_rng(0), Judge(), []
    told.sites = SITES
    for step in range(2004):
        gradients = np.exp(0.2 * rng.normal(size=12))
        if step >= 1990:
            gradients[4] *= 60
        found += told.step(step, {"loss": loss_at(rng, step) + 3 * (step >= 2000)}, gradients)
    (spike,) = found
    assert (spike.step, spike.since, spike.sites) == (2003, 1990, ("layer4",))
    steps, values, loss = told.window()
    assert steps.tolist() == list(range(2004 - 256, 2004))
    assert values["gradient_rms"].shape == (256, 12)
    assert loss[-1] > 3


def test_warm_restart_of_the_learning_rate_is_no_spike():
    rng, told, found = np.random.default_rng(0), Judge(), []
    for step in range(6000):
        after = step % 2000
        rate = 0.1 * (0.5 + 0.5 * np.cos(np.pi * after / 2000)) + 1e-5
        up = 1.5 * np.exp(-after / 300) * (step >= 2000)
        loss = 0.3 + 2 * np.exp(-step / 300) + up + 0.02 * rng.normal()
        found += told.step(step, {"loss": loss, "learning_rate": rate}, None)
    assert found == []


# ---- bounds ----------------------------------------------------------------------------------


def cost(call, times):
    """Seconds of one call, the best of five rounds."""
    best = []
    for _ in range(5):
        start = time.process_time()
        for k in range(times):
            call(k)
        best.append((time.process_time() - start) / times)
    return min(best)


def test_cost():
    """At 60 sites; the bounds are for a slow machine that does other things as well."""
    rng, told = np.random.default_rng(0), Judge()
    sites = tuple(RunSite(f"s{k}") for k in range(60))
    told.sites = sites
    losses, gradients = 1 + 0.1 * rng.normal(size=2000), np.ones((16, 60))
    at = iter(range(10**9))
    took = cost(lambda k: told.step(next(at), {"loss": losses[k]}, gradients[k % 16]), 2000)
    assert took < 30e-6
    samples = [healthy(rng, 0, 60) for _ in range(16)]
    took = cost(lambda k: told.see(Sample(next(at), sites, samples[k % 16], {"loss": 1.0})), 200)
    assert took < 800e-6


def test_memory_does_not_grow():
    rng, told = np.random.default_rng(0), Judge()
    samples = [healthy(rng, 0) for _ in range(16)]
    losses = (1 + 0.1 * rng.normal(size=1000)).tolist()

    def go(first, last):
        for step in range(first, last):
            told.see(Sample(step, SITES, samples[step % 16], {"loss": 1.0}))
            told.step(step, {"loss": losses[step % 1000]}, np.ones(12))

    go(0, 1000)
    tracemalloc.start()
    try:
        go(1000, 1500)  # what is kept of the last steps was allocated since
        before = tracemalloc.get_traced_memory()[0]
        go(1500, 3500)
        assert tracemalloc.get_traced_memory()[0] - before < 30_000
    finally:
        tracemalloc.stop()


def test_sites_that_come_later():
    rng, told, found = np.random.default_rng(0), Judge(), []
    sites = tuple(RunSite(f"s{k}") for k in range(40))
    for step in range(0, 8000, 20):
        known = min(4 + step // 100, 40)
        values = healthy(rng, step, 40)
        values["dead"][39] = 0.1 if step < 6000 else 1.0
        values = {name: value[:known] for name, value in values.items()}
        found += told.see(Sample(step, sites[:known], values, {}))
        found += told.step(step, {}, np.ones(known))
    assert told.sites == sites
    assert [(a.code, a.sites) for a in found] == [("SP403", ("s39",))]


# ---- a recorded run --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "loss"), [(None, None), (dying, loss_at), (vanishing, loss_at), (None, leap)]
)
def test_a_recorded_run_is_judged_alike(tmp_path, change, loss):
    path = tmp_path / "run.sp"
    writer = RunWriter(path, log=[name for name, one in STATISTICS.items() if one.log])

    class Both(Judge):
        def see(self, sample):
            writer.add_sites(sample.sites)
            writer.put(sample.step, sample.values)
            return super().see(sample)

        def step(self, step, scalars, gradients=None):
            writer.scalar(step, scalars)
            return super().step(step, scalars, gradients)

    told = run(change, judge=Both(), loss=loss)
    writer.close()
    with Run(path) as recorded:
        found = judge(recorded)
        assert judge(recorded, ignore=codes(found)) == ()
    assert [(a.code, a.step, a.since, a.sites) for a in found] == [
        (a.code, a.step, a.since, a.sites) for a in told
    ]
    assert bool(found) == (change is not None or loss is leap)


def test_a_recorded_value_that_is_not_finite(tmp_path):
    path = tmp_path / "run.sp"
    with RunWriter(path, log=["activation_rms"]) as writer:
        writer.add_sites(SITES)
        for step in range(0, 600, 2):
            values = np.ones(12)
            if step >= 500:
                values[5:] = np.inf
            writer.put(step, {"activation_rms": values})
            writer.scalar(step, {"loss": 1.0 if step < 500 else np.nan})
    with Run(path) as recorded:
        (found,) = judge(recorded)
    assert (found.code, found.step, found.sites) == ("SP411", 500, ("layer5",))


def test_an_empty_run(tmp_path):
    with RunWriter(tmp_path / "run.sp") as writer:
        writer.add_sites(SITES)
    with Run(tmp_path / "run.sp") as recorded:
        assert judge(recorded) == ()


def test_alarms_can_be_recorded():
    for found in run(dying, loss=no_fall):
        assert json.loads(json.dumps(found.detail)) == found.detail
