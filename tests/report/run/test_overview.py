"""A run at a glance, and what is said of it; also of one that holds nonsense."""

import math

import pytest
from tests.report.run import samples

from signalprop.report.run import said
from signalprop.report.run.overview import overview, told
from signalprop.watching.file.reader import Run
from signalprop.watching.file.result import Alert
from signalprop.watching.file.writer import RunWriter


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    path = samples.write(tmp_path_factory.mktemp("runs") / "run.sp")
    with Run(path) as run:
        return overview(run)


def test_a_run(seen):
    assert (seen.first, seen.last, seen.sampled) == (0, 10_000, 201)
    assert (len(seen.sites), seen.windows, seen.replays) == (38, 1, 0)
    assert seen.state == "issue"
    assert seen.seconds >= 0
    assert said.headline(seen) == (
        "1 issue and 1 tip in 201 sampled steps up to step 10,000. First: A layer stops learning, "
        "from step 4,000 on at block1.attention.query and 1 more."
    )
    facts = dict(said.facts(seen))
    assert facts["steps"] == "0 to 10,000, 201 sampled"
    assert facts["model"] == "GPT"


def test_a_healthy_run(tmp_path):
    with Run(samples.write(tmp_path / "run.sp", sick=False)) as run:
        seen = overview(run)
    assert seen.state == "healthy"
    assert said.headline(seen) == "No alerts in 201 sampled steps up to step 10,000."


def test_a_run_that_has_just_begun(tmp_path):
    with RunWriter(tmp_path / "run.sp") as writer:
        writer.flush()
        with Run(tmp_path / "run.sp") as run:
            seen = overview(run)
    assert (seen.first, seen.last, seen.sampled, seen.seconds) == (None, None, 0, None)
    assert seen.state == "seen"
    assert said.headline(seen) == "Nothing was recorded yet."


def test_an_alert(seen):
    alert = seen.alerts[0]
    assert (alert.step, alert.since, alert.code) == (4600, 4000, "SP402")
    assert alert.measured == "-14.2 nats (threshold -7.00 nats)"
    assert said.brief(alert).endswith("from step 4,000 on at block1.attention.query and 1 more")


@pytest.mark.parametrize(
    "detail",
    [
        None, 3, "text", [], {"sites": "a", "cures": 7, "value": "x", "since": "y"},
        {"title": None, "explanation": {"a": 1}, "value": math.inf, "threshold": math.nan},
        {"since": 10**40, "value": 10**400, "unit": ["nats"], "sites": [1, None, ["x"]]},
        {"value": True, "since": True},
    ],
)  # fmt: skip
def test_any_detail_is_shown_somehow(detail):
    found = told(Alert(5, "SP1", "whatever", "a.site", detail))
    assert found.severity == "issue"
    assert found.since <= found.step
    assert all(isinstance(text, str) for text in (found.title, found.explanation, found.measured))
    assert all(isinstance(site, str) for site in found.sites)
    assert said.brief(found)


def test_long_and_broken_texts():
    detail = {"title": "a\x1b[31m\nb" * 500, "explanation": "x" * 10**5, "sites": ["s"] * 10**4}
    found = told(Alert(5, "S\nP" * 100, "tip", None, detail))
    assert len(found.title) <= 160
    assert len(found.explanation) <= 2000
    assert len(found.sites) <= 256
    assert "\x1b" not in found.title + found.code
    assert "\n" not in found.title + found.code


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, ""), (0.5, "0.5 s"), (75, "1 min 15 s"), (3720, "1 h 02 min"), (200_000, "2 d 7 h")],
)
def test_duration(seconds, words):
    assert said.duration(seconds) == words


def test_the_statistic_that_is_shown_first():
    assert said.chosen(["dead", "delta_rms", "gradient_norm"]) == "gradient_norm"
    assert said.chosen(["my_own"]) == "my_own"
    assert said.chosen([]) is None
    assert said.label("my_own") == "my own"
