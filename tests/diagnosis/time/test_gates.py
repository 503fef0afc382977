"""SP304, SP305 and SP307: gates shut, gates stuck, states at their ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.diagnosis.support import evidence_of, judge
from tests.diagnosis.time.nets import CE, Last, Loop, forget, many, one, trained
from tests.diagnosis.time.test_rules import found, outcomes
from torch import nn

from signalprop import NotApplicable
from signalprop.capture.time import Gate, TimeAxis
from signalprop.cures.structure.recurrent import chrono
from signalprop.diagnosis.time.facts import StateFacts, TimeFacts, facts_of
from signalprop.diagnosis.time.gates import gates_saturated, gates_shut, states_saturated
from signalprop.diagnosis.time.lag import Lag


def axis(*gates, op="lstm", steps=50):
    return TimeAxis("rnn", op, 0, False, steps, (1, steps), (1.0, 1.0), (), gates)


def evidence(axes=(), *, lag=None, learned=None, states=()):
    made = evidence_of(Last("LSTM"), one(4, 4), CE)
    facts = TimeFacts(tuple(states), (), learned)
    return replace(made, trace=replace(made.trace, time=tuple(axes)), lag=lag, time=facts)


# ---- SP304 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("read", ["last", "every"])
def test_a_forget_bias_that_shuts(read):
    torch.manual_seed(0)
    model = forget(Last("LSTM", read=read), -5.0)
    told = found(model, many(40) if read == "every" else one(40))["SP304"]
    assert told.cures == ("forget-bias", "chrono")
    assert told.value == pytest.approx(0.2, abs=0.02)  # -1 / ln sigmoid(-5)
    assert "forget gates of 'rnn' are at 0.007" in told.explanation


def test_an_update_gate_that_lets_go():
    model = Last("GRU")
    with torch.no_grad():
        model.rnn.bias_ih_l0[32:64] = -4.0
    told = found(model, one(40))["SP304"]
    assert told.cures == ("chrono",)
    assert "update gates" in told.explanation


@pytest.mark.parametrize(("remembers", "sick"), [(0.49, True), (0.51, False), (None, False)])
def test_the_threshold_is_a_time(remembers, sick):
    gate = Gate("forget", 0.13, 0.0, remembers)
    assert bool(judge(gates_shut, evidence([axis(gate)]))) == sick
    assert judge(gates_shut, evidence([axis(gate, steps=7)])) == []


def test_tasks_without_memory_and_networks_that_have_learned():
    shut = axis(Gate("forget", 0.01, 0.9, 0.2))
    with pytest.raises(NotApplicable, match="step before"):
        judge(gates_shut, evidence([shut], lag=Lag(1, 1, 0, 512)))
    with pytest.raises(NotApplicable, match="learned"):
        judge(gates_shut, evidence([shut], learned=0.2))
    with pytest.raises(NotApplicable, match="no LSTM or GRU"):
        judge(gates_shut, evidence([axis(op="rnn_tanh")]))


# ---- SP305 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_large_inputs_throw_the_gates(kind):
    torch.manual_seed(0)
    x, y = one(30)
    told = found(Last(kind), (50 * x, y))
    assert told["SP305"].value > 0.5
    assert "within 1% of 0 or 1" in told["SP305"].explanation
    assert "SP305" not in found(Last(kind), (x, y))


@pytest.mark.parametrize(
    ("mean", "saturated", "sick"),
    [(0.5, 0.6, True), (0.5, 0.4, False), (0.99, 0.9, False), (0.01, 0.9, False)],
)
def test_gates_open_or_shut_on_purpose_are_left_alone(mean, saturated, sick):
    gates = Gate("output", mean, saturated, None), Gate("input", 0.5, 0.0, None)
    assert bool(judge(gates_saturated, evidence([axis(*gates)]))) == sick


def test_chrono_shuts_input_gates_on_purpose():
    torch.manual_seed(0)
    model = chrono(Last("LSTM"), None, longest=1000)
    assert not {"SP304", "SP305"} & set(found(model, one(50)))


def test_switches_of_a_network_that_has_learned():
    stuck = axis(Gate("output", 0.5, 0.9, None))
    with pytest.raises(NotApplicable, match="learned"):
        judge(gates_saturated, evidence([stuck], learned=0.2))
    assert "learned" in outcomes(*trained())["SP305"][1]


# ---- SP307 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [lambda: Last("RNN"), lambda: Last("RNN", num_layers=2), lambda: Loop(nn.RNNCell(8, 32))],
    ids=["layer", "two-layers", "cell"],
)
def test_large_inputs_saturate_the_states(build):
    torch.manual_seed(0)
    x, y = one(30)
    told = found(build(), (50 * x, y))["SP307"]
    assert told.value > 0.5
    assert "lost their slope" in told.explanation
    assert "SP307" not in found(build(), (x, y))


@pytest.mark.parametrize(("share", "seen", "sick"), [(0.6, 64, True), (0.4, 64, False)])
def test_the_threshold_is_a_share_of_units(share, seen, sick):
    states = [StateFacts("rnn", share, 32, seen)]
    assert bool(judge(states_saturated, evidence(states=states))) == sick


def test_what_is_not_judged():
    with pytest.raises(NotApplicable, match="fewer than 8"):
        judge(states_saturated, evidence(states=[StateFacts("rnn", 1.0, 32, 7)]))
    states = [StateFacts("rnn", 1.0, 32, 64)]
    with pytest.raises(NotApplicable, match="learned"):
        judge(states_saturated, evidence(states=states, learned=0.2))
    with pytest.raises(NotApplicable, match="bounded state"):
        judge(states_saturated, replace(evidence(), time=None))
    # a cell counts, and rectifiers have no upper end
    for model in (Last("LSTM"), Last("RNN", nonlinearity="relu"), Loop(nn.LSTMCell(8, 32))):
        assert facts_of(model, one(10), CE, 0).states == ()


def test_a_unit_counts_from_three_quarters_on():
    cell = nn.RNNCell(8, 32)
    with torch.no_grad():
        cell.weight_ih.zero_()
        cell.weight_hh.zero_()
        cell.bias_hh.zero_()
        cell.bias_ih.zero_()
        cell.bias_ih[:20] = 3.0  # tanh = 0.995
        cell.weight_ih[20, 0] = 9.0  # in 0.8 of the samples
    x = torch.ones(10, 4, 8)
    x[:2] = 0.0
    (fact,) = facts_of(Loop(cell), (x, torch.zeros(10, dtype=torch.long)), CE, 0).states
    assert fact == StateFacts("cell", 21 / 32, 32, 40)
