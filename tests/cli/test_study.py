"""`study`, on studies that take no time."""

import json
from dataclasses import dataclass

import pytest

from signalprop import studies


@dataclass(frozen=True)
class Study:
    name: str
    title: str
    statement: str
    source: str


@dataclass(frozen=True)
class Result:
    name: str
    verdict: str = "holds"

    def __rich__(self):
        return f"{self.name} {self.verdict}"

    def to_dict(self):
        return {"study": self.name, "verdict": self.verdict}

    def save(self, path):
        path.write_text("<html>")
        return path


@pytest.fixture
def calls(monkeypatch):
    """Replace the running of a study; gives what it was called with."""
    calls = {}

    def run(name, *, quick=False, seed=0, progress=None):
        studies.find(name)
        calls.update(name=name, quick=quick, seed=seed)
        progress(0.5, "half")
        print("a word")  # noqa: T201
        return Result(name)

    monkeypatch.setattr(studies, "run", run)
    return calls


def test_list(run):
    ran = run("study", "list")
    assert ran.status == 0
    for study in studies.STUDIES:
        assert study.name in ran.out


def test_list_as_json(run):
    listed = json.loads(run("study", "list", "--json").out)
    assert [s["name"] for s in listed] == [s.name for s in studies.STUDIES]
    assert set(listed[0]) == {"name", "title", "statement", "source"}


def test_run(run, calls):
    ran = run("study", "alexnet", "--quick", "--seed", "7")
    assert ran.status == 0
    assert "alexnet holds" in ran.out
    assert calls == {"name": "alexnet", "quick": True, "seed": 7}


def test_defaults(run, calls):
    run("study", "delta-chain")
    assert calls == {"name": "delta-chain", "quick": False, "seed": 0}


def test_json_and_html(run, calls, folder):
    ran = run("study", "alexnet", "--json", "--html", "alexnet.html")
    assert json.loads(ran.out) == {"study": "alexnet", "verdict": "holds"}
    assert (folder / "alexnet.html").exists()
    assert "a word" in ran.err


def test_unknown(refused, calls):
    assert "did you mean alexnet?" in refused("alexnt", command="study")


def test_html_in_a_missing_folder(refused, calls, folder):
    assert "does not exist" in refused("alexnet", "--html", "no/a.html", command="study")
    assert not calls
