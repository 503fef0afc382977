"""SP412: page faults that dominate a run."""

import pytest
from tests.watching.rules.samples import codes, run

from signalprop.watching.rules import memory


@pytest.fixture(autouse=True)
def glibc(monkeypatch):
    monkeypatch.setattr(memory, "memory_setting", lambda: "given back (glibc's usual setting)")


def paced(faults, seconds):
    return run(samples=60, page_faults=lambda _: faults, seconds=lambda _: seconds)


def test_a_run_that_maps_memory_anew_is_told_once():
    (found,) = paced(109_000, 0.15)
    assert (found.code, found.severity, found.sites) == ("SP412", "tip", ())
    assert found.value == pytest.approx(109_000 * 5e-7 / 0.15)
    assert "keep_memory" in found.explanation


@pytest.mark.parametrize("faults", [0, 50, 5000])
def test_a_usual_run_is_not(faults):
    assert codes(paced(faults, 0.15)) == []


def test_where_it_would_not_help_it_is_silent(monkeypatch):
    monkeypatch.setattr(memory, "memory_setting", lambda: "kept in the process")
    assert codes(paced(109_000, 0.15)) == []


def test_without_the_numbers_it_is_silent():
    assert codes(run(samples=60)) == []
