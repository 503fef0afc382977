"""The catalogue: rules and cures name each other, and every line can be pasted."""

from __future__ import annotations

import ast
import contextlib
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import signalprop.cures
from signalprop import diagnosis
from signalprop.cures.catalogue import CATALOGUE, CURES
from signalprop.cures.cure import Cure, DoesNotApply
from signalprop.cures.trials.prescribe import FAMILIES
from signalprop.diagnosis.engine import DEFAULT_RULES

RULES = {one.rule.code: one.rule for one in DEFAULT_RULES}

#: cures for users who know what they want: no finding asks for one rather than for another
NO_RULE = {"glorot-init", "lecun-init", "delta-orthogonal-init", "shaped-activation"}


# ---- the tuple -------------------------------------------------------------------------------


def test_every_cure_of_every_file_is_there_once():
    found = {}
    for module in pkgutil.walk_packages(signalprop.cures.__path__, "signalprop.cures."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Cure) and value.function.__module__ == module.name:
                found[value.name] = value
    assert found == CATALOGUE
    assert len(CURES) == len(CATALOGUE) == len({c.function.__name__ for c in CURES})
    assert all(c.name.replace("-", "_") == c.function.__name__ for c in CURES)


def test_order():
    place = {name: i for i, name in enumerate(CATALOGUE)}
    for before, after in [
        ("train-mode", "float32"),
        ("cast-targets", "use-cross-entropy"),
        ("clean-data", "normalise-inputs"),
        ("normalise-inputs", "residual"),
        ("remove-output-activation", "scale-targets"),
        ("lstm", "forget-bias"),
        ("residual", "normalise"),
        ("normalise", "swap-activation"),
        ("swap-activation", "he-init"),
        ("orthogonal-init", "lsuv"),
        ("he-init", "rezero"),
        ("rezero", "rebuild-optimizer"),
        ("rebuild-optimizer", "adam"),
        ("adam", "clip-gradient"),
        ("warm-up", "lower-learning-rate"),
    ]:
        assert place[before] < place[after], (before, after)
    assert list(CATALOGUE)[-2:] == ["lower-learning-rate", "raise-learning-rate"]


def test_families_name_cures_that_there_are():
    assert set().union(*FAMILIES) <= set(CATALOGUE)
    assert all(len(family) > 1 for family in FAMILIES)


# ---- rules and cures -------------------------------------------------------------------------


@pytest.mark.parametrize("code", RULES)
def test_what_a_rule_names_treats_it(code):
    for name in RULES[code].cures:
        assert name in CATALOGUE, name
        assert code in CATALOGUE[name].treats, name
    assert len(set(RULES[code].cures)) == len(RULES[code].cures)


@pytest.mark.parametrize("one", CURES, ids=lambda c: c.name)
def test_what_a_cure_treats_names_it(one):
    assert set(one.treats) <= set(RULES)
    silent = {code for code in one.treats if one.name not in RULES[code].cures}
    assert not silent
    assert bool(one.treats) != (one.name in NO_RULE)
    assert len(set(one.treats)) == len(one.treats)


def test_findings_name_cures_that_their_rules_name():
    """Findings may name their cures themselves; these stand in the source."""
    for path in Path(diagnosis.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        rules, findings = set(), set()
        for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            known = rules if getattr(call.func, "id", "") == "rule" else findings
            for keyword in call.keywords:
                if keyword.arg == "cures":
                    texts = (n for n in ast.walk(keyword.value) if isinstance(n, ast.Constant))
                    known |= {n.value for n in texts if n.value in CATALOGUE or "-" in str(n.value)}
        assert findings <= rules, (path.name, findings - rules)


# ---- lines -----------------------------------------------------------------------------------


def test_the_package_has_every_cure_by_name():
    for one in CURES:
        assert getattr(signalprop.cures, one.function.__name__) is one
        assert one.function.__name__ in dir(signalprop.cures)
    with pytest.raises(AttributeError, match="no_such_cure"):
        signalprop.cures.no_such_cure
    namespace = {}
    exec("from signalprop.cures import he_init", namespace)
    assert namespace["he_init"] is CATALOGUE["he-init"]


def test_importing_the_package_stays_light():
    script = (
        "import sys, signalprop, signalprop.cures\n"
        "loaded = [m for m in sys.modules if m.startswith('signalprop.cures.')]\n"
        "assert not loaded, loaded\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.layer, self.head = kind(6, 8, batch_first=True, **options), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x):
        return x + self.branch(x)


def deep(activation=nn.ReLU, norm=None, layers=6):
    made = [nn.Linear(6, 8), activation()]
    for _ in range(layers):
        made += [nn.Linear(8, 8), *([norm(8)] if norm else []), activation()]
    return nn.Sequential(*made, nn.Linear(8, 4))


def constant():
    model = deep()
    nn.init.ones_(model[2].weight)
    return model


def frozen():
    model = deep(norm=nn.BatchNorm1d)
    model[3].requires_grad_(False)
    return model


def nets():
    """Small networks, some of which every cure of the model fits."""
    rows = torch.randn(32, 6), torch.arange(32) % 4
    steps = torch.randn(8, 12, 6), torch.arange(8) % 4
    images = torch.randn(8, 3, 6, 6), torch.arange(8) % 4
    convolutions = [m for _ in range(3) for m in (nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())]
    yield deep(), rows
    yield deep(layers=40), rows
    yield deep(nn.Tanh), rows
    yield deep(nn.Sigmoid), rows
    yield deep(norm=nn.BatchNorm1d), rows
    yield deep().eval(), rows
    yield frozen(), rows
    yield constant(), rows
    yield nn.Sequential(nn.Linear(6, 8), *(Block() for _ in range(6)), nn.Linear(8, 4)), rows
    yield Recurrent(nn.RNN), steps
    yield Recurrent(nn.LSTM), steps
    yield Recurrent(nn.GRU), steps
    yield nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(108, 4)), images
    yield nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)), rows


@pytest.mark.parametrize(
    "one", [c for c in CURES if c.changes.startswith("model")], ids=lambda c: c.name
)
def test_the_line_of_a_cure_of_the_model_runs(one):
    for model, data in nets():
        namespace = {"signalprop": signalprop, "model": model, "data": data}
        with contextlib.suppress(DoesNotApply):
            exec(one.line, namespace)
            after = namespace["model"]
            assert after is not model
            loss = F.cross_entropy(after(data[0]), data[1])
            loss.backward()
            assert torch.isfinite(loss)
            return
    pytest.fail("it fits none of the networks")


@pytest.mark.parametrize(
    "one", [c for c in CURES if not c.changes.startswith("model")], ids=lambda c: c.name
)
def test_the_line_of_other_cures_is_the_cure(one):
    assert eval(one.line, {"signalprop": signalprop}) is one
