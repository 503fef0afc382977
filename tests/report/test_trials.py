import dataclasses
import io
import json
import math
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.report import trials_samples as samples
from tests.report.test_html import Outline

from signalprop.cures.trials.leg import _thinned
from signalprop.cures.trials.race import rungs
from signalprop.report import notebook, page, terminal, text
from signalprop.report.trials import said
from signalprop.report.trials.figures import curves, dots, places

HELPED, NOTHING, ODD = samples.helped(), samples.nothing(), samples.odd()
EVERY = {
    "helped": HELPED, "nothing": NOTHING, "odd": ODD,
    "healthy": samples.healthy(), "badly": samples.named_badly(),
}  # fmt: skip


def flat(shown):
    return " ".join(shown.split())


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


class TestHeadline:
    def test_helps(self):
        best = HELPED.trials[0]
        gains = [0.58, 0.58, 0.59]
        assert said.gains(best) == pytest.approx(gains)
        line = said.headline(HELPED)
        assert line.endswith(
            "helps: accuracy 0.35 -> 0.93 (+0.58 ± 0.01 over 3 seeds, 200 updates)."
        )

    def test_small_gains_get_another_digit(self):
        small = samples.made(samples.trial("he-init", (0.36, 0.37, 0.381)))
        assert "0.350 -> 0.370 (+0.020 ± 0.001 over" in said.headline(small)

    def test_few_seeds(self):
        one = samples.made(
            samples.trial("he-init", (0.9,), untouched=(0.3,)),
            untouched=samples.trial("untouched", (0.3,), untouched=(0.3,)),
        )
        line = said.headline(one)
        assert line.startswith("he-init is better: accuracy 0.30 -> 0.90 (+0.60 over 1 seed, 200")
        assert line.endswith("Fewer than 3 seeds prove nothing.")

    def test_an_untouched_network_that_diverges(self):
        assert said.headline(ODD).startswith(
            "clip is better: R2 diverged -> 0.30 (1 seed, 200 updates)"
        )

    def test_nothing(self):
        assert said.headline(NOTHING) == "Nothing that was tried helps."
        early = dataclasses.replace(NOTHING, complete=False)
        assert said.headline(early) == "Nothing that was tried helps so far."
        assert said.headline(samples.healthy()) == "Nothing to treat: no issue found."
        rejected = samples.made(rejected={"he-init": "it has no weights"})
        assert "no cure of what was found applies" in said.headline(rejected)
        assert "no cure is known" in said.headline(samples.made())
        assert said.state(samples.made(before=(samples.TIP,))) == "nothing"
        assert said.state(NOTHING) == "untreated"


class TestCode:
    def test_the_import_comes_first(self):
        assert said.code(HELPED.trials[1]) == [
            "import signalprop.cures", "model = signalprop.cures.residual(model)",
        ]  # fmt: skip
        own = samples.trial("rate", (0.9,) * 3, lines=("optimizer = torch.optim.SGD(p, lr=1)",))
        assert said.code(own) == list(own.lines)

    def test_long_lines_stay_python(self):
        line = "f(aaaaaaaaaa, bbbbbbbb(1, 2), c={'x, y': [1, 2, 3]}, long='a, b, c, d, e, f')"
        for width in range(20, 90):
            parts = said.folded(line, width)
            compile("\n".join(parts), "pasted", "exec")
            assert "".join("".join(parts).split()) == "".join(line.split())
        assert all(len(part) <= 40 for part in said.folded(line, 40))
        assert said.folded(line, 90) == [line]

    def test_a_line_of_several(self):
        several = samples.trial("clip", (0.9,) * 3, lines=("loss.backward()\nclip_(model)",))
        assert said.code(several) == ["loss.backward()", "clip_(model)"]


class TestTerminal:
    @pytest.mark.parametrize("name", EVERY)
    @pytest.mark.parametrize("width", [40, 63, 80, 140])
    def test_fits(self, name, width):
        for line in text(EVERY[name], width=width).splitlines():
            assert cell_len(line) <= width
            assert "\x1b" not in line

    def test_order(self):
        shown = flat(text(HELPED, width=100))
        parts = ["helps: accuracy", "import signalprop.cures", "Before: 1 issue: SP101", "1 tip"]
        parts += ["After: 1 tip: SP114", "candidate accuracy gain updates verdict"]
        parts += ["0.933 ± 0.015 +0.583 200 helps", "residual 0.703 ± 0.095 +0.353 200 helps"]
        parts += ["batch-norm 0.353", "100, stopped no difference", "50, stopped worse"]
        parts += ["diverged 50, stopped failed", "it diverged: the loss is not finite"]
        parts += ["untouched 0.350 ± 0.010 200", "Not tried: positions: the network has no"]
        parts += ["Data: 10 batches", "Note: No optimizer was given"]
        at = [shown.index(part) for part in parts]
        assert at == sorted(at)

    def test_long_names_are_whole(self):
        shown = text(HELPED, width=80)
        for name in HELPED.trials[0].cures:
            assert name in shown.split("candidate")[1]

    def test_no_number_is_lost_where_it_is_narrow(self):
        shown = text(HELPED, width=50)
        assert "0.933 ± 0.015" in shown
        assert "+0.583" in shown
        assert "updates" not in shown.split("candidate")[1].partition("\n")[0]

    def test_ascii(self):
        raw = io.BytesIO()
        out = io.TextIOWrapper(raw, encoding="ascii")
        Console(file=out, width=80).print(terminal(HELPED))
        out.flush()
        shown = raw.getvalue().decode("ascii")
        assert "0.933 +-0.015" in shown

    def test_interrupted(self):
        assert "resume=" in text(ODD)
        assert "resume=" not in text(HELPED)

    def test_odd_numbers(self):
        shown = flat(text(ODD, width=100))
        assert "clip 0.300 from none 200 better" in shown
        assert not re.search(r"\b(nan|inf|None)\b", shown)


class TestPage:
    @pytest.mark.parametrize("name", EVERY)
    def test_every_kind(self, name):
        found = Outline(page(EVERY[name], assets="directory"))
        assert found.tags.count("h1") == 1
        assert len(found.ids) == len(set(found.ids))
        plots = [a for _, a in found.attributes if a.get("class") == "plot"]
        assert len(plots) == 2
        assert all(a["role"] == "img" and len(a["aria-label"]) > 30 for a in plots)
        assert "img" not in found.tags
        assert not re.search(r"\b(nan|None)\b", flat(" ".join(found.text)))

    def test_content(self):
        shown = flat(" ".join(Outline(page(HELPED, assets="directory")).text))
        parts = ["Cures of Net", said.headline(HELPED), "seeds 0, 1, 2", "Lines to paste"]
        parts += ["import signalprop.cures model = ", "Before and after", "SP101 Error signal"]
        parts += ["before its training", "Every seed", "Training loss", "Candidates (6)"]
        parts += ["+0.353", "it diverged: the loss is not finite", "Not tried (1)"]
        at = [shown.index(flat(part)) for part in parts]
        assert at == sorted(at)

    def test_names_stay_names(self):
        bad = samples.named_badly()
        for shown in (page(bad, assets="directory"), notebook(bad)):
            assert "<img" not in shown
            assert "onerror=alert" in shown  # as text
            assert "\x1b" not in shown
            Outline(shown)

    @pytest.mark.parametrize("name", EVERY)
    def test_notebook(self, name):
        shown = notebook(EVERY[name])
        assert "<script" not in shown
        found = flat(" ".join(Outline(shown).text))
        assert "untouched" in found
        assert not re.search(r"\b(nan|None)\b", found)


class TestDots:
    def test_every_seed_in_its_row(self):
        figure = dots(HELPED)
        (helps,), (other,), (plain,) = (
            named(figure, n) for n in ("helps", "does not", "untouched")
        )
        assert list(helps.x) == [0.92, 0.93, 0.95, 0.61, 0.7, 0.8]
        assert [round(y) for y in helps.y] == [0, 0, 0, 1, 1, 1]
        assert list(plain.x) == list(samples.UNTOUCHED)
        assert [round(y) for y in plain.y] == [5, 5, 5]
        assert list(other.marker.symbol[-3:]) == ["x"] * 3  # diverged
        assert max(other.x[-3:]) < 0.19
        (means,) = named(figure, "mean, and gain")
        assert list(means.x) == pytest.approx([t.mean for t in HELPED.trials[:4]] + [0.35])
        assert list(means.text) == ["+0.583", "+0.353", "+0.003", "-0.150", ""]
        low, high = figure.layout.yaxis.range
        assert low > high  # best on top
        assert figure.layout.yaxis.ticktext[2].endswith("stopped at 100")
        assert figure.layout.shapes[0].x0 == pytest.approx(0.35)

    def test_one_bad_seed_flattens_nothing(self):
        tried = samples.trial("rate", (0.9, 0.8, -1e6)), samples.trial("selu", (0.5, 0.4, 0.5))
        figure = dots(samples.made(*tried, metric="R2"))
        (rows,) = named(figure, "does not")
        assert min(rows.x) > -5
        assert rows.marker.symbol.count("triangle-left") == 1
        assert "Triangles" in figure.layout.meta["caption"]

    @pytest.mark.parametrize("name", EVERY)
    def test_no_infinity(self, name):
        for figure in (dots(EVERY[name]), curves(EVERY[name])):
            json.loads(figure.to_json(), parse_constant=lambda value: pytest.fail(value))


class TestCurves:
    def test_a_menu_of_candidates_beside_the_untouched(self):
        figure = curves(HELPED)
        plain = named(figure, "untouched")
        assert len(plain) == 3
        assert all(t.visible and "choice" not in t.meta for t in plain)
        assert len(figure.layout.meta["choices"]) == 5
        assert [t.visible for t in figure.data[3:9]] == [True] * 3 + [False] * 3
        assert {t.meta["choice"] for t in figure.data[3:]} == set(range(5))
        assert sum(bool(t.showlegend) for t in plain) == 1
        assert "choices" not in curves(samples.made(samples.trial("a", (0.9,) * 3))).layout.meta

    @pytest.mark.parametrize("steps", [1, 2, 7, 20, 79, 200, 1003])
    def test_points_stand_where_they_were_measured(self, steps):
        import torch

        updates, found, start = torch.arange(1, steps + 1).double(), (), 0
        for rung in rungs(steps):
            found += _thinned(updates[start:rung])
            start = rung
            assert places(len(found), rung, steps) == pytest.approx(list(found))

    def test_a_training_that_failed_on_its_way(self):
        assert places(3, 200, 200) == pytest.approx([200 / 6, 100, 1000 / 6])

    def test_nothing_trained(self):
        bare = dataclasses.replace(HELPED.untouched, curves=((), (), ()))
        assert curves(samples.made(untouched=bare)) is None


@pytest.mark.parametrize("name", EVERY)
def test_plain_json(name):
    found = EVERY[name].to_dict()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert again["before"]["verdict"] == EVERY[name].before.verdict
    if name == "odd":
        assert again["untouched"]["metric"] == ["-inf"]


def test_values():
    assert said.value(math.nan) == ""
    assert said.value(-0.0004) == "-0.000"
    assert said.value(-1e6) == "-1.0e6"
    assert said.value(12.0, sign=True) == "+12"
