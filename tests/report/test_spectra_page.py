import dataclasses
import json
import math
import re

import numpy as np
import pytest
from tests.report import spectra_samples as samples
from tests.report.test_html import Outline

from signalprop.jacobian.spectra import BlockSpectrum, Distribution
from signalprop.report import notebook, page
from signalprop.report.spectra.along import along
from signalprop.report.spectra.branches import band, branches, violations
from signalprop.report.spectra.ends import ends
from signalprop.report.spectra.profile import profile

MLP, RESIDUAL, CONV, BROKEN = (
    samples.deep_mlp(), samples.residual(), samples.conv(), samples.broken(),
)  # fmt: skip
EVERY = {"mlp": MLP, "residual": RESIDUAL, "conv": CONV, "broken": BROKEN}
EVERY["isometry"] = samples.isometry()


def named(figure, name):
    return [trace for trace in figure.data if trace.name and trace.name.startswith(name)]


def outline(made):
    return Outline(page(made, assets="directory"))


def said(found):
    return " ".join(" ".join(found.text).split())


@pytest.mark.parametrize("name", EVERY)
def test_a_page_of_every_kind(name):
    made = EVERY[name]
    found = outline(made)
    assert found.tags.count("h1") == 1
    assert len(found.ids) == len(set(found.ids))
    plots = [a for tag, a in found.attributes if a.get("class") == "plot"]
    expected = 1 + bool(made.blocks) + (made.deep is not None)
    expected += any(block.residual for block in made.blocks)
    assert len(plots) == expected
    assert all(a["role"] == "img" and len(a["aria-label"]) > 30 for a in plots)
    assert not re.search(r"\b(nan|None)\b", said(found))
    assert "img" not in found.tags


def test_order():
    text = said(outline(RESIDUAL))
    parts = ["Jacobians of Residual: embed to h.11.add", "measured The singular values of J"]
    parts += ["log-volume", "From end to end", "Block by block", "How every direction fares"]
    parts += ["Residual blocks, I + X", "Certificate of 12 residual blocks", "Blocks (12)"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_names_stay_names():
    for shown in (page(BROKEN, assets="directory"), notebook(BROKEN)):
        assert "<img" not in shown
        assert "onerror=alert" in shown  # as text
        Outline(shown)


class TestAlong:
    def test_bars_are_the_quantiles(self):
        figure = along(MLP.blocks)
        (outer,), (inner,) = named(figure, "5 to 95%"), named(figure, "25 to 75%")
        for i in (0, 1, 59):
            q = MLP.blocks[i].spectrum.quantiles()
            assert outer.base[i] == pytest.approx(q[0])
            assert outer.base[i] + outer.y[i] == pytest.approx(q[4])
            assert inner.base[i] == pytest.approx(q[1])
            assert inner.base[i] + inner.y[i] == pytest.approx(q[3])
        (largest,) = named(figure, "largest")
        assert largest.y[0] == pytest.approx(float(np.median(MLP.blocks[0].spectrum.largest)))
        assert figure.layout.yaxis.type == "log"
        assert figure.layout.shapes[0].y0 == 1
        assert figure.layout.meta["names"][-1] == "59"

    def test_zero_has_a_mark_and_no_place_on_the_axis(self):
        figure = along(BROKEN.blocks)
        (lost,) = named(figure, "zero")
        assert list(lost.x) == [0]
        (outer,) = named(figure, "5 to 95%")
        assert min(outer.base) > 0
        json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(name))

    def test_branches_of_residual_blocks(self):
        (norms,) = named(along(RESIDUAL.blocks), "s_1(X)")
        assert len(norms.x) == 12
        assert not named(along(MLP.blocks), "s_1(X)")

    def test_a_thousand_blocks_stay_light(self):
        blocks = [dataclasses.replace(MLP.blocks[i % 60], end=str(i)) for i in range(1000)]
        figure = along(blocks)
        assert len(figure.layout.xaxis.tickvals) == 12
        assert len(figure.to_json()) < 1_000_000


class TestEnds:
    def test_sweeps_go_where_rounding_ends(self):
        figure = ends(MLP)
        (swept,) = named(figure, "log-spectrum")
        wanted = np.median(MLP.deep.log_values, axis=0) / math.log(10)
        assert list(swept.y) == pytest.approx(list(wanted))
        (sure,), (noise,) = named(figure, "measured"), named(figure, "rounding noise")
        floor = math.log10(float(np.median(MLP.between.resolution)))
        assert min(sure.y) > floor >= max(noise.y)
        assert len(sure.y) + len(noise.y) == 24
        assert any("lost in rounding" in a.text for a in figure.layout.annotations)
        low, high = figure.layout.yaxis.range
        assert low < min(swept.y)
        assert high > 0

    def test_errors_in_decades(self):
        (measured,) = named(ends(CONV), "measured")
        assert measured.error_y.array is None  # 1%: would not be seen
        s = CONV.between
        loose = dataclasses.replace(s, errors=s.values * 0.5)
        (measured,) = named(ends(dataclasses.replace(CONV, between=loose)), "measured")
        assert list(measured.error_y.array) == pytest.approx([math.log10(1.5)] * 4)
        assert list(measured.error_y.arrayminus) == pytest.approx([math.log10(2)] * 4)
        endless = dataclasses.replace(s, errors=s.values * math.inf)
        ends(dataclasses.replace(CONV, between=endless)).to_json()

    def test_smallest_stand_at_the_end(self):
        s = dataclasses.replace(CONV.between, smallest=np.full((4, 2), 1e-3))
        (smallest,) = named(ends(dataclasses.replace(CONV, between=s)), "smallest")
        assert list(smallest.x) == [10, 9]
        assert list(smallest.y) == pytest.approx([-3, -3])

    def test_few_values_far_apart_get_few_ticks(self):
        s = dataclasses.replace(CONV.between, smallest=np.full((4, 1), 1e-3), rows=3000)
        assert ends(CONV).layout.xaxis.dtick == 1
        far = ends(dataclasses.replace(CONV, between=s))
        assert far.data[-1].x[-1] == 3000
        assert far.layout.xaxis.dtick is None  # 3000 ticks stop a browser

    def test_an_estimated_distribution(self):
        shares = np.array([0.05, 0.5, 0.95])
        values = np.tile([1e-4, 1e-2, 1.0], (4, 1))
        spread = Distribution(shares, values, values * 0.1, np.zeros(4))
        block = MLP.blocks[0]
        few = dataclasses.replace(
            block.spectrum, values=block.spectrum.values[:, :4], whole=False, distribution=spread
        )
        (bars,) = named(along([dataclasses.replace(block, spectrum=few)]), "5 to 95%")
        assert bars.base[0] == pytest.approx(1e-4)
        assert bars.base[0] + bars.y[0] == pytest.approx(1.0)
        (curve,) = named(ends(dataclasses.replace(MLP, between=few)), "distribution")
        assert list(curve.y) == pytest.approx([-4, -2, 0])
        assert list(curve.x) == pytest.approx([23.3, 12.5, 1.7])

    def test_no_infinity_in_the_figure(self):
        figure = ends(BROKEN)
        json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(name))
        assert any(a.text == "3 exactly zero" for a in figure.layout.annotations)


class TestProfile:
    def test_bands_of_many_directions(self):
        figure = profile(MLP.deep)
        (first,), (last,), (middle,) = (named(figure, n) for n in ("first", "last", "median"))
        assert len(first.y) == 61
        assert first.y[0] == last.y[0] == 0
        assert first.y[-1] == pytest.approx(float(np.median(MLP.deep.profile[:, -1, 0])))
        assert last.y[-1] == pytest.approx(float(np.median(MLP.deep.profile[:, -1, -1])))
        assert last.y[-1] < middle.y[-1] < first.y[-1]

    def test_a_line_for_each_of_a_few(self):
        figure = profile(BROKEN.deep)
        assert len(figure.data) == 8
        assert figure.data[7].y[-1] is None
        assert any(
            "3 of 8 directions are exactly zero" in a.text for a in figure.layout.annotations
        )
        json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(name))


class TestBranches:
    def test_the_right_index_holds_and_the_printed_one_does_not(self):
        for block in RESIDUAL.blocks:
            s, x = block.spectrum, block.branch
            assert (s.values >= band(s, x).low - 1e-12).all()
            assert (s.values <= 1 + x.values + 1e-12).all()
        # X = diag(-1, 0): s(I + X) = (1, 0), and 1 - s_2(X) = 1 > 0
        X = np.diag([-1.0, 0.0])[None]
        block = BlockSpectrum(
            "a", "b", True, samples.spectrum(np.eye(2) + X, "a", "b"),
            samples.spectrum(X, "a", "b"),
        )  # fmt: skip
        assert violations(block) == (1, 2)
        assert list(band(block.spectrum, block.branch).low[0]) == [1, 0]

    def test_one_block_at_a_time(self):
        figure = branches(RESIDUAL.blocks)
        meta = figure.layout.meta
        assert len(meta["choices"]) == 12
        shown = [t for t in figure.data if t.visible is True]
        strongest = max(range(12), key=lambda i: np.median(RESIDUAL.blocks[i].branch.largest))
        assert {t.meta["choice"] for t in shown} == {meta["chosen"]} == {strongest}
        band, printed, values, _ = shown
        x = RESIDUAL.blocks[strongest].branch.values
        assert list(printed.y) == pytest.approx(list(1 - np.median(x, axis=0)))
        assert list(band.y[:16]) == pytest.approx(list(1 + np.median(x, axis=0)))
        assert list(band.y[16:]) == pytest.approx(list(1 - np.median(x, axis=0)))  # turned round
        assert all(a >= v for a, v in zip(band.y[:16], values.y, strict=True))

    def test_the_menu_stays_short(self):
        meta = branches(samples.residual(60, 6, strength=1.5).blocks).layout.meta
        assert len(meta["choices"]) <= 40
        assert "of 60 blocks are in the menu" in meta["caption"]

    def test_top_values_only(self):
        few = [
            dataclasses.replace(
                b,
                branch=dataclasses.replace(b.branch, values=b.branch.values[:, :4], whole=False),
                spectrum=dataclasses.replace(b.spectrum, values=b.spectrum.values[:, :4]),
            )
            for b in RESIDUAL.blocks
        ]
        figure = branches(few)
        assert named(figure, "1 - s_1(X) to 1 + s_i(X)")
        assert branches(MLP.blocks) is None

    def test_the_menu_is_in_the_page(self):
        found = outline(RESIDUAL)
        (menu,) = [a for tag, a in found.attributes if tag == "select"]
        assert menu["data-figure"] == "figure-4"
        options = [a for tag, a in found.attributes if tag == "option"]
        assert len(options) == 12
        assert sum("selected" in a for a in options) == 1


def test_notebook():
    shown = notebook(MLP)
    assert "<script" not in shown
    found = Outline(shown)
    text = said(found)
    assert "×28" in text
    assert found.tags.count("svg") == 6
    assert "Log-spectrum over 60 blocks" in text


def test_no_profile_no_section():
    bare = dataclasses.replace(MLP, deep=dataclasses.replace(MLP.deep, profile=None))
    assert "How every direction fares" in said(outline(MLP))
    assert "How every direction fares" not in said(outline(bare))
