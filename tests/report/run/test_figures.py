"""Figures of a run: what they hold, where it lies, and that no name of the run is markup."""

import json

import numpy as np
import pytest
from tests.report.run import samples

from signalprop.report.run import lines, window
from signalprop.report.run.axes import labels, stack
from signalprop.report.run.curves import Curves, curves
from signalprop.report.run.heat import heat
from signalprop.report.run.overview import overview
from signalprop.report.run.timeline import Look, Part, timeline
from signalprop.watching.file.reader import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with Run(samples.write(tmp_path_factory.mktemp("runs") / "run.sp")) as run:
        yield run


@pytest.fixture(scope="module")
def part(run):
    names = ("gradient_norm", "activation_rms")
    maps = [heat(run, name) for name in names]
    return Part(maps, curves(run), overview(run).alerts)


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def test_alerts_loss_and_heat_share_the_steps(part):
    figure = timeline([part])
    [marks], [loss], heats = named(figure, "alerts"), named(figure, "loss"), named(figure, "heat")
    assert list(marks.x) == [4000, 7000]
    assert [list(pair) for pair in marks.customdata] == [[0, 0], [0, 1]]
    assert marks.marker.symbol == ("triangle-down", "circle")
    assert len(loss.x) == 201
    assert {trace.xaxis for trace in figure.data} == {"x"}
    assert [h.visible for h in heats] == [True, False]
    assert figure.layout.meta["choices"] == ["gradient norm", "activation rms"]
    assert figure.layout.yaxis3.categoryarray[7] == "block1.attention.query"
    [line] = figure.layout.shapes
    assert (line.x0, line.x1) == (4000, 4000)


def test_places_of_alerts_are_marked_in_the_heat_map(part):
    [places] = named(timeline([part]), "places")
    assert list(places.y) == ["block1.attention.query", "block1.attention.key", "block4.mlp.up"]
    assert list(places.x) == [4000, 4000, 7000]


def test_panels_do_not_overlap(part):
    figure = timeline([part] * 3, Look(across=2))
    layout = figure.layout.to_plotly_json()
    boxes = []
    for key, axis in layout.items():
        if key.startswith("yaxis"):
            x = layout["xaxis" + axis["anchor"][1:]]["domain"]
            boxes.append((*x, *axis["domain"]))
    assert len(boxes) == 9
    for k, a in enumerate(boxes):
        for b in boxes[k + 1 :]:
            assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
    assert {layout[k].get("matches") for k in layout if k.startswith("xaxis")} == {None, "x"}


def test_runs_share_colours_and_the_scale_of_the_loss(part):
    figure = timeline([part, part], Look(across=2))
    assert {h.coloraxis for h in named(figure, "heat") if h.visible} == {"coloraxis"}
    assert figure.layout.yaxis2.range == figure.layout.yaxis5.range
    assert figure.layout.yaxis6.showticklabels is False


def test_without_alerts_and_loss_there_is_only_the_heat_map(run):
    figure = timeline([Part([heat(run, "dead")], Curves("run", {}))])
    assert [trace.name for trace in figure.data] == ["heat"]
    assert figure.layout.yaxis.type == "category"


def test_chosen_sites_are_marked(part):
    [chosen] = named(timeline([part], Look(chosen=("head", "not there"))), "chosen")
    assert list(chosen.y) == ["head"]


@pytest.mark.parametrize("scale", ["value", "change"])
@pytest.mark.parametrize("name", ["gradient_norm", "learning_share", "dead", "update_ratio"])
def test_colours_have_marks(run, name, scale):
    figure = timeline([Part([heat(run, name, scale=scale)], Curves("run", {}))])
    bar = figure.layout.coloraxis.colorbar
    assert 2 <= len(bar.tickvals) <= 8
    assert len(set(bar.ticktext)) == len(bar.ticktext)
    low, high = figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax
    assert all(low - 1e-9 <= v <= high + 1e-9 for v in bar.tickvals)


def test_scalars(run):
    figure = lines.scalars([curves(run), Curves("b", {"loss": (np.arange(3), np.ones(3))})])
    assert [t.text for t in figure.layout.annotations] == ["loss", "learning_rate", "accuracy"]
    assert len(figure.data) == 4
    assert figure.data[0].line.dash != figure.data[1].line.dash
    assert lines.scalars([Curves("a", {})]) is None


def test_lines_of_sites_have_a_band_where_steps_are_joined(run):
    found = run.values("gradient_norm", ["embed", "head"], columns=30)
    figure = lines.sites([("run", found)])
    assert [t.name for t in figure.data] == ["range", "embed", "range", "head"]
    assert figure.layout.yaxis.type == "log"
    nothing = run.values("gradient_norm", ["embed"], start=10**9)
    assert lines.sites([("run", nothing)]) is None


def test_a_window(run):
    found = run.windows[0]
    assert window.kinds(found) == ["gradient_norm", "delta_rms"]
    names = [site.name for site in run.sites]
    figure = window.window(found, "gradient_norm", names, "run", curves(run, start=6951))
    [drawn] = named(figure, "heat")
    assert drawn.z.shape == (38, 100)
    assert figure.layout.meta["caption"].startswith("Every step before step 7,050: loss spike")


def test_names_are_told_apart():
    names = [f"model.layers.{k}.self_attn.rotary_embedding.{k}" for k in range(30)] + ["x"] * 2
    made = labels(names, 14)
    assert len(set(made)) == len(names)
    assert labels(["<b>"]) == ["&lt;b&gt;"]


def test_stacked_groups():
    [first, second] = stack([10, 30], 2, 1, gap=10, between=0, apart=0.1)
    assert (first[0].x, first[1].x, second[0].x) == ("x", "x", "x2")
    assert [p.y for p in first + second] == ["y", "y2", "y3", "y4"]
    assert first[0].top == 1.0
    assert first[1].bottom == 0.0
    assert first[0].bottom == pytest.approx(0.8)
    assert (first[0].right, second[0].left) == pytest.approx((0.45, 0.55))


def test_no_name_is_markup(tmp_path):
    with Run(samples.hostile(tmp_path / "run.sp")) as run:
        seen = overview(run)
        maps = [heat(run, name) for name in run.statistics]
        whole = timeline([Part(maps, curves(run), seen.alerts)] * 2)
        figures = [whole, lines.scalars([curves(run)] * 2)]
        sites = [site.name for site in run.sites]
        figures.append(lines.sites([(samples.HOSTILE, run.values("gradient_norm", sites))] * 2))
        figures.append(window.window(run.windows[0], samples.HOSTILE, sites, samples.HOSTILE))
    for figure in figures:
        plain = json.loads(figure.to_json())
        del plain["layout"]["meta"]  # text of the page, which escapes it
        text = json.dumps(plain)
        for mark in ("<img", "<a ", "<svg", "<b onclick", "</script"):
            assert mark not in text
