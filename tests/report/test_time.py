"""The time axis in words, rows, terminal, notebook and page."""

import dataclasses
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from rich.cells import cell_len
from tests.report import time_samples as samples
from tests.report.samples import EVIL, deep, diagnosed, traced
from tests.report.test_html import Outline

import signalprop as sp
from signalprop.report import notebook, page, text
from signalprop.report.console import view
from signalprop.report.contents import contents
from signalprop.report.lines import Prose
from signalprop.report.time import said
from signalprop.report.time.console import scale, spark
from signalprop.report.time.rows import lines, rate, rows


def timed(axes, horizons=()):
    """A trace with these time axes, as its views see it."""
    trace = dataclasses.replace(deep(1), time=tuple(axes))
    return dataclasses.replace(contents(trace), horizons=tuple(horizons))


def shown(axes, width=80, horizons=(), plain=False):
    made = []
    for block in view(timed(axes, horizons)).blocks(width, plain):
        made += [block.text] if isinstance(block, Prose) else block.lines
    return "\n".join(line.plain for line in made)


def whole(axes):
    trace = dataclasses.replace(deep(1), time=tuple(axes))
    return Outline(page(trace, assets="directory"))


class TestLines:
    def test_calls_that_hand_their_state_on_are_one(self):
        (line,) = lines(samples.called(30, 4, 0.9))
        assert line.calls == 30
        assert line.axis.length == 120
        assert line.axis.steps == tuple(range(1, 121))
        assert line.axis.h == pytest.approx([0.9 ** (120 - t) for t in range(1, 121)])
        assert rate(line.axis) == pytest.approx(math.log(0.9))

    def test_calls_with_a_state_of_their_own_are_not(self):
        apart = [samples.axis(name) for name in ("rnn", "rnn#2", "rnn#3")]
        assert [line.place.label for line in lines(apart)] == ["rnn", "rnn#2", "rnn#3"]

    def test_a_cut_begins_a_new_line(self):
        chain = samples.called(4)
        chain[2] = samples.axis("rnn#3", [0.1] * 4)  # given its state without a gradient
        assert [(x.place.label, x.calls) for x in lines(chain)] == [("rnn", 2), ("rnn#3", 2)]

    def test_a_first_state_that_is_given_too(self):
        # an initial state that is learned, and given to every call: the deltas do not meet
        apart = [
            samples.axis(f"rnn#{k}" if k > 1 else "rnn", (1, 2, 3), steps=(0, 1, 2)) for k in (1, 2)
        ]
        assert len(lines(apart)) == 2
        # handed on: the last delta of one is the first of the other
        meet = [
            samples.axis("rnn", (1, 2, 3), steps=(0, 1, 2)),
            samples.axis("rnn#2", (3, 4, 5), steps=(0, 1, 2)),
        ]
        (line,) = lines(meet)
        assert line.axis.steps == (0, 1, 2, 3, 4)
        assert line.axis.h == (1, 2, 3, 4, 5)

    def test_a_decoder_called_for_every_step(self):
        calls = [
            samples.axis(f"dec#{k}" if k > 1 else "dec", (0.5, 1.0), steps=(0, 1), length=1)
            for k in range(1, 301)
        ]
        (line,) = lines(calls)
        assert (line.calls, line.axis.length) == (300, 300)

    def test_cells_and_gates_of_a_chain(self):
        first = samples.lstm("rnn", (1.0, 2.0))
        then = samples.lstm("rnn#2", (2.0, 3.0, 4.0), steps=(0, 1, 2))
        then = dataclasses.replace(
            then, gates=tuple(dataclasses.replace(g, mean=g.mean / 2) for g in then.gates)
        )
        (line,) = lines([first, then])
        assert line.axis.c == (2.0, 4.0, 6.0, 8.0)
        assert [g.mean for g in line.axis.gates] == pytest.approx([0.375, 0.675, 0.3])

    def test_names_are_torchs(self):
        axes = [*samples.deep(2), samples.axis("dec"), samples.axis("")]
        labels = [line.place.label for line in lines(axes)]
        assert labels == [
            "enc.rnn l0", "enc.rnn l0 reverse", "enc.rnn l1", "enc.rnn l1 reverse", "dec",
            "the model",
        ]  # fmt: skip

    def test_one_without_steps_is_left_out(self):
        assert lines([samples.axis(h=(), steps=(), length=0)]) == []

    def test_the_rate_leaves_out_what_is_zero(self):
        assert rate(samples.axis(h=(0, 0, 1e-3, 1e-2))) == pytest.approx(math.log(0.1))
        assert rate(samples.axis(h=(0, 0, 0))) is None


class TestRows:
    def test_few_are_all_shown(self):
        assert len(rows(lines(samples.deep(4)))) == 8

    def test_alike_layers_are_folded(self):
        found = rows(lines(samples.deep(50)))
        assert [row.label for row in found] == [
            "enc.rnn l0", "enc.rnn l0 reverse", "enc.rnn l1 to l48",
            "enc.rnn l1 to l48 reverse", "enc.rnn l49", "enc.rnn l49 reverse",
        ]  # fmt: skip
        assert sum(len(row.lines) for row in found) == 100
        assert found[2].rates[0] == pytest.approx(-0.02)
        assert found[2].rates[-1] == pytest.approx(-0.49)

    def test_three_hundred_calls_apart_are_a_few_lines(self):
        axes = [samples.axis(f"rnn#{k}" if k > 1 else "rnn") for k in range(1, 301)]
        assert [row.label for row in rows(lines(axes))] == ["rnn", "rnn#2 to rnn#299", "rnn#300"]
        assert len(shown(axes).splitlines()) < 40

    def test_what_is_not_alike_is_cut_in_the_middle(self):
        axes = [samples.axis(f"a{k}", [1.0] * (k + 2)) for k in range(100)]
        found = rows(lines(axes))
        assert len(found) == 17
        assert not found[8].alike
        assert sum(len(row.lines) for row in found) == 100
        assert "84 more, not all alike" in shown(axes)

    def test_the_course_takes_steps_by_their_distance(self):
        uneven = samples.axis(h=(1.0, 2.0, 3.0, 4.0), steps=(1, 97, 98, 99))
        (row,) = rows(lines([uneven]))
        assert row.course(40) == [1.0, 1.0, 2.0, 4.0]
        assert row.course(2) == [1.0, 4.0]
        assert row.course(1) == [1.0]


class TestSaid:
    def test_falls(self):
        told = said.headline(lines([samples.axis()]))
        assert told == (
            "dL/dh of rnn falls on its way back from 0.01 at step 3 to 1.0e-4 at step 1, "
            "-2.30 nats per step."
        )

    def test_becomes_exactly_zero(self):
        told = said.headline(lines([samples.axis(h=(0, 0, 1e-3, 1e-2))]))
        assert "to exactly zero at step 2 and before, -2.30 nats per step" in told

    def test_grows(self):
        told = said.headline(lines([samples.axis(h=(1e3, 1e2, 10))]))
        assert "grows on its way back from 10 at step 3 to 1000 at step 1, +2.30" in told

    def test_keeps(self):
        told = said.headline(lines(samples.deep(1)))
        assert told == "dL/dh keeps its size in every layer, -0.010 nats per step."

    def test_the_worst_of_many_is_named_both_ways(self):
        told = said.headline(lines([*samples.deep(30), samples.axis("b", (3.0, 2.0, 1.0))]))
        assert told.startswith("dL/dh of enc.rnn l29 (gru) falls")
        assert "dL/dh of b (gru) grows" in told

    def test_nothing_arrives(self):
        assert "No error signal reaches" in said.headline(lines([samples.axis(h=(0.0, 0.0))]))
        assert "is zero at step 2" in said.headline(lines([samples.axis(h=(1.0, 0.0))]))

    def test_not_a_number(self):
        told = said.headline(lines([samples.axis(h=(math.nan, 1.0, 1.0))]))
        assert "nan" not in told

    def test_gates(self):
        assert said.gates(samples.GATES) == (
            "gates: input 0.50, forget 0.90 (holds 9.5 steps), output 0.40; saturated forget 25%"
        )
        assert said.gates(samples.GATES[:1]) == "gates: input 0.50; none saturated"
        assert said.gates(()) == ""

    @pytest.mark.parametrize(
        ("value", "text"),
        [(-0.4512, "-0.45"), (-0.01234, "-0.012"), (1e-5, "0.000"), (-0.09949, "-0.099"),
         (-math.inf, "to zero"), (2.0, "+2.00")],
    )  # fmt: skip
    def test_nats_keep_what_adds_up_over_many_steps(self, value, text):
        assert said.nats(value) == text


class TestTerminal:
    @pytest.mark.parametrize("width", [40, 60, 80, 140])
    def test_every_line_fits(self, width):
        trace = dataclasses.replace(
            deep(1), time=(*samples.deep(12), samples.lstm("encoder.of.a.long.name.lstm"))
        )
        assert max(cell_len(line) for line in text(trace, width=width).splitlines()) <= width

    def test_a_row_tells_its_numbers(self):
        told = shown([samples.lstm(h=(1e-4, 1e-3, 1e-2))])
        row = next(line for line in told.splitlines() if line.startswith("rnn "))
        assert row.split() == ["rnn", "lstm", "3", "1.0e-4", "0.01", "-2.30", "▁▅█"]
        assert "dL/dc 2.0e-4 and 0.02, -2.30 nats per step" in told
        assert "forget 0.90 (holds 9.5 steps)" in told

    def test_nothing_of_time_without_a_time_axis(self):
        for shown_ in (text(deep(1)), notebook(deep(1)), page(deep(1), assets="directory")):
            assert "Through time" not in shown_

    def test_horizons_where_they_are_known(self):
        told = " ".join(shown([samples.axis()], horizons=[samples.curve(0.5)]).split())
        assert "The horizon of rnn (rnn_tanh) is 1 step" in told
        alone = " ".join(shown([], horizons=[samples.curve(0.5)]).split())
        assert "The horizon of rnn (rnn_tanh) is 1 step" in alone
        assert "Through time" not in alone

    def test_calls_are_counted(self):
        assert "30 calls, one going on from the other" in shown(samples.called(30, 4, 0.9))

    def test_narrow_names_keep_their_layer(self):
        assert "l0 rev." in shown(samples.deep(2), width=50)

    def test_ascii(self):
        told = shown([samples.lstm()], plain=True)
        assert told.isascii()

    def test_spark_says_zero_and_not_finite(self):
        assert spark([0.0, 1e-4, 1e-2, math.inf, math.nan], 1e-4, 1e-2, False) == "0▁█!!"
        assert spark([0.0, 1e-4, 1e-2], 1e-4, 1e-2, True) == "0.#"
        assert scale([1.0, 1.1]) == pytest.approx((0.011, 1.1))  # flat is no cliff

    def test_numbers_that_are_none_are_words(self):
        odd = [samples.axis(h=(math.nan, math.inf, 1.0)), samples.axis("b", (0.0, 0.0))]
        assert not re.search(r"\b(nan|inf|None)\b", shown(odd))


class TestPage:
    def test_order_and_content(self):
        found = whole([samples.lstm(), samples.axis("dec", layer=1, reverse=True)])
        told = " ".join(" ".join(found.text).split())
        parts = ["Along the depth", "Through time", "Gates", "Over time (2)", "Sites ("]
        places = [told.index(part) for part in parts]
        assert places == sorted(places)
        assert "dec l1 reverse" in told
        assert len(found.ids) == len(set(found.ids))
        plots = [a for tag, a in found.attributes if a.get("class") == "plot"]
        assert len(plots) == 4
        assert all(len(a["aria-label"]) > 30 for a in plots)

    def test_no_gates_no_section(self):
        told = " ".join(whole([samples.axis()]).text)
        assert "Through time" in told
        assert "Gates" not in told

    def test_odd_numbers_make_a_page(self):
        found = whole([samples.lstm(h=(math.nan, math.inf, 0.0)), samples.lstm("b", (0.0,))])
        assert not re.search(r"\b(nan|None)\b", " ".join(found.text))

    def test_names_stay_names(self):
        trace = dataclasses.replace(deep(1), time=(samples.lstm(EVIL), samples.lstm(EVIL, layer=1)))
        for made in (page(trace, assets="directory"), notebook(trace)):
            assert "img" not in Outline(made).tags
            assert "onerror" in made

    def test_a_diagnosis_has_it_too(self):
        trace = dataclasses.replace(deep(1), time=(samples.lstm(),))
        made = diagnosed(trace)
        assert "Through time:" in text(made, width=80)
        assert "Over time (1)" in " ".join(Outline(page(made, assets="directory")).text)
        assert "Through time:" in " ".join(Outline(notebook(made)).text)

    def test_horizons_in_a_page_and_a_notebook(self):
        from signalprop.report import fragment, html, sections

        made = timed([samples.lstm()], [samples.curve(0.5)])
        made = dataclasses.replace(made, lag=10)
        told = " ".join(Outline(html.page("x", sections.blocks(made), assets="directory")).text)
        assert "The horizon of rnn (rnn_tanh) is 1 step" in told
        assert "The task needs memory over 10 steps" in told
        assert "The horizon of rnn" in fragment.fragment(made)


def test_what_a_trace_writes_can_be_read_again():
    odd = samples.lstm(h=(math.nan, math.inf, 0.0))
    trace = dataclasses.replace(deep(1), time=(odd, samples.lstm("b")))
    read = json.loads(json.dumps(trace.to_dict(), allow_nan=False))["time"]
    assert read[0]["h"] == ["nan", "inf", 0.0]
    assert read[1]["steps"] == [1, 2, 3]
    assert read[1]["gates"][1]["remembers"] == pytest.approx(-1 / math.log(0.9))


def test_real_networks():
    loop = text(traced("lstm-cell-loop"), width=80)
    assert "Through time:" in loop
    torch.manual_seed(0)
    net = torch.nn.LSTM(3, 8, 2, bidirectional=True, batch_first=True)
    seen = sp.trace(net, (torch.randn(4, 30, 3), torch.randn(4, 30, 16)),
                    lambda out, y: F.mse_loss(out[0], y))  # fmt: skip
    told = text(seen, width=80)
    for label in ("the model l0 ", "the model l0 reverse", "the model l1 reverse"):
        assert label in told
    assert told.count("none saturated") == 4
