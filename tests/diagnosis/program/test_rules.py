"""All rules about the program: over every case, and as a set."""

import inspect
import warnings

import pytest
from tests.cases import cases
from tests.diagnosis.support import evidence_of, optimizer_facts, outcome

from signalprop.diagnosis.program.rules import PROGRAM_RULES

#: what these need is measured by the engine, whose tests run them over the cases
MEASURED = {"SP210", "SP211"}


def seen(case):
    model, batch, loss = case.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return evidence_of(model, batch, loss, optimizer=optimizer_facts(model))


def test_codes():
    assert [r.rule.code for r in PROGRAM_RULES] == [f"SP{n}" for n in range(201, 216)]


@pytest.mark.parametrize("rule", PROGRAM_RULES, ids=lambda r: r.rule.code)
def test_rule_is_documented_and_can_be_tuned(rule):
    assert rule.rule.thresholds
    assert rule.rule.cures
    doc = inspect.getdoc(rule)
    titles = ("How it is detected:", "Why it matters:", "How to cure it:")
    places = [doc.index(title) for title in titles]
    assert places == sorted(places)
    for name in rule.rule.thresholds:
        assert f"`{name}`" in doc, name


@pytest.mark.parametrize("case", cases("healthy"), ids=lambda c: c.name)
def test_healthy_networks_are_silent(case):
    evidence = seen(case)
    for rule in PROGRAM_RULES:
        told = outcome(rule, evidence)
        assert all(t.startswith("not applicable") for t in told), (rule.rule.code, told)


@pytest.mark.parametrize(
    "case",
    [c for c in cases("sick") if any(code >= "SP2" for code in c.expect - MEASURED)],
    ids=lambda c: c.name,
)
def test_sick_programs_are_found(case):
    if "SP212" in case.expect:
        pytest.skip("needs the case's own optimizer, which the engine's tests give it")
    evidence = seen(case)
    found = {r.rule.code for r in PROGRAM_RULES if "issue" in outcome(r, evidence)}
    assert {code for code in case.expect if code >= "SP2"} <= found


@pytest.mark.parametrize(
    "case",
    [c for c in cases("odd") if c.name not in ("lazy-parameters", "empty-batch", "meta-device")],
    ids=lambda c: c.name,
)
def test_odd_networks_do_not_stop_a_rule(case):
    evidence = seen(case)
    for rule in PROGRAM_RULES:
        outcome(rule, evidence)
