"""Odd networks: numbers, or one sentence that says what to do."""

from __future__ import annotations

import math
import traceback

import pytest
import torch
import torch.nn.functional as F
from tests.cases import CASES, by_name, cases
from torch import nn

import signalprop as sp

NAMED = {"ids": lambda case: case.name}


def look(what, case):
    model, batch, loss = case.build()
    if what == "trace":
        return sp.trace(model, batch, loss)
    return sp.diagnose(model, batch, loss, case.optimizer(model) if case.optimizer else None)


def outcome(call):
    """What a call gives, or the error it refuses with."""
    try:
        return call(), None
    except sp.SignalpropError as error:
        return None, error


def is_one_sentence(error):
    text = str(error)
    assert isinstance(error, sp.SignalpropError)
    assert "\n" not in text
    assert 20 < len(text) < 500
    assert "Traceback" not in text
    assert not text.endswith((" ", ":", ";", ","))
    return True


#: refused by plain training, but seen all the same: delta reaches the input without a parameter
SEEN = {"empty-module", "no-parameters", "inference-mode-batch", "all-frozen"}


@pytest.mark.parametrize("what", ["trace", "diagnose"])
@pytest.mark.parametrize("case", cases("odd"), **NAMED)
def test_an_odd_network_gives_numbers_or_one_sentence(case, what):
    found, error = outcome(lambda: look(what, case))
    if error is not None:
        assert is_one_sentence(error)
        assert case.error is not None, error
        assert case.error.lower() in str(error).lower()
        assert case.name not in SEEN
        return
    assert case.error is None or case.name in SEEN or found.findings
    trace = found if what == "trace" else found.trace
    assert trace.sites
    if what == "diagnose":
        assert case.expect <= {f.code for f in found.findings}


@pytest.mark.parametrize("what", ["trace", "diagnose"])
@pytest.mark.parametrize("case", [c for c in CASES if c.health != "odd"], **NAMED)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_all_others_are_seen_without_a_warning(case, what):
    """The tool itself causes no warning (warnings are errors here), and refuses nothing."""
    if (case.name, what) == ("labels-from-one", "trace"):
        with pytest.raises(sp.SignalpropError, match="Target 10 is out of bounds"):
            look(what, case)
        return
    found = look(what, case)
    if case.health == "healthy":
        trace = found if what == "trace" else found.trace
        assert math.isfinite(trace.loss)
        assert all(s.activation.finite for s in trace.sites.values())


@pytest.mark.parametrize("case", cases("healthy"), **NAMED)
def test_everything_is_measured_on_a_healthy_network(case):
    found = look("diagnose", case)
    assert found.learning is not None
    assert len(found.learning.after) >= 3
    assert sum(found.learning.share.values()) == pytest.approx(1.0, abs=1e-9)
    plain = found.learning.optimizer in ("SGD", "ASGD")
    assert (found.sharpness is not None) == (plain and not found.learning.falls)
    reasons = [r.reason for r in found.results if r.outcome == "skipped"]
    assert not [r for r in reasons if "could not be measured" in r or "Error" in r]


def test_the_noise_of_the_gradient_is_measured():
    found = look("diagnose", by_name("mlp-relu-he-10"))
    assert found.noise is not None
    assert found.noise.keys() == found.learning.share.keys()
    assert all(ratio > 0 for ratio in found.noise.values())


# ---- one thing wrong at a time -------------------------------------------------------------------

NET = nn.Linear(4, 3)
X, Y = torch.randn(8, 4), torch.randint(3, (8,))


class Gives(nn.Module):
    """A network that gives what it is told to."""

    def __init__(self, output):
        super().__init__()
        self.net, self.output = nn.Linear(4, 3), output

    def forward(self, x):
        return self.output(self.net(x))


WRONG = {
    "no module": (lambda x: x, (X, Y), F.cross_entropy, "torch.nn.Module"),
    "a list": ([NET], (X, Y), F.cross_entropy, "torch.nn.Module"),
    "no target": (NET, X, F.cross_entropy, "target"),
    "empty tuple": (NET, (), F.cross_entropy, "empty"),
    "one in a tuple": (NET, (X,), F.cross_entropy, "one tensor only"),
    "dict without a target": (NET, {"input": X}, F.cross_entropy, "name it one of"),
    "unknown keyword": (NET, ({"inputs": X}, Y), F.cross_entropy, "inputs"),
    "empty loader": (NET, iter([]), F.cross_entropy, "empty"),
    "no loss": (NET, X, None, "no loss was given"),
    "loss is a number": (NET, (X, Y), lambda o, y: 3.0, "must return a tensor"),
    "loss is None": (NET, (X, Y), lambda o, y: None, "must return a tensor"),
    "loss has no graph": (NET, (X, Y), lambda o, y: o.argmax(1).float().mean(), "does not depend"),
    "loss was taken out": (
        NET,
        (X, Y),
        lambda o, y: torch.tensor(o.sum().item()),
        "does not depend",
    ),
    "loss is per sample": (NET, (X, Y), nn.CrossEntropyLoss(reduction="none"), "one number"),
    "loss takes three": (NET, (X, Y), lambda o, y, w: o.sum(), "loss raised"),
    "loss is complex": (NET, (X, Y), lambda o, y: o.sum() * 1j, "complex"),
    "loss raises": (NET, (X, Y.float()), F.cross_entropy, "loss raised"),
    "loss raises many lines": (
        NET,
        (X, Y),
        lambda o, y: (_ for _ in ()).throw(ValueError("one\ntwo\nthree")),
        "one",
    ),
    "raises without words": (Gives(lambda o: 1 / 0), (X, Y), F.cross_entropy, "division"),
    "raises an empty error": (
        Gives(lambda o: (_ for _ in ()).throw(ValueError())),
        (X, Y),
        F.cross_entropy,
        "ValueError",
    ),
    "gives None": (Gives(lambda o: None), (X, Y), F.cross_entropy, "NoneType"),
    "gives a string": (Gives(str), (X, Y), F.cross_entropy, "str"),
    "gives numbers": (Gives(lambda o: o.tolist()), (X, Y), F.cross_entropy, "list"),
    "wrong width": (NET, (X[:, :3], Y), F.cross_entropy, "8x3"),
    "wrong dtype": (NET, (X.double(), Y), F.cross_entropy, "dtype"),
    "wrong number of targets": (NET, (X, Y[:5]), F.cross_entropy, "batch"),
    "integers into a linear": (NET, (Y[:, None].expand(8, 4), Y), F.cross_entropy, "dtype"),
    "index out of range": (nn.Embedding(2, 3), (Y, Y), F.cross_entropy, "index"),
    "no samples": (NET, (X[:0], Y[:0]), F.cross_entropy, "no samples"),
    "text": (NET, ("a picture of a cat", Y), F.cross_entropy, "str"),
    "None": (NET, None, F.cross_entropy, ""),
    "a graph that cannot go back": (
        Gives(lambda o: torch.where(o > 0, o, o).data.requires_grad_() * 1),
        (X, Y),
        F.cross_entropy,
        None,
    ),
    "changed in place after use": (
        Gives(lambda o: (lambda e: (e, e.mul_(2))[0])(o.exp())),
        (X, Y),
        F.cross_entropy,
        "changed in place after it was used",
    ),
    "scripted": (torch.jit.ScriptModule, (X, Y), F.cross_entropy, "torch.nn.Module"),
}


@pytest.mark.parametrize("what", ["trace", "diagnose"])
@pytest.mark.parametrize("name", WRONG)
def test_one_thing_wrong_gives_one_sentence(name, what):
    model, batch, loss, text = WRONG[name]
    if text is None:
        getattr(sp, what)(model, batch, loss)
        return
    found, error = outcome(lambda: getattr(sp, what)(model, batch, loss))
    if error is not None:
        assert is_one_sentence(error)
        assert text.lower() in str(error).lower()
        return
    # `diagnose` may explain by a rule what `trace` can only refuse
    assert what == "diagnose"
    assert not found.healthy
    assert found.trace.failure is not None


def test_the_place_of_a_failure_is_named():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.ok, self.bad = nn.Linear(4, 4), nn.Linear(7, 3)

        def forward(self, x):
            return self.bad(self.ok(x))

    with pytest.raises(sp.SignalpropError, match=r"'1\.bad'.*8x4 and 7x3"):
        sp.trace(nn.Sequential(nn.Linear(4, 4), Inner()), (X, Y), F.cross_entropy)


def test_the_users_own_error_is_the_cause():
    with pytest.raises(sp.SignalpropError) as caught:
        sp.trace(by_name("raises-in-forward").build()[0], (torch.randn(2, 16), Y), F.cross_entropy)
    assert isinstance(caught.value.__cause__, ValueError)
    frames = traceback.extract_tb(caught.value.__cause__.__traceback__)
    assert frames[-1].line.startswith("raise ValueError")


def test_an_unknown_code_to_ignore_is_one_sentence():
    with pytest.raises(sp.SignalpropError, match="there is no rule SP999") as caught:
        sp.diagnose(NET, (X, Y), F.cross_entropy, ignore=["SP999"])
    assert is_one_sentence(caught.value)


def test_an_optimizer_that_is_none_is_one_sentence():
    with pytest.raises(sp.SignalpropError) as caught:
        sp.diagnose(NET, (X, Y), F.cross_entropy, torch.optim.SGD)  # the class, not an object
    assert is_one_sentence(caught.value)


def test_running_out_of_memory_says_what_to_do():
    def hungry(output, target):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    with pytest.raises(sp.SignalpropError, match="smaller batch") as caught:
        sp.trace(NET, (X, Y), hungry)
    assert is_one_sentence(caught.value)
