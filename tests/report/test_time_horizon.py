"""The views of a horizon: words, terminal, figures, page, notebook."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from rich.cells import cell_len
from tests.report import time_samples as samples
from tests.report.samples import EVIL
from tests.report.test_html import Outline
from tests.report.time_samples import curve, horizons

from signalprop.report import notebook, page, text
from signalprop.report.lines import Prose
from signalprop.report.time.horizon import figures, said
from signalprop.report.time.horizon.console import view
from signalprop.report.time.horizon.curves import curves, drawn
from signalprop.report.time.horizon.spectra import quantiles, spectra

ONE = horizons(curve(0.5), spectra=True, exponents=True, notes=("cut short at 60",))
SLOW = curve(0.999, site="slow")
MANY = horizons(
    *(curve(0.3 + 0.015 * i, layer=i // 2, reverse=bool(i % 2), op="gru") for i in range(40)),
    exponents=True,
)
ATTENTION = horizons(
    dataclasses.replace(curve(op="attention", site="embed"), credit=(1.0, *[0.03] * 60))
)
EVERY = {"one": ONE, "many": MANY, "attention": ATTENTION, "two": horizons(curve(0.5), SLOW)}
EVERY["odd"] = horizons(
    dataclasses.replace(curve(), credit=(1.0, math.inf, math.nan, *[0.0] * 58)), spectra=True
)


def strict(figure):
    return json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(name))


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


class TestSaid:
    def test_one(self):
        # 0.5^1 >= 1/e > 0.5^2, and 0.5^23 = 2^-23 is just the rounding
        assert said.headline(ONE) == (
            "The horizon of rnn (rnn_tanh) is 1 step: beyond, less than 1/e of the credit is left; "
            "beyond 23 steps it drowns in the rounding of float32 (1.2e-7)."
        )

    def test_longer_than_the_sequence(self):
        assert said.headline(horizons(SLOW)) == (
            "The horizon of slow (rnn_tanh) is longer than the sequence: 0.942 of the credit is "
            "left after 60 steps."
        )

    def test_growing(self):
        told = said.headline(horizons(curve(1.1)))
        assert "credit grows on its way back: +0.095 nats per step, 304 times as much" in told

    def test_nothing_before_the_last(self):
        told = said.headline(ATTENTION)
        assert "is 0 steps: no earlier step gets 1/e" in told
        assert "0.03 of it is left after 60 steps" in told

    def test_the_nearest_and_the_farthest(self):
        told = said.headline(EVERY["two"])
        assert told.index("of rnn (rnn_tanh) is 1 step:") < told.index("of slow (rnn_tanh) is long")

    def test_all_alike(self):
        told = said.headline(horizons(curve(0.5), curve(0.52, layer=1)))
        assert told.startswith("In each of 2 layers and directions the horizon is 1 step")
        assert "beyond 23 to 24 steps it drowns" in told
        some = said.headline(horizons(curve(0.5), curve(0.5, 10, layer=1)))
        assert "in some beyond 23 steps it drowns" in some
        long = said.headline(horizons(SLOW, curve(0.9999, layer=1)))
        assert "longer than the sequence: 0.942 to 0.994 of the credit is left" in long

    def test_nothing(self):
        assert "no horizon" in said.headline(horizons())

    @pytest.mark.parametrize(
        ("floor", "name"),
        [(2.0**-52, "float64"), (2.0**-10, "float16"), (2.0**-7, "bfloat16"), (0.1, "rounding (")],
    )
    def test_whose_rounding(self, floor, name):
        assert name in said.rounding(curve(floor=floor))

    def test_steps_and_exponents(self):
        (mine,) = curves(ONE)
        assert said.steps_do([mine.gains]) == (
            "a step multiplies a random error by 0.5, any error by at most 1; spectral radius of "
            "W_hh 0.5"
        )
        assert said.grow([mine.exponents]) == (
            "Lyapunov exponents -0.693, -1.693, -2.693 (error 0.01), of 3"
        )
        assert said.steps_do([]) == said.grow([]) == ""

    def test_until(self):
        assert said.until([None], 59) == "> 59"
        assert said.until([3, 3], 59) == "3"
        assert said.until([3, 1200], 59) == "3 to 1,200"
        assert said.until([3, None], 59) == "3 and more"


class TestTerminal:
    @pytest.mark.parametrize("width", [40, 60, 80, 140])
    @pytest.mark.parametrize("name", EVERY)
    def test_every_line_fits(self, name, width):
        told = text(EVERY[name], width=width)
        assert max(cell_len(line) for line in told.splitlines()) <= width
        assert not re.search(r"\b(nan|inf|None)\b", told)

    def test_a_row(self):
        told = text(ONE, width=100)
        row = next(line for line in told.splitlines() if line.startswith("rnn "))
        assert row.split()[:6] == ["rnn", "rnn_tanh", "60", "1", "23", "-0.69"]
        assert row.split()[6].startswith("█")
        assert row.rstrip().endswith("0")  # lost in rounding
        assert "Note: cut short at 60" in told
        assert "Course: from lag 0 to 29" in told

    def test_forty_curves_are_a_few_lines(self):
        told = text(MANY, width=80)
        assert len(told.splitlines()) < 40
        assert "rnn l1 to l18 " in told
        assert "x18 like this" in told
        assert repr(MANY) == text(MANY)

    def test_ascii(self):
        made = []
        for block in view(ONE).blocks(80, True):
            made += [block.text] if isinstance(block, Prose) else block.lines
        assert all(line.plain.isascii() for line in made)

    def test_attention_is_told_in_its_own_words(self):
        assert "owes the input" in " ".join(text(ATTENTION, width=80).split())


class TestFigures:
    def test_credit_and_its_marks(self):
        figure = figures.credit(curves(ONE))
        (line,), (marks,) = named(figure, "rnn"), named(figure, "rnn, ends")
        assert list(line.x) == list(range(61))
        assert list(line.y) == pytest.approx([0.5**k for k in range(61)])
        assert list(marks.x) == [1, 23]
        assert list(marks.y) == pytest.approx([0.5, 0.5**23])
        assert list(marks.marker.symbol) == ["diamond", "x"]
        texts = {a.text: a.y for a in figure.layout.annotations}
        assert texts["1/e"] == pytest.approx(math.log10(1 / math.e))
        assert texts["rounding of float32"] == pytest.approx(math.log10(samples.EPS))
        assert figure.layout.yaxis.type == "log"
        assert figure.layout.xaxis.range[1] < 40  # what lies far behind says nothing
        assert "Shown to lag 29 of 60" in figure.layout.meta["caption"]

    def test_a_long_curve_is_drawn_whole(self):
        figure = figures.credit(curves(horizons(SLOW)))
        assert figure.layout.xaxis.range[1] >= 60
        assert not named(figure, "slow, ends")
        assert "caption" not in figure.layout.meta
        assert drawn(curves(horizons(SLOW))) == 60
        endless = curves(horizons(curve(0.9999, 20_000)))
        assert len(figures.credit(endless).data[0].x) <= figures.POINTS

    def test_the_lag_of_the_task(self):
        mine = curves(ONE)
        figure = figures.credit(mine, 50)
        assert any(shape.x0 == 50 for shape in figure.layout.shapes)
        assert any(a.text == "lag of the task" for a in figure.layout.annotations)
        assert figure.layout.xaxis.range[1] > 50
        assert said.sentence(mine, 10).endswith(
            "The task needs memory over 10 steps: 9.8e-4 of the credit arrives there."
        )
        assert said.sentence(mine, 100).endswith("The task needs memory over 100 steps.")
        assert said.sentence([], 10) == ""

    @pytest.mark.parametrize("name", EVERY)
    def test_figures_are_json_whatever_the_numbers(self, name):
        mine = curves(EVERY[name])
        for make in (figures.credit, figures.gains, figures.exponents, spectra):
            figure = make(mine)
            if figure is not None:
                strict(figure)
                assert len(figure.layout.meta["about"]) > 30

    def test_of_many_some(self):
        figure = figures.credit(curves(MANY))
        lines = [t for t in figure.data if t.showlegend is not False]
        assert len(lines) == 10
        assert "10 of 40 layers" in figure.layout.meta["caption"]
        assert lines[0].name == "rnn l0"
        assert lines[-1].name == "rnn l19 reverse"

    def test_gains(self):
        figure = figures.gains(curves(ONE))
        largest, rms = named(figure, "rnn")
        assert list(largest.x) == [2, 30, 61]
        assert list(largest.y) == [1.0] * 3
        assert list(rms.y) == [0.5] * 3
        assert figure.layout.shapes[0].y0 == 1
        assert figures.gains(curves(ATTENTION)) is None

    def test_exponents(self):
        figure = figures.exponents(curves(ONE))
        (line,) = figure.data
        assert list(line.x) == [1, 2, 3]
        assert list(line.y) == pytest.approx([math.log(0.5) - k for k in range(3)])
        assert list(line.error_y.array) == [0.01] * 3
        assert figures.exponents(curves(EVERY["two"])) is None

    def test_singular_values_of_single_steps(self):
        (mine,) = curves(ONE)
        bands = quantiles(mine.gains)
        assert bands.shape == (3, 6)
        assert bands[0] == pytest.approx(
            np.maximum([*np.quantile([1, 1, 0.5, 0.5, 0, 0], (0.05, 0.25, 0.5, 0.75, 0.95)), 1],
                       1e-8)
        )  # fmt: skip
        assert bands[2, 2] == 0.5  # of the one sequence that goes on
        figure = spectra([mine])
        assert figure.layout.meta["choices"] == ["rnn"]
        assert {t.name for t in figure.data} == {"5 to 95%", "25 to 75%", "median", "largest"}
        assert spectra(curves(EVERY["two"])) is None

    def test_a_menu_of_layers(self):
        both = horizons(curve(0.5), curve(0.6, layer=1), spectra=True)
        figure = spectra(curves(both))
        assert figure.layout.meta["choices"] == ["rnn l0", "rnn l1"]
        assert [t.visible for t in figure.data] == [True] * 4 + [False] * 4
        assert {t.meta["choice"] for t in figure.data if t.visible is False} == {1}


class TestPage:
    @pytest.mark.parametrize("name", EVERY)
    def test_a_page_of_every_kind(self, name):
        made = EVERY[name]
        found = Outline(page(made, assets="directory"))
        assert len(found.ids) == len(set(found.ids))
        assert not re.search(r"\b(nan|None)\b", " ".join(found.text))
        plots = [a for tag, a in found.attributes if a.get("class") == "plot"]
        whole = any(g.values is not None for g in made.gains)
        assert len(plots) == 1 + bool(made.gains) + whole + bool(made.exponents)
        assert all(len(a["aria-label"]) > 30 for a in plots)

    def test_order(self):
        told = " ".join(" ".join(Outline(page(ONE, assets="directory")).text).split())
        parts = ["Horizon of Net", "measured The horizon of rnn", "cut short at 60"]
        parts += ["Credit over the lag", "Step by step", "All singular values of J_t"]
        parts += ["Lyapunov exponents", "Layers and directions (1)"]
        places = [told.index(part) for part in parts]
        assert places == sorted(places)

    def test_names_stay_names(self):
        bad = horizons(curve(site=EVIL), curve(site=EVIL, layer=1), spectra=True, notes=(EVIL,))
        for made in (page(bad, assets="directory"), notebook(bad)):
            assert "img" not in Outline(made).tags

    def test_notebook(self):
        made = notebook(MANY)
        found = Outline(made)
        assert "script" not in found.tags
        assert found.tags.count("svg") == 6
        assert "×18" in "".join(found.text)
        assert MANY._repr_html_() == made
        assert "no horizon" in notebook(horizons())

    def test_save(self, tmp_path):
        assert ONE.save(tmp_path / "h.html", assets="directory").stat().st_size < 300_000
