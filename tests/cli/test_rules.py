"""`rules` and `explain`."""

import json

import pytest

from signalprop.cli import rulebook
from signalprop.diagnosis.engine import DEFAULT_RULES
from signalprop.watching.rules.judge import DEFAULT_RULES_OVER_TIME

RULES = (*DEFAULT_RULES, *DEFAULT_RULES_OVER_TIME)
INFOS = [judge.rule for judge in RULES]


def test_every_rule_is_listed(run):
    ran = run("rules")
    assert ran.status == 0
    words = " ".join(ran.out.split())
    for info in INFOS:
        assert info.code in words
        assert info.title in words
        for name, value in info.thresholds.items():
            assert f"{name}={value!r}" in words
        for need in info.needs:
            assert need in words


def test_fits_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, run("rules").out.splitlines())) <= 80


def test_rules_as_json(run):
    listed = json.loads(run("rules", "--json").out)
    assert [r["code"] for r in listed] == sorted(info.code for info in INFOS)
    assert set(listed[0]) == {
        "code",
        "title",
        "severity",
        "needs",
        "wants",
        "cures",
        "thresholds",
    }


@pytest.mark.parametrize("judge", RULES, ids=lambda judge: judge.rule.code)
def test_every_page(run, judge):
    ran = run("explain", judge.rule.code.lower())
    assert ran.status == 0
    words = " ".join(ran.out.split())
    assert judge.rule.title in words
    for section in ("How it is detected", "Why it matters", "How to cure it"):
        assert section in words
        assert f"{section}:" not in words  # a heading, not a line of text
    for name, value in judge.rule.thresholds.items():
        assert f"{name} = {value!r}" in words
    for cure in judge.rule.cures:
        assert cure in words


def test_unknown(refused):
    said = refused("SP1O1", command="explain")
    assert said.startswith("there is no rule 'SP1O1'; did you mean SP101")
    assert said.endswith("`signalprop rules` lists all")


class TestDocument:
    def test_sections(self):
        text = rulebook.document(
            "One line.\n\nMore: not a heading.\n\nHow it is detected:\n    By `x`.\n\n"
            "    Twice.\nWhy it matters:\n    It does.\n\nReturns:\n    Findings.\n\nEnd."
        )
        assert text.splitlines() == [
            "One line.",
            "",
            "More: not a heading.",
            "",
            "",
            "## How it is detected",
            "",
            "By `x`.",
            "",
            "Twice.",
            "",
            "",
            "## Why it matters",
            "",
            "It does.",
            "",
            "End.",
        ]

    def test_no_section(self):
        assert rulebook.document("") == ""
        assert rulebook.document("A line.") == "A line."
