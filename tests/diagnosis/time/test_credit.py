"""SP301 to SP303: the error vanishes or explodes in time, or does not reach back to the lag."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.diagnosis.support import evidence_of, judge
from tests.diagnosis.time.nets import (
    CE,
    Chunks,
    Last,
    Loop,
    OwnCell,
    everywhere,
    forget,
    one,
    orthogonal,
    told_first,
)
from tests.diagnosis.time.test_rules import found, outcomes
from torch import nn

from signalprop import NotApplicable
from signalprop.capture.time import Horizon, TimeAxis
from signalprop.diagnosis.time import curves
from signalprop.diagnosis.time.credit import (
    exploding_in_time,
    horizon_too_short,
    vanishing_in_time,
)
from signalprop.diagnosis.time.facts import LoopFacts, TimeFacts
from signalprop.diagnosis.time.lag import Lag

EPS = torch.finfo(torch.float32).eps


def curve(rate, steps=100, *, op="lstm", site="rnn", layer=0, reverse=False):
    """Credit g^lag with ln g = rate."""
    lags = tuple(range(steps))
    credit = tuple(math.exp(rate * k) for k in lags)
    return Horizon(site, op, layer, reverse, lags, credit, EPS)


def axis(rate, steps=100, *, op="lstm", layer=0, reverse=False, last=None):
    """Deltas that come from the last step that is read, or from `last`."""
    last = steps if last is None else last
    sizes = tuple(math.exp(rate * (last - t)) if t <= last else 0.0 for t in range(1, steps + 1))
    return TimeAxis("rnn", op, layer, reverse, steps, tuple(range(1, steps + 1)), sizes, (), ())


def evidence(curves, axes=(), *, lag=None, learned=None, loops=()):
    made = evidence_of(Last("LSTM"), one(4, 4), CE)
    return replace(
        made,
        horizons=tuple(curves),
        trace=replace(made.trace, time=tuple(axes)),
        lag=lag,
        time=TimeFacts((), tuple(loops), learned),
    )


# ---- SP301 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "site"),
    [
        (lambda: Last("RNN"), "rnn"),
        (lambda: Loop(nn.RNNCell(8, 32)), "cell"),
        (lambda: Loop(OwnCell()), "cell"),
        (lambda: Chunks(30, detach=False, kind="RNN"), "rnn"),
        (lambda: Chunks(1, detach=False, kind="RNN"), "rnn"),
    ],
    ids=["layer", "torch-cell", "own-cell", "part-by-part", "step-by-step"],
)
def test_a_plain_net_over_many_steps(build, site):
    torch.manual_seed(0)
    told = found(build(), one(150, 16))
    f = told["SP301"]
    assert f.severity == "issue"
    assert f.sites == (site,)
    assert 0.75 < f.value < 0.95
    assert "150 steps get no error signal" in f.explanation
    assert "1/e is left after" in f.explanation


def test_an_lstm_as_torch_draws_it_over_many_steps():
    torch.manual_seed(0)
    told = found(Last("LSTM"), one(300, 16))
    assert told["SP301"].cures[0] == "chrono"


@pytest.mark.parametrize(("rate", "sick"), [(-0.5, False), (-0.7, True)])
def test_the_threshold_is_a_share_of_the_steps(rate, sick):
    heard = math.floor(math.log(EPS) / rate) + 1
    told = judge(vanishing_in_time, evidence([curve(rate)], [axis(rate)]))
    assert bool(told) == sick == (1 - heard / 100 > 0.75)
    if sick:
        assert told[0].value == pytest.approx(1 - heard / 100)
        assert judge(vanishing_in_time, evidence([curve(rate)], [axis(rate)]), silent=0.9) == []


def test_what_is_read_at_every_step_has_its_error():
    flat = axis(0.0)
    assert judge(vanishing_in_time, evidence([curve(-2.0)], [flat])) == []


def test_both_directions_together():
    both = [curve(-0.7), curve(-0.7, reverse=True)]
    ends = [axis(-0.7), axis(-0.7, reverse=True)]
    assert judge(vanishing_in_time, evidence(both, ends)) == []
    # the reverse one is read where it begins: all it hears is one step
    start = [axis(-0.7), axis(-0.7, reverse=True, last=1)]
    assert judge(vanishing_in_time, evidence(both, start))


def test_the_best_layer_counts():
    curves = [curve(-2.0), curve(-0.1, layer=1)]
    axes = [axis(-2.0), axis(-0.1, layer=1)]
    assert judge(vanishing_in_time, evidence(curves, axes)) == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"lag": Lag.given(3)}, "SP303"),
        ({"learned": 0.3}, "learned already"),
        ({"loops": [LoopFacts("rnn", 100, (50,), 50, True)]}, "SP306"),
    ],
    ids=["lag", "learned", "cut"],
)
def test_what_is_judged_elsewhere(options, why):
    with pytest.raises(NotApplicable, match=why):
        judge(vanishing_in_time, evidence([curve(-2.0)], [axis(-2.0)], **options))


def test_short_sequences_and_attention_are_not_judged():
    with pytest.raises(NotApplicable, match="20 steps"):
        judge(vanishing_in_time, evidence([curve(-9.0, 12)], [axis(-9.0, 12)]))
    with pytest.raises(NotApplicable, match="no recurrent layer"):
        judge(vanishing_in_time, evidence([curve(-9.0, op="attention")]))


# ---- SP302 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_a_recurrence_that_stretches(nonlinearity):
    torch.manual_seed(0)
    model = orthogonal(Last("RNN", nonlinearity=nonlinearity), 2.0)
    x, y = one(100)
    told = found(model, (0.1 * x, y))["SP302"]
    assert told.value > 7
    assert "times as large" in told.explanation
    assert "nan" not in told.explanation


@pytest.mark.parametrize(("rate", "sick"), [(0.069, False), (0.072, True)])
def test_growth_is_in_nats(rate, sick):
    told = judge(exploding_in_time, evidence([curve(rate), curve(-1.0, layer=1)]))
    assert bool(told) == sick
    if sick:
        assert told[0].value == pytest.approx(99 * rate)


def test_growth_without_end_has_a_number():
    told = judge(exploding_in_time, evidence([curve(6.0)]))
    assert told[0].value == pytest.approx(594)
    assert "1e+258" in told[0].explanation or "e+" in told[0].explanation


def test_growth_needs_something_that_recurs():
    with pytest.raises(NotApplicable):
        judge(exploding_in_time, evidence([]))


# ---- SP303 -----------------------------------------------------------------------------------


def test_a_given_lag_beyond_the_horizon():
    torch.manual_seed(0)
    told = found(Last("LSTM"), one(120), lag=100)
    assert set(told) == {"SP303"}
    f = told["SP303"]
    assert "the task needs 100 steps" in f.explanation
    assert f.cures[:2] == ("chrono", "forget-bias")
    assert f.value < 1e-3


def test_the_lag_is_seen_in_the_data():
    torch.manual_seed(0)
    x, y = told_first(120, 256)
    told = found(Last("LSTM"), (x, y))["SP303"]
    assert "in 256 samples the target depends on inputs 119 steps back" in told.explanation
    assert not found(Last("LSTM", read="mean"), (x[:, :20], y))  # near enough


def test_a_loader_gives_more_samples():
    torch.manual_seed(0)
    x, y = told_first(100, 512)
    x[:, 0] = 0.35 * x[:, 0] + torch.randn(512, 8)  # too faint for one batch of 32
    data = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(
        data, 32, shuffle=True, generator=torch.Generator().manual_seed(1)
    )
    state = loader.generator.get_state()
    told = found(Last("LSTM"), loader)["SP303"]
    assert "in 512 samples" in told.explanation
    assert torch.equal(loader.generator.get_state(), state)
    assert outcomes(Last("LSTM"), (x[:32], y[:32]))["SP303"][0] == "not applicable"


def test_what_shows_everywhere_needs_no_long_memory():
    torch.manual_seed(0)
    assert outcomes(Last("LSTM"), everywhere(200, 128))["SP303"] == ("passed", "")


def test_sequences_shorter_than_the_lag():
    told = found(Last("LSTM"), one(30), lag=100)["SP303"]
    assert "the sequences of this batch have 30" in told.explanation


@pytest.mark.parametrize(("steps", "sick"), [(69, False), (70, True)])
def test_a_given_lag_asks_for_a_thousandth(steps, sick):
    told = judge(horizon_too_short, evidence([curve(-0.1)], lag=Lag.given(steps)))
    assert bool(told) == sick == (math.exp(-0.1 * steps) < 1e-3)


@pytest.mark.parametrize(("usual", "sick"), [(50, False), (90, True)])
def test_an_estimate_asks_for_more_than_noise_at_half_of_it(usual, sick):
    told = judge(horizon_too_short, evidence([curve(-0.2)], lag=Lag(99, usual, 5, 512)))
    assert bool(told) == sick
    if sick:
        assert "half of it on 90 or more" in told[0].explanation


@pytest.mark.parametrize(("nearest", "sick"), [(34, False), (35, True)])
def test_an_estimate_asks_for_a_thousandth_at_its_nearest(nearest, sick):
    told = judge(horizon_too_short, evidence([curve(-0.2)], lag=Lag(60, 50, nearest, 512)))
    assert bool(told) == sick == (math.exp(-0.2 * nearest) < 1e-3)
    if sick:
        assert "35 to 60 steps back, and not on the last 35" in told[0].explanation


@pytest.mark.parametrize(("steps", "sick"), [(10, False), (20, True), (30, True)])
def test_it_tells_what_an_lstm_as_torch_draws_it_learns(steps, sick):
    """Accuracy after 400 updates (Adam, 3e-3) of four classes: 0.92, 0.27, 0.25."""
    torch.manual_seed(0)
    data = told_first(steps, 256)
    assert ("SP303" in found(Last("LSTM"), data)) == sick
    assert "SP303" not in found(forget(Last("LSTM"), 3.0), data)  # 0.93, 0.93, 0.92


def test_a_network_that_has_learned():
    seen = Lag(99, 90, 5, 512)
    assert judge(horizon_too_short, evidence([curve(-0.2)], lag=seen, learned=0.1)) == []
    given = judge(horizon_too_short, evidence([curve(-0.2)], lag=Lag.given(90), learned=0.1))
    assert [f.severity for f in given] == ["tip"]


def test_the_far_end_is_near_the_other_way_round():
    both = [curve(-0.5), curve(-0.5, reverse=True)]
    read = [axis(-0.5), axis(-0.5, reverse=True)]
    assert judge(horizon_too_short, evidence(both, read, lag=Lag.given(95))) == []
    assert judge(horizon_too_short, evidence(both, read, lag=Lag.given(50)))
    start = [axis(-0.5), axis(-0.5, reverse=True, last=1)]
    assert judge(horizon_too_short, evidence(both, start, lag=Lag.given(95)))


def test_without_a_lag_there_is_nothing_to_say():
    with pytest.raises(NotApplicable, match="no lag is given"):
        judge(horizon_too_short, evidence([curve(-9.0)]))
    loops = [LoopFacts("rnn", 100, (50,), 50, True)]
    with pytest.raises(NotApplicable, match="SP306"):
        judge(horizon_too_short, evidence([curve(-9.0)], lag=Lag.given(60), loops=loops))


def test_what_arrives_by_another_way():
    lag, flat = Lag.given(90), axis(0.0)
    made = evidence([curve(-0.5)], [flat], lag=lag)
    assert judge(horizon_too_short, made) == []
    facts = TimeFacts((), (), None, targets=100)  # every step has a target of its own
    assert judge(horizon_too_short, replace(made, time=facts))


# ---- curves ----------------------------------------------------------------------------------


def test_credit_between_and_beyond_what_was_measured():
    c = Horizon("a", "lstm", 0, False, (0, 10, 20), (1.0, math.exp(-5), math.exp(-15)), EPS)
    assert curves.log_credit(c, 10) == pytest.approx(-5)
    assert curves.log_credit(c, 4) == pytest.approx(-2)
    assert curves.log_credit(c, 15) == pytest.approx(-10)
    assert curves.log_credit(c, 30) == pytest.approx(-25)
    dead = replace(c, credit=(1.0, 0.5, 0.0))
    assert curves.log_credit(dead, 25) == -math.inf


def test_sentences():
    told = curves.words(curve(-0.5))
    assert told == (
        "of the error at the last step of 'rnn' 1/e is left after 2 steps, and less than "
        "rounding noise (1e-07) after 31"
    )
    assert "less than 1/e is left after 1 step," in curves.words(curve(-2.0))
    assert "more than 1/e is left after 99 steps" in curves.words(curve(0.0))
    assert curves.factor(-math.inf) == "0"
    assert curves.factor(-2000) == "1e-869"
