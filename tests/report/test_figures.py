import itertools
import json
import math

import pytest
from tests.report.samples import deep, diagnosed, named_badly, traced, with_decay

from signalprop.report import figures
from signalprop.report.chart import COLOURS
from signalprop.report.depth import depth


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def test_depth_draws_what_was_measured():
    trace = traced("mlp-sigmoid-30")
    figure = depth(trace, {})
    (activation,) = named(figure, "activation rms")
    (delta,) = named(figure, "delta rms, geometric mean")
    sites = list(trace.spine_sites())
    assert list(activation.y) == [site.activation.rms for site in sites]
    assert list(delta.y) == [site.delta.geometric_mean for site in sites]
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.meta["names"] == list(trace.spine)
    assert f"{sites[3].name}</b>" in delta.customdata[3]


def test_bars_of_a_kind_add_up_to_the_split():
    trace = traced("gpt2")
    figure = depth(trace, {})
    bars = [t for t in figure.data if t.type == "bar"]
    assert {b.name for b in bars} == {"weights", "normalisation", "skip + branch", "other"}
    for bar in bars:
        assert sum(bar.y) == pytest.approx(trace.split[bar.legendgroup])
    assert figure.layout.barmode == "relative"


def test_running_sum_goes_from_the_output_to_the_whole():
    trace = traced("mlp-sigmoid-30")
    (total,) = named(depth(trace, {}), "sum")
    assert total.x[0] == len(trace.spine) - 1
    assert total.y[0] == 0
    assert total.x[-1] == 0
    assert total.y[-1] == pytest.approx(trace.decay)


def test_panels_share_the_depth_axis():
    figure = depth(traced("mlp-sigmoid-30"), {})
    assert figure.layout.xaxis.matches == figure.layout.xaxis2.matches == "x3"
    ticks = figure.layout.xaxis.tickvals
    assert len(ticks) <= 12
    assert (ticks[0], ticks[-1]) == (0, 61)


def test_dense_networks_are_drawn_over_all_sites():
    trace = traced("lstm-cell-loop")
    figure = depth(trace, {})
    assert len(figure.layout.meta["names"]) == len(trace.sites)
    bars = [t for t in figure.data if t.type == "bar"]
    # one block spans most of the sites
    assert max(w for bar in bars for w in bar.width) > len(trace.sites) / 2


def test_no_spine_is_one_panel():
    figure = depth(traced("detached-encoder"), {})
    assert {t.type for t in figure.data} == {"scatter"}
    assert len(figure.layout.meta["names"]) == 4


def test_what_a_log_axis_cannot_show_is_marked():
    dead = depth(traced("mlp-relu-dead"), {})
    assert list(named(dead, "delta becomes exactly zero")[0].x) == [12]
    assert len(named(dead, "activation exactly zero")[0].x) == 5
    assert any(a.text == "delta is exactly zero" for a in dead.layout.annotations)
    broken = depth(traced("produces-nan"), {})
    assert list(named(broken, "activation not finite")[0].x) == [2]
    assert list(named(broken, "delta not finite")[0].x) == [0, 1, 2]


@pytest.mark.parametrize("decay", [math.nan, math.inf, -math.inf])
def test_figures_are_json_whatever_the_numbers(decay):
    trace = with_decay(deep(2), decay)
    for figure in (depth(trace, {}), figures.by_kind(trace.split)):
        json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(name))


def test_names_cannot_be_markup_in_a_figure():
    said = depth(named_badly(), {}).to_json()
    assert "<img" not in said
    assert "<a href" not in said
    assert "&lt;" in said


def test_waterfall_ends_at_the_sum():
    figure = figures.by_kind({"weights": -11.1, "slope": -27.1, "normalisation": 3.0})
    bars = figure.data
    assert [bar.y[0] for bar in bars] == [
        "activation slope  -27.1", "weights  -11.1", "normalisation  +3.00", "sum  -35.2",
    ]  # fmt: skip
    for before, bar in itertools.pairwise(bars[:-1]):
        assert bar.base[0] == pytest.approx(before.base[0] + before.x[0])
    assert bars[-2].base[0] + bars[-2].x[0] == pytest.approx(bars[-1].x[0])


def test_learning_draws_each_layer_once():
    share = {"0": 0.1, "": 0.9}
    figure = figures.learning(share, {"0": 1e-3, "": 0.0}, {"0": 0.5})
    bars, ratio, noise = figure.data
    assert list(bars.y) == [0.1, 0.9]
    assert list(ratio.y) == [1e-3, None]  # zero has no place on a log axis
    assert "ratio zero" in ratio.customdata[1]
    assert list(noise.y) == [0.5, None]
    assert figure.layout.meta["names"] == ["0", "(the model itself)"]
    assert "90%" in figure.layout.meta["about"]


def test_a_share_that_moves_is_drawn_twice():
    share, later = {"0": 0.0, "1": 1.0}, {"0": 0.5, "1": 0.5}
    ratio = {"0": 1e-3, "1": 1e-3}
    assert len(figures.learning(share, ratio, later_share=share).data) == 2
    moved = figures.learning(share, ratio, later_share=later).data[-1]
    assert list(moved.y) == [0.5, 0.5]


def test_a_thousand_layers_stay_light():
    result = diagnosed(deep(1000))
    figure = depth(result.trace, {})
    assert len(figure.layout.xaxis.tickvals) == 12
    assert all(t.mode == "lines" for t in figure.data if t.type == "scatter")
    assert len(figure.to_json()) < 3_000_000


@pytest.mark.parametrize("back", [(1.0, 1.0, 1.0), (0x19 / 255, 0x1C / 255, 0x23 / 255)])
def test_colours_stand_out_on_light_and_on_dark(back):
    def luminance(rgb):
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for colour in COLOURS.values():
        fore = luminance([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        low, high = sorted((fore, luminance(back)))
        assert (high + 0.05) / (low + 0.05) >= 3
