import dataclasses
import math
import re

import pytest
import torch
import torch.nn.functional as F
from tests.report.samples import deep, emptied, traced, with_decay
from torch import nn

import signalprop as sp
from signalprop.report.ladder import ROWS, SHORT, ladder

SHOWN = ["mlp-sigmoid-30", "gpt2", "bert", "resnet-20", "densenet", "mlp-sigmoid-1"]


@pytest.mark.parametrize("name", SHOWN)
def test_rows_hold_every_site_and_all_of_the_decay(name):
    trace = traced(name)
    steps = ladder(trace)
    assert steps.spine
    assert sum(row.decay or 0.0 for row in steps.rows) == pytest.approx(trace.decay, abs=1e-9)
    ends = [site for row in steps.rows for site in row.sites if site in trace.spine]
    assert ends == list(trace.spine)
    for row in steps.rows:
        if row.decay is not None:
            assert sum(row.parts.values()) == pytest.approx(row.decay, abs=1e-9)


def test_repeated_layers_are_folded_and_their_ends_kept():
    trace = traced("mlp-sigmoid-30")
    rows = ladder(trace).rows
    assert [row.label for row in rows[:2]] == ["input", "0 to 1"]
    assert [row.label for row in rows[-2:]] == ["58 to 59", "60"]
    folds = [row for row in rows if row.count > 1]
    assert sum(row.count for row in folds) == 28
    # the signal falls through many decades: its course is seen in several rows
    assert len(folds) > 2
    for row in folds:
        mean, low, high = row.each
        assert low <= mean <= high
        assert mean * row.count == pytest.approx(row.decay)
        assert row.op == "linear, sigmoid"
        assert row.kind == "slope"


def test_a_stretch_in_which_nothing_happens_is_one_row():
    folds = [row for row in ladder(traced("mlp-selu-lecun-30")).rows if row.count > 1]
    assert [row.count for row in folds] == [28]


def test_a_short_network_is_not_folded():
    trace = deep((SHORT - 2) // 2)
    assert len(trace.blocks) + 1 <= SHORT
    rows = ladder(trace).rows
    assert all(row.count == 1 for row in rows)
    assert [row.label for row in rows] == list(trace.spine)


def test_units_are_called_after_their_module():
    rows = ladder(traced("bert")).rows
    assert "bert.encoder.layer.0" in [row.label for row in rows]
    assert "bert.encoder.layer.1 to 2" in [row.label for row in rows]


def test_a_unit_begins_where_its_module_does():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x):
            return torch.relu(x + self.inner(x))

    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), *(Block() for _ in range(12)))
    rows = ladder(sp.trace(model, (torch.randn(4, 8), torch.randn(4, 8)), F.mse_loss)).rows
    folds = [row for row in rows if row.count > 1]
    assert all(re.fullmatch(r"\d+ to \d+", row.label) and row.op == "add, relu" for row in folds)
    assert rows[-1].label == "13"


def test_a_thousand_layers_are_a_screenful():
    trace = deep(1000)
    rows = ladder(trace).rows
    assert len(rows) <= 12
    assert sum(row.decay or 0.0 for row in rows) == pytest.approx(trace.decay, abs=1e-6)


def test_layers_that_are_all_different_still_end():
    trace = deep(100)
    sites = {
        name: dataclasses.replace(site, shape=(4, 8 + i))
        for i, (name, site) in enumerate(trace.sites.items())
    }
    changed = dataclasses.replace(trace, sites=sites)
    rows = ladder(changed).rows
    assert len(rows) == ROWS + 1
    assert sum(row.decay or 0.0 for row in rows) == pytest.approx(trace.decay, abs=1e-6)


def test_where_delta_is_gone_the_rows_say_so():
    trace = traced("mlp-relu-dead")
    rows = {row.label: row for row in ladder(trace).rows}
    assert trace.cut == "10"
    assert rows["11"].decay == -math.inf
    assert not rows["11"].gone
    assert rows["10"].gone
    assert rows["10"].kind == ""


def test_dense_and_spineless_networks_show_all_sites():
    for name, why in (("lstm-cell-loop", "inside one block"), ("detached-encoder", "no spine")):
        trace = traced(name)
        steps = ladder(trace)
        assert not steps.spine
        assert why in steps.why
        assert sorted(s for row in steps.rows for s in row.sites) == sorted(trace.sites)
        assert all(row.decay is None for row in steps.rows)


def test_nothing_seen_is_no_row():
    assert ladder(emptied(deep(1))).rows == ()


def test_numbers_that_are_none_reach_the_row():
    row = ladder(with_decay(deep(1), math.nan)).rows[-1]
    assert math.isnan(row.decay)
    assert row.kind == "weights"
