import dataclasses
import io
import math
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.cases import CASES, by_name
from tests.report.samples import deep, diagnosed, emptied, named_badly, traced, with_decay

import signalprop as sp
from signalprop.capture.trace import Failure
from signalprop.errors import SignalpropError
from signalprop.report import terminal, text


@pytest.mark.parametrize("width", [40, 60, 80, 140])
@pytest.mark.parametrize("name", ["mlp-sigmoid-30", "gpt2", "unet", "lstm-cell-loop"])
def test_every_line_fits(name, width):
    for result in (traced(name), diagnosed(traced(name))):
        lines = text(result, width=width).splitlines()
        assert max(cell_len(line) for line in lines) <= width


def test_order_verdict_findings_sum_ladder_rules():
    shown = text(diagnosed(traced("mlp-sigmoid-30")), width=80)
    parts = ["ISSUE  The error signal vanishes", "ISSUE SP101", "TIP SP204"]
    parts += ["block ", "sum ", "11 rules: 1 issue, 1 tip, 5 passed, 2 not applicable, 1 skipped"]
    places = [shown.index(part) for part in parts]
    assert places == sorted(places)


def test_nothing_is_said_twice():
    found = sp.diagnose(*by_name("mlp-sigmoid-30").build())
    shown = " ".join(text(found, width=80).split())
    assert "Error signal: lost" not in shown
    for finding in found.findings:
        assert shown.count(" ".join(finding.explanation.split())) == 1
    assert "Error signal: lost" in " ".join(text(found.trace, width=80).split())


def test_a_finding_shows_its_numbers():
    trace = traced("mlp-sigmoid-30")
    shown = text(diagnosed(trace), width=100)
    assert f"measured: {trace.decay:.1f} nats (threshold -7.00 nats)" in shown
    assert "where: input, 0, 1 +59 more" in shown
    assert "cures: he-init, residual" in shown


def test_the_sum_by_kind_adds_up_as_printed():
    trace = traced("mlp-sigmoid-30")
    line = " ".join(text(trace, width=80).split())
    total, slope, weights = re.search(
        r"lost ([\d.]+) nats from 60 back to input: "
        r"activation slope (-[\d.]+), weights (-[\d.]+)\.",
        line,
    ).groups()
    assert float(slope) + float(weights) == pytest.approx(-float(total), abs=0.15)
    assert f"sum {' ' * 3}" in text(trace, width=80)


def test_the_rows_of_the_ladder_add_up_as_printed():
    trace = traced("resnet-20")
    lines = text(trace, width=100).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("block "))
    end = next(i for i, line in enumerate(lines) if line.startswith("sum "))
    found = [re.search(r"(-?\d+\.\d\d) {2}\w+$", line) for line in lines[start + 2 : end]]
    assert sum(float(m[1]) for m in found) == pytest.approx(trace.decay, abs=0.01 * len(found))


def test_a_thousand_layers_fit_on_a_screen():
    assert len(text(diagnosed(deep(1000)), width=80).splitlines()) < 50


def test_one_layer():
    shown = text(traced("one-linear"), width=80)
    assert "linear" in shown
    assert len(shown.splitlines()) < 12


def test_wide_terminals_also_show_the_learning_share():
    result = diagnosed(traced("mlp-sigmoid-1"))
    assert "learns" not in text(result, width=80)
    assert text(result, width=100).count("50%") == 2


def test_numbers_that_are_none_are_words():
    for result in (
        traced("mlp-relu-dead"),
        traced("produces-nan"),
        with_decay(deep(2), math.inf),
        diagnosed(traced("produces-nan")),
    ):
        assert not re.search(r"\b(nan|inf)\b", text(result, width=80))
    assert "to zero" in text(traced("mlp-relu-dead"), width=80)
    assert "not a number" in text(traced("produces-nan"), width=80)


def test_dense_networks_say_what_is_shown():
    assert "All sites in execution order" in text(traced("lstm-cell-loop"), width=80)


def test_a_stopped_pass_shows_what_was_seen():
    failure = Failure("backward", "0", "RuntimeError", "one of the variables was changed in place")
    trace = dataclasses.replace(deep(1), failure=failure, spine=(), blocks=())
    shown = " ".join(text(diagnosed(trace), width=80).split())
    assert shown.startswith("STOPPED")
    assert "The backward pass stopped in 0: RuntimeError: one of the variables" in shown
    assert "All sites in execution order" in shown
    assert text(emptied(trace), width=80)


def test_a_healthy_network_is_quiet():
    shown = text(diagnosed(deep(3), healthy=True), width=80)
    assert shown.startswith("OK")
    assert "11 rules: 11 passed" in shown


def test_plain_where_it_is_piped_and_in_ascii():
    trace = traced("mlp-sigmoid-30")
    assert "\x1b" not in text(diagnosed(trace))
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Console(file=out, width=80).print(terminal(diagnosed(trace)))
    out.flush()
    assert b"####" in raw.getvalue()


def test_colour_in_a_terminal():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system="standard")
    console.print(diagnosed(traced("mlp-sigmoid-30")))
    assert "\x1b[1;31m" in out.getvalue()


def test_brackets_are_no_markup_and_names_cannot_rewrite_the_terminal():
    trace = dataclasses.replace(deep(1), model="Net[bold]\x1b[2J", notes=("[red]x[/red]",))
    shown = text(trace, width=80)
    assert "Net[bold]" in shown
    assert "[red]x[/red]" in shown
    assert "\x1b" not in shown
    assert "onerror" in text(named_badly(), width=140)


def test_repr_is_the_plain_view():
    trace = deep(2)
    assert repr(trace) == text(trace)


def test_other_things_have_no_report():
    with pytest.raises(SignalpropError, match="no report for int"):
        text(3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_prints(case):
    try:
        trace = sp.trace(*case.build())
    except SignalpropError:
        return
    shown = text(diagnosed(trace), width=80)
    assert len(shown.splitlines()) < 90
    assert not re.search(r"\bnan\b", shown)
