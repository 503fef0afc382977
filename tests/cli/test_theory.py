"""`theory defaults` and `theory phase`."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from signalprop.report import notebook, text
from signalprop.report.theory.page import diagram
from signalprop.report.theory.result import PhaseView, around
from signalprop.theory.defaults import defaults
from signalprop.theory.meanfield import MeanField
from signalprop.theory.phase import phase_diagram


class TestDefaults:
    def test_table(self, run, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        ran = run("theory", "defaults")
        assert ran.status == 0, ran.err
        lines = [line.rstrip() for line in ran.out.splitlines()]
        assert max(map(len, lines)) <= 80
        head = next(line for line in lines if "sigma_w^2" in line)
        assert head.split() == ["sigma_w^2", "q*", "chi_1", "xi_c", "6", "xi_c", "per", "layer"]
        tanh = lines[lines.index("tanh") + 1]
        assert re.fullmatch(r" +nn\.Linear default +0\.333 .* 0\.909 +5\.45 +0\.577", tanh)
        words = " ".join(ran.out.split())
        for row in defaults():
            assert row.verdict in words

    def test_json(self, run):
        found = json.loads(run("theory", "defaults", "--json").out)
        relu = next(row for row in found if row["activation"] == "relu")
        assert relu["chi_1"] == pytest.approx(1 / 6, abs=1e-3)
        assert any(row["xi_c"] == "inf" for row in found)

    def test_width(self, refused):
        assert refused("defaults", "--width", "0", command="theory") == (
            "--width 0 must be at least 1"
        )


class TestPhase:
    def test_map(self, run, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        ran = run("theory", "phase", "--activation", "tanh", "--at", "1.5,0.05", "--depth", "50")
        assert ran.status == 0, ran.err
        lines = [line.rstrip() for line in ran.out.splitlines()]
        assert max(map(len, lines)) <= 80
        words = " ".join(ran.out.split())
        assert "edge of chaos of tanh runs from sigma_w^2 = 1 at sigma_b^2 = 0" in words
        assert " ordered " in words
        assert " chaotic " in words
        assert words.count("┃") == 17 + 1  # every row, and how to read it
        point = MeanField("tanh", 1.5, 0.05)
        assert f"chi_1 {point.chi_1:.4g}" in words
        assert f"trainable depth of {point.trainable_depth:.3g}" in words
        assert "50 layers are within" in words

    def test_the_line_stands_at_the_edge(self):
        lines = text(around("tanh"), width=80).splitlines()
        top = next(line for line in lines if line.startswith("     1 │"))
        axis = around("tanh").diagram.weight_variances
        edge = 3.443  # at sigma_b^2 = 1
        share = (edge - axis[0]) / (axis[-1] - axis[0])
        assert top.index("┃") - 8 == pytest.approx(share * 65, abs=1.5)

    def test_deep_is_near_the_edge(self):
        shown = text(around("tanh", depth=200), width=80).splitlines()
        rows = [line[8:] for line in shown if "┃" in line][:-1]
        for row in rows:
            dark = [i for i, sign in enumerate(row) if sign == "▒"]
            assert all(abs(i - row.index("┃")) < 40 for i in dark)
        assert any("▒" in row for row in rows)

    def test_deeper_than_it_bears(self, run):
        ran = run("theory", "phase", "--at", "0.5,0.1", "--depth", "1000")
        assert "1000 layers are deeper than the trainable depth" in " ".join(ran.out.split())

    def test_json(self, run):
        found = json.loads(run("theory", "phase", "--at", "2.5,0.1", "--json").out)
        assert found["point"]["phase"] == "chaotic"
        assert np.array(found["q_star"]).shape == (41, 81)
        assert found["activation"] == "tanh"

    def test_html(self, run, folder):
        ran = run("theory", "phase", "--activation", "erf", "--html", "erf.html")
        assert ran.status == 0
        written = (folder / "erf.html").read_text()
        assert "Phase diagram of erf" in written
        assert "report: erf.html" in ran.err

    @pytest.mark.parametrize("activation", ["relu", "selu", "sigmoid", "linear"])
    def test_other_activations(self, activation):
        shown = text(around(activation), width=80)
        assert not re.search(r"\b(nan|inf)\b", shown)
        assert "sigma_w^2" in shown
        assert diagram(around(activation)).to_json()

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--activation", "tanhh"], "no activation is called 'tanhh'"),
            (["--at", "1.5"], "--at '1.5' is no point"),
            (["--at", "0,0.1"], "has to be above 0"),
            (["--at", "nan,0.1"], "has to be above 0"),
            (["--depth", "0"], "--depth 0 must be at least 1"),
            (["--html", "no/such/file.html"], "does not exist"),
        ],
    )
    def test_refused(self, refused, folder, words, said):
        assert said in refused("phase", *words, command="theory")


def test_the_figure_holds_the_numbers():
    shown = around("tanh", (1.5, 0.05), 50)
    figure = diagram(shown)
    heat = next(t for t in figure.data if t.type == "heatmap")
    i, j = 20, 30
    assert heat.z[i][j] == pytest.approx(np.log10(shown.diagram.trainable_depth[i, j]))
    edge = next(t for t in figure.data if t.name and t.name.startswith("edge"))
    for x, y in ((1.0, 0.0), (1.7610, 0.05)):
        assert np.interp(y, edge.y, edge.x) == pytest.approx(x, abs=2e-3)
    assert any(t.type == "contour" for t in figure.data)
    point = figure.data[-1]
    assert (point.x[0], point.y[0]) == (1.5, 0.05)
    assert {a.text for a in figure.layout.annotations} == {"<b>ordered</b>", "<b>chaotic</b>"}


def test_a_bare_diagram_has_views():
    bare = phase_diagram("tanh", np.linspace(0.1, 3, 20), np.linspace(0, 1, 11))
    assert text(bare, width=80) == text(PhaseView(bare), width=80)
    assert "<pre" in notebook(bare)


@pytest.mark.parametrize("words", ["theory", "theory phase", "theory defaults", "spectrum"])
def test_help_without_torch(words):
    program = (
        "import sys; from signalprop.cli import main; status = main(); "
        "slow = {'torch', 'numpy', 'plotly'} & set(sys.modules); "
        "sys.exit(f'loaded {slow}' if slow else status)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *words.split(), "--help"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "signalprop" in ran.stdout.partition("Examples:")[2]
