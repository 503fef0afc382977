"""SP306 and SP308: a state that is cut off, and clipping that hides an explosion."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.diagnosis.support import evidence_of, judge
from tests.diagnosis.time.nets import CE, Chunks, Last, Loop, OwnCell, many, one, orthogonal
from tests.diagnosis.time.test_rules import found, outcomes
from torch import nn

from signalprop import NotApplicable
from signalprop.capture.time import Horizon
from signalprop.cures.cure import DoesNotApply
from signalprop.cures.program.gradient import reconnect
from signalprop.cures.training import Recipe, Training
from signalprop.diagnosis.time.cut import clipping_hides, truncated
from signalprop.diagnosis.time.facts import LoopFacts, TimeFacts, facts_of
from signalprop.diagnosis.time.lag import Lag

CELLS = {
    "lstm": lambda: nn.LSTMCell(8, 32),
    "gru": lambda: nn.GRUCell(8, 32),
    "rnn": lambda: nn.RNNCell(8, 32),
    "own": OwnCell,
}


# ---- SP306 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_a_loop_that_detaches(cell):
    torch.manual_seed(0)
    told = found(Loop(CELLS[cell](), cut=5), one(40, 8))
    f = told["SP306"]
    assert f.severity == "issue"
    assert f.value == 5
    assert "cut off the graph 7 times in 40 steps" in f.explanation
    assert "the first 35 get none at all" in f.explanation
    assert not {"SP301", "SP303"} & set(told)
    assert outcomes(Loop(CELLS[cell]()), one(40, 8))["SP306"][0] == "not applicable"


def test_parts_that_are_detached():
    told = found(Chunks(10, detach=True), one(40, 8))
    assert told["SP306"].value == 10
    assert "SP306" not in found(Chunks(10, detach=False), one(40, 8))


def test_a_copy_is_a_cut_as_well():
    class Copied(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRUCell(8, 32), nn.Linear(32, 4)

        def forward(self, x):
            h = x.new_zeros(len(x), 32)
            for step in x.unbind(1):
                h = self.cell(step, torch.from_numpy(h.detach().numpy().copy()))
            return self.head(h)

    (loop,) = facts_of(Copied(), one(10, 8), CE, 0).loops
    assert loop.cuts == tuple(range(1, 10))
    assert loop.reached == 1


def test_truncation_by_design_is_a_tip():
    model = Loop(nn.LSTMCell(8, 32), cut=10, read="every")
    assert found(model, many(40, 8))["SP306"].severity == "tip"
    assert "SP306" not in found(model, many(40, 8), lag=5)
    told = found(model, many(40, 8), lag=20)
    assert set(told) == {"SP306"}
    assert told["SP306"].severity == "issue"
    assert "the task needs 20" in told["SP306"].explanation


def test_what_refines_one_thing_is_no_loop_over_time():
    class Refined(nn.Module):
        def __init__(self):
            super().__init__()
            self.step, self.head = OwnStep(), nn.Linear(8, 4)

        def forward(self, x):
            h = x[:, 0]
            for _ in range(6):
                h = self.step(h.detach())
            return self.head(h)

    class OwnStep(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, h):
            return h + torch.tanh(self.inner(h))

    (loop,) = facts_of(Refined(), one(5, 8), CE, 0).loops
    assert loop == LoopFacts("step", 6, (1, 2, 3, 4, 5), 1, False)


@pytest.mark.parametrize(
    ("loop", "lag", "told"),
    [
        (LoopFacts("a", 40, (20,), 20, True), None, ["tip"]),  # half of it is reached
        (LoopFacts("a", 40, (20,), 19, True), None, ["issue"]),
        (LoopFacts("a", 40, (20,), 40, True), Lag.given(20), ["issue"]),
        (LoopFacts("a", 40, (20,), 40, True), Lag.given(19), []),
        (LoopFacts("a", 40, (20,), 10, False), None, ["tip"]),
    ],
)
def test_severity(loop, lag, told):
    made = replace(
        evidence_of(Last("LSTM"), one(4, 4), CE), lag=lag, time=TimeFacts((), (loop,), None)
    )
    assert [f.severity for f in judge(truncated, made)] == told


def test_targets_without_a_graph_are_no_cut():
    """What another network hands in, and states that were never part of the graph."""

    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.slow, self.cell, self.head = (
                nn.GRUCell(8, 32),
                nn.GRUCell(8, 32),
                nn.Linear(32, 4),
            )

        def forward(self, x):
            h = k = x.new_zeros(len(x), 32)
            for step in x.unbind(1):
                with torch.no_grad():
                    k = self.slow(step, k)
                h = self.cell(step, h + 0 * k)
            return self.head(h)

    assert facts_of(Teacher(), one(10, 8), CE, 0).loops == ()
    with pytest.raises(NotApplicable):
        judge(truncated, evidence_of(Last("LSTM"), one(4, 4), CE))


def test_the_cure_says_what_to_do_by_hand():
    model = Loop(nn.GRUCell(8, 32), cut=5)
    training = Training(model, CE, Recipe(lambda p: torch.optim.Adam(p)))
    with pytest.raises(DoesNotApply, match=r"'cell' is given is cut off .* Take .detach\(\)"):
        reconnect.treat(training, one(40, 8))


# ---- SP308 -----------------------------------------------------------------------------------


def test_clipping_hides_what_explodes():
    torch.manual_seed(0)
    model = orthogonal(Last("RNN", nonlinearity="relu"), 2.0)
    told = found(model, one(60), clip=1.0)
    assert set(told) == {"SP302", "SP308"}
    assert told["SP308"].value > 10
    assert "clipped to 1" in told["SP308"].explanation
    assert "SP308" not in found(model, one(60), clip=1e6)
    assert outcomes(model, one(60))["SP308"][0] == "skipped"


@pytest.mark.parametrize(
    ("nats", "times", "sick"), [(3.5, 11, True), (2.5, 11, False), (3.5, 9, False)]
)
def test_thresholds(nats, times, sick):
    made = evidence_of(Last("RNN"), one(4, 4), CE)
    size = math.hypot(*(w.gradient for w in made.trace.weights.values()))
    curve = Horizon("rnn", "rnn_tanh", 0, False, (0, 10), (1.0, math.exp(nats)), 1e-7)
    made = replace(made, horizons=(curve,), clip=size / times)
    told = judge(clipping_hides, made)
    assert bool(told) == sick
    if sick:
        assert told[0].value == pytest.approx(11)


def test_clipping_of_what_does_not_recur():
    with pytest.raises(NotApplicable):
        judge(clipping_hides, replace(evidence_of(Last("RNN"), one(4, 4), CE), clip=1.0))
