"""`horizon`, and `trace` over time: what they pass on, print, write and return."""

import json
import sys
import types

import pytest
from tests.report.time_samples import curve, horizons

from signalprop.errors import SignalpropError

NET = """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 6, batch_first=True)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    def build():
        return Net(), (torch.randn(4, 30, 3), torch.randint(2, (4,))), F.cross_entropy
"""


@pytest.fixture
def recurrent(write):
    """A file of the user's with an LSTM."""
    return write(NET)


@pytest.fixture
def calls(monkeypatch):
    """Replace the measurement; gives what it was called with."""
    calls = {}

    def horizon(model, batch, loss=None, **options):
        calls.update(options, model=model, batch=batch, loss=loss)
        if options["exponents"] == 99:
            raise SignalpropError("nothing recurs")
        print("a word")  # noqa: T201
        return horizons(curve(0.5), exponents=bool(options["exponents"]))

    fake = types.ModuleType("signalprop.recurrent.horizon.measure")
    monkeypatch.setattr(fake, "horizon", horizon, raising=False)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return calls


def test_view(run, train, calls):
    ran = run("horizon", "train.py:build")
    assert ran.status == 0, ran.err
    assert "The horizon of rnn (rnn_tanh) is 1 step" in ran.out
    assert "\x1b" not in ran.out


def test_defaults(run, train, calls):
    run("horizon", "train.py:build")
    assert [tuple(x.shape) for x in calls.pop("batch")] == [(16, 6), (16,)]
    assert calls.pop("loss").__name__ == "cross_entropy"
    assert type(calls.pop("model")).__name__ == "Sequential"
    assert calls == {
        "errors": 4, "samples": 16, "gains": True, "spectra": False, "exponents": 0, "steps": None,
        "batch_dim": 0, "seed": 0,
    }  # fmt: skip


def test_every_option_is_passed_on(run, train, calls):
    words = "--errors 2 --samples 5 --no-gains --spectra --exponents 3 --steps 9,2 --steps 9"
    ran = run("horizon", "train.py:build", *f"{words} --batch-dim 0 --seed 7".split())
    assert ran.status == 0, ran.err
    for name in ("model", "batch", "loss"):
        calls.pop(name)
    assert calls == {
        "errors": 2, "samples": 5, "gains": False, "spectra": True, "exponents": 3, "steps": [2, 9],
        "batch_dim": 0, "seed": 7,
    }  # fmt: skip


def test_no_labels_are_needed(run, train, calls):
    ran = run("horizon", "train.py:net", "--input", "5x6")
    assert ran.status == 0, ran.err
    assert tuple(calls["batch"].shape) == (5, 6)
    assert calls["loss"] is None


def test_json_and_html(run, train, calls, folder):
    words = "--exponents 2 --json --html horizon.html".split()
    ran = run("horizon", "train.py:build", *words)
    found = json.loads(ran.out)
    assert found["curves"][0]["steps"] == 1
    assert found["exponents"][0]["size"] == 3
    assert "a word" in ran.err
    assert "report: horizon.html" in ran.err
    assert "Horizon of Net" in (folder / "horizon.html").read_text()


def test_quiet_is_one_line(run, train, calls):
    lines = run("horizon", "train.py:build", "--quiet").out.splitlines()
    assert len(lines) == 2  # the user's own word, and ours
    assert lines[1].startswith("The horizon of rnn")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--errors", "0"], "--errors 0 must be at least 1"),
        (["--samples", "-1"], "--samples -1 must be at least 1"),
        (["--exponents", "-2"], "--exponents -2 must be at least 0"),
        (["--exponents", "99"], "nothing recurs"),
        (["--steps", "2,1"], "--steps 1: give steps from 2 up"),
        (["--steps", "2..9"], "--steps 2..9: give steps from 2 up"),
        (["--html", "no/such/page.html"], "does not exist"),
    ],
)
def test_refused(refused, train, calls, words, said):
    assert said in refused("train.py:build", *words, command="horizon")


def test_a_real_one(run, recurrent):
    words = "--exponents 2 --spectra --steps 2,30".split()
    ran = run("horizon", "train.py:build", *words)
    assert ran.status == 0, ran.err
    assert "The horizon of rnn (lstm) is" in ran.out
    assert "Lyapunov exponents" in ran.out


def test_what_does_not_recur(refused, train):
    assert "nothing in Sequential recurs" in refused("train.py:build", command="horizon")


def test_trace_sees_every_step_where_asked(run, recurrent):
    borders = json.loads(run("trace", "train.py:build", "--json").out)["time"][0]
    every = json.loads(run("trace", "train.py:build", "--json", "--deltas", "all").out)["time"][0]
    assert len(borders["steps"]) < 30
    assert every["steps"] == list(range(1, 31))
    assert "Through time:" in run("trace", "train.py:build").out


def test_trace_knows_two_ways(refused, recurrent):
    assert "some" in refused("train.py:build", "--deltas", "some", command="trace")
