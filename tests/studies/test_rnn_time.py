"""rnn-time: slopes against closed forms and slow twins, and verdicts that follow from numbers."""

from __future__ import annotations

import math

import pytest
import torch

from signalprop import studies
from signalprop.recurrent.horizon.measure import horizon
from signalprop.studies.rnn_time import nets, verdicts
from signalprop.studies.rnn_time.nets import GAUSS, LINEAR, ORTHOGONAL, RELU, TANH

#: as the fixture `bundled` has it
SMALL = nets.Sizes(48, 60, (0.5, 1.0, 2.0), 1, 2)
SAID: list[tuple[float, str]] = []


@pytest.fixture(scope="module")
def result(bundled):
    assert nets.QUICK == SMALL
    return studies.run("rnn-time", quick=True, progress=lambda *said: SAID.append(said))


@pytest.fixture
def values(result):
    return {m.name: m.value for m in result.measurements}


def test_numbers(result, values):
    for gain in SMALL.gains:
        at = f"{LINEAR}, {ORTHOGONAL}, gain {gain:.3g}"
        assert values[f"{at}: measured"] == pytest.approx(math.log(gain), abs=1e-9)
        assert values[f"{at}: exponent"] == pytest.approx(math.log(gain), abs=1e-9)
        assert values[f"{at}: norm"] == pytest.approx(gain)
    assert values[f"{LINEAR}, {ORTHOGONAL}, gain 0.5: horizon"] == 1
    chaotic = f"{TANH}, {GAUSS}, gain 2"
    assert values[f"{chaotic}: measured"] > 0.05
    assert values[f"{chaotic}: state"] < 1
    assert values[f"{RELU}, {GAUSS}, gain 1: measured"] < -0.1
    # torch's start is U(-1/sqrt(n), 1/sqrt(n)): gain 1/sqrt(3), -0.55 nats, less what tanh takes
    assert 20 < values["nn.RNN, tanh: horizon, float32"] < 45
    assert values["LSTM of 1997: horizon, float32"] == SMALL.steps - 1
    for gamma in nets.LEAKS:
        assert values[f"leaky {gamma:g}: horizon"] == math.floor(-1 / math.log(gamma))
    assert len(values) == len(result.measurements)
    assert all(len(row) == len(t.columns) for t in result.tables for row in t.rows)


def test_progress(result):
    shares = [share for share, _ in SAID]
    assert shares == sorted(shares)
    assert SAID[-1] == (1.0, "done")


def test_credit_of_a_linear_net_is_the_norm_of_powers():
    torch.manual_seed(0)
    W = nets.matrix(GAUSS, 0.9, 8)
    x = torch.randn(1, 20, 1, dtype=torch.float64)
    seen = horizon(nets.net(LINEAR, W), x, errors=400, gains=False, batch_dim=0).curves[0]
    norms = [float(torch.linalg.matrix_power(W, k).norm()) / math.sqrt(8) for k in range(20)]
    assert seen.credit == pytest.approx(norms, rel=0.15)


def test_slope():
    assert nets.slope([3 - 0.25 * k for k in range(20)]) == pytest.approx(-0.25)
    # only the later half counts
    assert nets.slope([9.0, -4.0, *(-0.5 * k for k in range(2, 10))]) == pytest.approx(-0.5)


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_depth_against_autograd(gain):
    sizes = nets.Sizes(40, 24, (gain,), 1, 3)
    torch.manual_seed(1)
    x = torch.randn(3, 24, 1, dtype=torch.float64)
    rate = nets.deep(GAUSS, gain, sizes, x, 5)
    # the same net again, by autograd, with many errors
    torch.manual_seed(5)
    w = torch.randn(40, 1, dtype=torch.float64) * nets.INPUT
    h = torch.zeros(3, 40, dtype=torch.float64)
    states = []
    for t in range(24):
        h = torch.tanh(h @ nets.matrix(GAUSS, gain, 40).T + x[:, t] @ w.T).requires_grad_()
        states.append(h)
    e = torch.randn(4, 3, 40, dtype=torch.float64)
    grads = [torch.autograd.grad(h, states, one, retain_graph=True) for one in e]
    sizes_of = [
        math.sqrt(sum(float(g[t].square().sum()) for g in grads)) for t in range(23, -1, -1)
    ]
    assert rate == pytest.approx(nets.slope([math.log(s) for s in sizes_of]), abs=1e-9)


@pytest.mark.parametrize(
    ("changed", "at", "verdict"),
    [
        ({"deep, gain 0.5: measured": 3.0}, 0, "holds in part"),
        ({f"{TANH}, {ORTHOGONAL}, gain 0.5: measured": 0.1}, 1, "holds in part"),
        ({f"{p}, {k}, gain {g:.3g}: measured": 1.0 for p in (LINEAR, TANH, RELU)
          for k in (GAUSS, ORTHOGONAL) for g in SMALL.gains}, 2, "holds"),
        ({f"{p}, {k}, gain {g:.3g}: measured": -1.0 for p in (LINEAR, TANH, RELU)
          for k in (GAUSS, ORTHOGONAL) for g in SMALL.gains}, 2, "does not hold as printed"),
        ({"leaky 0.9: horizon": 8}, 3, "holds in part"),
        ({"nn.RNN, tanh: horizon, float32": 59, "nn.RNN, ReLU: horizon, float32": 59}, 4,
         "does not hold as printed"),
    ],
)  # fmt: skip
def test_doctored_numbers_change_the_verdict(changed, at, verdict, values):
    right = {k.replace("predicted", "measured"): v for k, v in values.items() if "predicted" in k}
    same = {
        f"deep, gain {g:.3g}: measured": right[f"{TANH}, {GAUSS}, gain {g:.3g}: measured"]
        for g in SMALL.gains
    }
    claims = verdicts.judge(values | right | same | changed)
    assert claims[at].verdict == verdict
    assert [bool(c.correct) for c in claims] == [c.verdict != "holds" for c in claims]


def test_as_measured(values):
    found = [claim.verdict for claim in verdicts.judge(values)]
    assert found[1] == "holds"
    assert found[2] == "holds in part"
