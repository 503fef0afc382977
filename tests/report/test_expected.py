"""What theory expects, beside what was measured."""

import math

import pytest
from tests.cases import by_name

import signalprop as sp
from signalprop.report import text
from signalprop.report.contents import contents
from signalprop.report.expected import of_rows, sentence
from signalprop.report.ladder import ladder
from signalprop.report.sections import blocks
from signalprop.theory.expect import BlockExpectation


def diagnosed(name):
    return sp.diagnose(*by_name(name).build())


def block(expected, measured, end="1"):
    return BlockExpectation("0", end, expected, measured, "", "")


def test_rows_add_up_to_the_whole():
    found = diagnosed("mlp-sigmoid-30")
    rows = of_rows(found.expected, ladder(found.trace).rows)
    whole = sum(b.expected for b in found.expected.values())
    assert sum(v for v in rows if v is not None) == pytest.approx(whole)
    assert whole == pytest.approx(found.decay, abs=0.5)


def test_a_row_with_a_part_that_theory_cannot_tell_has_none():
    found = diagnosed("gpt2")
    rows = ladder(found.trace, fold=False).rows
    for row, value in zip(rows, of_rows(found.expected, rows), strict=True):
        ends = [name for name in row.sites if name in found.expected]
        untold = any(found.expected[name].expected is None for name in ends)
        assert (value is None) == (untold or not ends)


def test_the_sentence():
    said = sentence({"1": block(-1.0, -1.1), "2": block(-2.0, -3.0, "2"), "3": block(None, -9.0)})
    assert said == (
        "Mean-field theory expects -3.00 nats over 2 of 3 blocks, measured -4.10; furthest off is "
        "2, by -1.00."
    )
    assert sentence({}) == sentence({"1": block(None, -1.0)}) == ""
    assert sentence({"1": block(-math.inf, -math.inf)}) == ""


def test_the_terminal_tells_it():
    found = diagnosed("mlp-sigmoid-30")
    assert "Mean-field theory expects -59.4 nats over all blocks" in text(found, width=100)
    assert " theory " in text(found, width=100)
    assert ", theory -1.9" in text(found, width=80)
    assert "theory" not in text(found.trace, width=100)


def test_the_page_has_a_column_and_a_line():
    found = diagnosed("mlp-sigmoid-30")
    shown = blocks(contents(found))
    page = "".join(part for part in shown if isinstance(part, str))
    assert ">theory<" in page
    figures = [part for part in shown if not isinstance(part, str)]
    assert any(line.name == "mean-field theory" for figure in figures for line in figure.data)
