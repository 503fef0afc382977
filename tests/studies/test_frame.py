"""The frame: finding a study, running it, and what a result is."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from signalprop import studies
from signalprop.errors import SignalpropError
from signalprop.studies import STUDIES, Claim, verdict_of
from signalprop.studies.frame import VERDICTS

NAMES = [study.name for study in STUDIES]


def test_studies_of_the_issue():
    assert set(NAMES) >= {
        "delta-chain", "product-bound", "first-layer-idle", "sigmoid-quarter", "alexnet",
    }  # fmt: skip
    assert len(set(NAMES)) == len(NAMES)
    for study in STUDIES:
        assert study.title
        assert study.statement
        assert "Hochreiter" in study.source


@pytest.mark.parametrize(
    ("wrong", "near"), [("delta_chain", "delta-chain"), ("alexnett", "alexnet"), ("zzz", "alexnet")]
)
def test_unknown_name_lists_near_matches(wrong, near):
    with pytest.raises(SignalpropError, match=re.escape(repr(wrong)) + f".*{near}"):
        studies.find(wrong) if wrong != "delta_chain" else studies.run(wrong)


def claim(verdict):
    return Claim("text", verdict, "because")


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ((0, 0), 0),
        ((0, 2), 1),
        ((0, 1), 1),
        ((2, 2), 2),
        ((1,), 1),
    ],
)
def test_verdict_of_parts(parts, whole):
    claims = tuple(claim(VERDICTS[i]) for i in parts)
    assert verdict_of(claims) == VERDICTS[whole]


@pytest.mark.parametrize("name", NAMES)
def test_result_is_complete(name, quick):
    result = quick(name)
    assert result.verdict in VERDICTS
    assert result.reason
    assert bool(result.correct_form) == (result.verdict != "holds")
    assert all(claim.because for claim in result.claims)
    named = [m.name for m in result.measurements]
    assert len(set(named)) == len(named)
    for series in result.series:
        assert len(series.x) == len(series.y) > 0
    for table in result.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert result.quick
    assert result.seed == 0
    assert result.settings


@pytest.mark.parametrize("name", NAMES)
def test_result_is_plain_data(name, quick):
    result = quick(name)
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["verdict"] == result.verdict
    assert len(read["measurements"]) == len(result.measurements)
    frame = result.frame()
    assert list(frame.index) == [m.name for m in result.measurements]
    first = result.measurements[0]
    assert frame.loc[first.name, "value"] == result[first.name] == first.value


def test_result_is_frozen(quick):
    with pytest.raises(dataclasses.FrozenInstanceError):
        quick("alexnet").verdict = "holds"


@pytest.mark.parametrize("name", NAMES)
def test_data_is_named(name, quick):
    assert ("scikit-learn's digits" in quick(name).data) == (name != "alexnet")


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_numbers_and_random_state_left_alone(name, quick):
    quick(name)  # a first run, so that lazy imports are done
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with torch.no_grad():  # the caller's mode must not matter
        again = studies.run(name, quick=True)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])

    def numbers(result):
        return {k: v for k, v in result.to_dict().items() if k != "seconds"}

    assert numbers(again) == numbers(quick(name))


def test_another_seed_gives_other_numbers(quick):
    other = studies.run("delta-chain", quick=True, seed=1)
    assert other.seed == 1
    assert other["decay by hand"] != quick("delta-chain")["decay by hand"]


def test_progress_rises_to_one():
    told = []
    studies.run("alexnet", progress=lambda share, doing: told.append((share, doing)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert all(doing for _, doing in told)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [60, 100])
def test_terminal_view(name, width, quick):
    result = quick(name)
    out = io.StringIO()
    Console(file=out, width=width).print(result)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    shown = " ".join(out.getvalue().split())
    assert result.verdict.upper() in shown
    assert " ".join(result.statement.split()[:4]) in shown
    assert result.verdict.upper() in repr(result)


@pytest.mark.parametrize("name", NAMES)
def test_page(name, quick, tmp_path):
    result = quick(name)
    path = result.save(tmp_path / "study.html", assets="directory")
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert result.verdict in page
    assert page.count('class="plot"') == len({s.figure for s in result.series})
    assert page.count("<table") == page.count("</table>") >= len(result.tables)
    assert "<script>alert" not in page
    notebook = result._repr_html_()
    assert result.verdict in notebook
    assert "<script" not in notebook


def test_page_escapes(quick, tmp_path):
    evil = dataclasses.replace(quick("alexnet"), statement="<script>alert(1)</script>")
    page = evil.save(tmp_path / "evil.html", assets="directory").read_text(encoding="utf-8")
    assert "<script>alert" not in page
