"""`spectrum`: what it passes on, prints, writes and returns."""

import json
import sys
import types

import pytest
from tests.report import spectra_samples as samples

from signalprop.errors import SignalpropError


@pytest.fixture
def calls(monkeypatch):
    """Replace the measurement; gives what it was called with."""
    calls = {}

    def spectrum(model, batch, loss=None, **options):
        options.pop("progress")("input to 2")
        calls.update(options, model=model, batch=batch, loss=loss)
        if options["of"] == "nowhere":
            raise SignalpropError("there is no site 'nowhere'; did you mean '2'?")
        print("a word")  # noqa: T201
        return samples.residual(3)

    fake = types.ModuleType("signalprop.jacobian.spectrum")
    monkeypatch.setattr(fake, "spectrum", spectrum, raising=False)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return calls


def test_view(run, train, calls):
    ran = run("spectrum", "train.py:build")
    assert ran.status == 0, ran.err
    assert "The singular values of J from embed to h.2.add run from" in ran.out
    assert "Certificate of 3 residual blocks" in ran.out
    assert "\x1b" not in ran.out


def test_defaults(run, train, calls):
    run("spectrum", "train.py:build")
    assert [tuple(x.shape) for x in calls.pop("batch")] == [(16, 6), (16,)]
    assert calls.pop("loss").__name__ == "cross_entropy"
    assert type(calls.pop("model")).__name__ == "Sequential"
    assert calls == {
        "of": None, "wrt": None, "k": 8, "smallest": 0, "whole": None, "blocks": True,
        "distribution": False, "profile": True,
        "samples": 8, "batch_norm": "frozen", "batch_dim": 0, "seed": 0,
    }  # fmt: skip


def test_every_option_is_passed_on(run, train, calls):
    words = "--of 2 --wrt 0 --k 3 --smallest 2 --whole --distribution --no-blocks --no-profile"
    words += " --samples 5 --batch-norm eval --seed 7"
    ran = run("spectrum", "train.py:build", *words.split())
    assert ran.status == 0, ran.err
    for name in ("model", "batch", "loss"):
        calls.pop(name)
    assert calls == {
        "of": "2", "wrt": "0", "k": 3, "smallest": 2, "whole": True, "blocks": False,
        "distribution": True, "profile": False,
        "samples": 5, "batch_norm": "eval", "batch_dim": 0, "seed": 7,
    }  # fmt: skip


def test_random_data(run, train, calls):
    ran = run("spectrum", "train.py:net", "--input", "5x6", "--classes", "3")
    assert ran.status == 0, ran.err
    assert tuple(calls["batch"][0].shape) == (5, 6)


def test_no_labels_are_needed(run, train, calls):
    ran = run("spectrum", "train.py:net", "--input", "5x6")
    assert ran.status == 0, ran.err
    assert tuple(calls["batch"].shape) == (5, 6)
    assert calls["loss"] is None


def test_json_and_html(run, train, calls, folder):
    ran = run("spectrum", "train.py:build", "--json", "--html", "jacobians.html")
    found = json.loads(ran.out)
    assert found["model"] == "Residual"
    assert len(found["blocks"]) == 3
    assert "a word" in ran.err
    assert "report: jacobians.html" in ran.err
    assert "Jacobians of Residual" in (folder / "jacobians.html").read_text()


def test_quiet_is_one_line(run, train, calls):
    lines = run("spectrum", "train.py:build", "--quiet").out.splitlines()
    assert len(lines) == 2  # the user's own word, and ours
    assert lines[1].startswith("The singular values of J")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--k", "0"], "--k 0 must be at least 1"),
        (["--samples", "-1"], "--samples -1 must be at least 1"),
        (["--smallest", "-2"], "--smallest -2 must be at least 0"),
        (["--of", "nowhere"], "there is no site 'nowhere'; did you mean '2'?"),
        (["--batch-norm", "training"], "training"),
        (["--html", "no/such/page.html"], "does not exist"),
    ],
)
def test_refused(refused, train, calls, words, said):
    assert said in refused("train.py:build", *words, command="spectrum")


def test_a_missing_file(refused, folder):
    assert refused("tran.py:build", command="spectrum").startswith("there is no file tran.py")


def test_interrupted(run, train, calls, monkeypatch):
    def spectrum(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["signalprop.jacobian.spectrum"], "spectrum", spectrum)
    ran = run("spectrum", "train.py:build")
    assert (ran.status, ran.out, ran.err) == (130, "", "interrupted\n")
