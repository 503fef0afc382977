"""The rules over time as a set: documented, silent on healthy networks, found in a diagnosis."""

from __future__ import annotations

import inspect

import pytest
import torch
from tests.diagnosis.time.nets import CE, HEALTHY, Last, many, one, orthogonal
from torch import nn

from signalprop.diagnosis import verdict
from signalprop.diagnosis.engine import DEFAULT_RULES, diagnose
from signalprop.diagnosis.time import measure
from signalprop.diagnosis.time.rules import TIME_RULES
from signalprop.errors import SignalpropError

CODES = [r.rule.code for r in TIME_RULES]


def found(model, data, loss=CE, **options):
    """What the rules over time say, by code."""
    made = diagnose(model, data, loss, rules=TIME_RULES, **options)
    return {f.code: f for f in made.findings}


def outcomes(model, data, loss=CE, **options):
    made = diagnose(model, data, loss, rules=TIME_RULES, **options)
    return {r.code: (r.outcome, r.reason) for r in made.results}


def test_codes():
    assert [f"SP{n}" for n in range(301, 309)] == CODES
    assert {r.rule.code for r in TIME_RULES} <= {r.rule.code for r in DEFAULT_RULES}
    assert set(CODES) <= set(verdict._ORDER)


@pytest.mark.parametrize("rule", TIME_RULES, ids=lambda r: r.rule.code)
def test_rule_is_documented_and_can_be_tuned(rule):
    assert rule.rule.thresholds
    assert rule.rule.cures
    doc = inspect.getdoc(rule)
    titles = ("How it is detected:", "Why it matters:", "How to cure it:")
    places = [doc.index(title) for title in titles]
    assert places == sorted(places)
    for name in rule.rule.thresholds:
        assert f"`{name}`" in doc, name


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_networks_are_silent(name):
    torch.manual_seed(0)
    model, data = HEALTHY[name]()
    told = diagnose(model, data, CE, rules=TIME_RULES)
    assert [f"{f.code}: {f.explanation}" for f in told.findings] == []
    assert not [r for r in told.results if r.outcome == "skipped" and r.code != "SP308"]


def test_nothing_applies_where_nothing_recurs():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    told = outcomes(model, (torch.randn(16, 8), torch.arange(16) % 4), lag=3, clip=1.0)
    assert {outcome for outcome, _ in told.values()} == {"not applicable"}


def test_a_pass_that_stops_is_refused():
    model = Last("LSTM")
    model.head = nn.Linear(3, 4)
    with pytest.raises(SignalpropError):
        diagnose(model, one(20), CE, rules=TIME_RULES)


@pytest.mark.parametrize("lag", [0, -3, 2.5, True, "10"])
def test_a_lag_is_a_number_of_steps(lag):
    with pytest.raises(SignalpropError, match="lag is over how many steps"):
        diagnose(Last("GRU"), one(10), CE, lag=lag)


@pytest.mark.parametrize("clip", [0, -1.0, float("inf"), float("nan"), True, "1"])
def test_a_clip_is_a_norm(clip):
    with pytest.raises(SignalpropError, match="clip is the norm"):
        diagnose(Last("GRU"), one(10), CE, clip=clip)


def test_the_model_and_the_random_numbers_stay():
    model, data = Last("RNN"), one(60)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    found(model, data)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_the_cause_comes_first_in_the_verdict():
    torch.manual_seed(0)
    model = orthogonal(Last("RNN", nonlinearity="relu"), 2.0)
    told = diagnose(model, one(60), CE, torch.optim.SGD(model.parameters(), 1e-3), clip=1.0)
    codes = [f.code for f in told.findings]
    assert codes.index("SP302") < codes.index("SP308")
    assert told.verdict.startswith("Error signal explodes in time")


def test_a_horizon_that_cannot_be_measured_skips_what_needs_it(monkeypatch):
    def refuse(*args, **options):
        raise SignalpropError("nothing to see. Second sentence.")

    monkeypatch.setattr(measure, "horizon", refuse)
    told = outcomes(Last("RNN"), one(100))
    for code in ("SP301", "SP302", "SP303", "SP308"):
        assert told[code][0] == "skipped", code
    assert "nothing to see" in told["SP301"][1]
    assert told["SP307"] == ("passed", "")


def test_a_diagnosis_keeps_the_horizons_and_the_lag():
    told = diagnose(Last("GRU"), one(30), CE, lag=3)
    assert [(c.site, c.op) for c in told.horizons] == [("rnn", "gru")]
    assert told.lag == 3
    assert diagnose(Last("GRU"), one(30), CE).lag is None
    assert (
        diagnose(
            nn.Sequential(nn.Linear(8, 4)), (torch.randn(9, 8), torch.arange(9) % 4), CE
        ).horizons
        == ()
    )


def test_time_first_and_a_loss_at_every_step():
    model = nn.LSTM(8, 32)
    x, y = many(40)

    def loss(output, target):
        return CE(output[0][..., :4].permute(1, 2, 0), target)

    assert not found(model, (x.transpose(0, 1), y), loss, batch_dim=1)
