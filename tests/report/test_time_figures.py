"""The figures of the time axis, as plain data."""

import dataclasses
import json
import math

import pytest
from tests.report import time_samples as samples
from tests.report.samples import EVIL

from signalprop.report.time import figures
from signalprop.report.time.rows import lines


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def strict(figure):
    return json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(name))


class TestDeltas:
    def test_every_line_is_what_was_measured(self):
        found = lines([samples.lstm(), samples.axis("dec")])
        figure = figures.deltas(found)
        h, c = named(figure, "rnn")
        assert list(h.x) == [1, 2, 3]
        assert list(h.y) == [1e-4, 1e-3, 1e-2]
        assert list(c.y) == [2e-4, 2e-3, 2e-2]
        assert (h.yaxis, c.yaxis) == ("y", "y2")
        assert [h.showlegend, c.showlegend] == [True, False]
        assert len(named(figure, "dec")) == 1
        assert figure.layout.yaxis.type == figure.layout.yaxis2.type == "log"
        assert h.customdata[2] == "0.01"
        assert "-2.30 nats per step" in figure.layout.meta["about"]

    def test_one_panel_without_cells(self):
        assert "yaxis2" not in figures.deltas(lines([samples.axis()])).to_plotly_json()["layout"]

    def test_directions_of_a_layer_share_a_colour(self):
        figure = figures.deltas(lines(samples.deep(2)))
        ahead, back, upper, _ = figure.data
        assert ahead.line.color == back.line.color != upper.line.color
        assert (ahead.line.dash, back.line.dash) == ("solid", "dash")

    def test_zero_and_not_finite_have_marks(self):
        odd = samples.axis(h=(0.0, 0.0, 1e-3, math.inf, 1e-2, math.nan))
        figure = figures.deltas(lines([odd]))
        (zero,), (bad,) = named(figure, "exactly zero"), named(figure, "not finite")
        assert list(zero.x) == [1, 2]
        assert list(bad.x) == [4, 6]
        low, high = (10**v for v in figure.layout.yaxis.range)
        assert low < zero.y[0] < 1e-3
        assert 1e-2 < bad.y[0] < high
        assert list(figure.data[0].y) == [None, None, 1e-3, None, 1e-2, None]
        strict(figure)

    def test_a_flat_course_is_no_cliff(self):
        low, high = figures.deltas(lines([samples.axis(h=(1.0, 1.01, 1.0))])).layout.yaxis.range
        assert high - low > 2

    def test_of_many_some_are_drawn_the_strangest_among_them(self):
        axes = [*samples.deep(30)[:40], samples.axis("worst", (1e-9, 1.0)), *samples.deep(40)[60:]]
        figure = figures.deltas(lines(axes))
        assert len(figure.data) == figures.LINES
        assert named(figure, "worst")
        assert figure.layout.meta["caption"].startswith("10 of 61 layers")
        assert figure.layout.legend.orientation == "v"

    def test_a_long_sequence_stays_light(self):
        figure = figures.deltas(lines([samples.axis(h=[0.5] * 50_000)]))
        assert len(figure.data[0].x) == figures.POINTS
        assert figure.data[0].mode == "lines"
        assert figure.data[0].x[-1] == 50_000

    def test_names_cannot_be_markup(self):
        said = figures.deltas(lines([samples.axis(EVIL), samples.axis("b")])).to_json()
        assert "<img" not in said


class TestGates:
    def test_means_ends_and_times(self):
        figure = figures.gates(lines([samples.axis("gru"), samples.lstm(), samples.lstm("dec")]))
        assert figure.layout.meta["names"] == ["rnn", "dec"]  # only those with gates
        means = [t for t in figure.data if t.type == "bar" and t.showlegend is not False]
        assert [t.name for t in means] == ["input gate", "forget gate", "output gate"]
        assert [list(t.y) for t in means] == [[0.5] * 2, [0.9] * 2, [0.4] * 2]
        (held,) = [t for t in figure.data if t.type == "scatter"]
        assert held.name == "forget gate"
        assert held.y[0] == pytest.approx(9.49, abs=0.01)
        ends = [t for t in figure.data if t.type == "bar" and t.showlegend is False]
        assert [t.y[0] for t in ends] == [0.0, 0.25, 0.002]
        assert "25% saturated, holds 9.5 steps" in held.customdata[0]
        assert held.yaxis == "y3"

    def test_no_panel_for_what_is_not_there(self):
        calm = tuple(dataclasses.replace(g, saturated=0.0, remembers=None) for g in samples.GATES)
        axis = dataclasses.replace(samples.lstm(), gates=calm)
        figure = figures.gates(lines([axis]))
        assert {t.yaxis for t in figure.data} == {"y"}
        assert figures.gates(lines([samples.axis()])) is None

    def test_a_gate_that_holds_for_ever(self):
        gate = dataclasses.replace(samples.GATES[1], remembers=math.inf)
        axis = dataclasses.replace(samples.lstm(), gates=(gate,))
        figure = figures.gates(lines([axis]))
        assert [t.y for t in figure.data if t.type == "scatter"] == [(None,)]
        strict(figure)


def test_ticks_of_few_decades_are_told_in_full():
    assert figures.ticks(-1.0, 0.5)["ticktext"] == ["0.1", "0.2", "0.5", "1", "2"]
    assert figures.ticks(-9.0, 0.0) == {}
