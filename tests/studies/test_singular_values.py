"""singular-values: spectra of blocks and of their products, volume, angles."""

from __future__ import annotations

import math

import pytest
import torch

from signalprop.studies import cured, singular_values
from signalprop.studies.data import digits

CAROUSEL = "LSTM 1997, c alone"


def claim(result, text):
    return next(c for c in result.claims if c.text.startswith(text))


def test_numbers(quick):
    r = quick("singular-values")
    assert r.verdict == "holds in part"
    assert r["sum ln s_i against sum ln|det J_l|"] < 1e-5
    assert r["ln s_i, sp.spectrum against exact blocks"] < 1e-10
    # equal singular values: angles are kept, exactly
    assert claim(r, "equal singular values").verdict == "holds"
    for exact in ("orthogonal, linear, start", f"{CAROUSEL}, start", f"{CAROUSEL}, trained"):
        assert r[f"{exact}: turn"] < 1e-10
        assert abs(r[f"{exact}: volume"]) < 1e-10
    # near one by what the gate carries: 1 - sigmoid(b)
    for b in (-1, -2, -4):
        assert r[f"highway, b = {b}, start: middle"] == pytest.approx(
            1 - 1 / (1 + math.exp(-b)), abs=0.04
        )
    assert (
        0.6 < r["residual B / sqrt(L), start: low"] < r["residual B / sqrt(L), start: high"] < 1.5
    )
    assert r["tanh, start: low"] < 0.1
    # ReLU loses half of all directions in one block, residual A half of them in the end
    assert r["ReLU, start: lost"] == pytest.approx(0.5, abs=0.1)
    assert r["residual A / sqrt(L), start: volume"] == -math.inf
    assert 0.3 < r["residual A / sqrt(L), start: end lost"] < 0.8
    # volume: kept by residual B / sqrt(L), lost by gates at the rate of 1 - g and of f
    assert abs(r["residual B / sqrt(L), start: volume per direction"]) < 0.1
    for case, carried in (("highway, b = -4", 1 - 1 / (1 + math.exp(4))),
                          ("LSTM, b_f = 4, c alone", 1 / (1 + math.exp(-4)))):  # fmt: skip
        lost = r[f"{case}, start: volume per direction"] / r["blocks"]
        assert lost == pytest.approx(math.log(carried), abs=0.02)
    # what is near one in a block spreads with depth
    spreads = next(
        s.y for s in r.series if s.name == "residual B / sqrt(L)" and "spread" in s.figure
    )
    assert list(spreads) == sorted(spreads)
    assert spreads[-1] > 3 * spreads[0]
    for text in ("and so are those", "no vanishing", "volume", "their singular values"):
        assert claim(r, text).verdict == "holds in part"
    assert "highway, b = -1 (" in claim(r, "no vanishing").because.split("Not by")[1]
    assert "highway, b = -4 (" in claim(r, "no vanishing").because.split("Not by")[0]


def for_all(values):
    return {
        f"{case}, {state}: {k}": v
        for case in singular_values.CURED
        for state in singular_values.STATES
        for k, v in values.items()
    }


@pytest.mark.parametrize(
    ("text", "changed", "verdict"),
    [
        ("the singular", for_all({"low": 0.9, "high": 1.1}), "holds"),
        ("the singular", for_all({"low": 0.1}), "does not hold as printed"),
        ("and so", for_all({"end low": -0.1, "end high": 0.1}), "holds"),
        ("no van", for_all({"signal per block": 0.0}), "holds"),
        ("no van", for_all({"signal per block": -1.0}), "does not hold as printed"),
        ("volume", for_all({"volume per direction": 0.01}), "holds"),
        ("their", for_all({"turn": 30.0}), "does not hold as printed"),
        ("equal", {"orthogonal, linear, start: turn": 1.0}, "does not hold as printed"),
    ],
)
def test_doctored_numbers_change_the_verdict(text, changed, verdict, quick):
    r = quick("singular-values")
    numbers = {m.name: m.value for m in r.measurements} | changed
    claims = singular_values.judge(numbers)
    assert next(c for c in claims if c.text.startswith(text)).verdict == verdict


@pytest.mark.parametrize("name", cured.NETS)
def test_jacobians_against_one_at_a_time(name):
    x = digits(60).x_test[:3]
    net = cured.Net(name, 64, 6, 4)
    Js = singular_values.jacobians(net, x)
    assert Js.shape == (4, 3, 6, 6)
    for l, (block, s, piece) in enumerate(net.states(x)[:-1]):
        for i in range(3):
            J = torch.autograd.functional.jacobian(
                lambda v, i=i, block=block, piece=piece: block(v[None], piece[i : i + 1])[0],
                s[i].detach(),
            )
            torch.testing.assert_close(Js[l, i], J, rtol=1e-10, atol=1e-12)


def test_highway_jacobian_is_the_formula():
    n = 5
    block, s = cured.Highway(n, -2.0), torch.randn(n, dtype=torch.float64)
    with torch.no_grad():
        g, h = torch.sigmoid(block.G(s)), torch.tanh(block.W(s))
        X = g[:, None] * (1 - h**2)[:, None] * block.W.weight - torch.diag(g)
        X += ((h - s) * g * (1 - g))[:, None] * block.G.weight
    J = torch.autograd.functional.jacobian(lambda v: block(v, v), s)
    torch.testing.assert_close(J, torch.eye(n, dtype=torch.float64) + X)


def test_lstm_step_is_that_of_torch():
    n, inputs = 8, 3
    step = cured.Memory(n, inputs, 1.0)
    cell = torch.nn.LSTMCell(inputs, n // 2, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in ((step.W.weight, cell.weight_ih), (step.U.weight, cell.weight_hh),
                             (step.W.bias, cell.bias_ih), (step.U.bias, cell.bias_hh)):  # fmt: skip
            theirs.copy_(ours)
        assert cell.bias_ih[n // 2 : n].tolist() == [1.0] * (n // 2)
        s, x = torch.randn(2, n, dtype=torch.float64), torch.randn(2, inputs, dtype=torch.float64)
        torch.testing.assert_close(step(s, x), torch.cat(cell(x, s.chunk(2, 1)), 1))


def test_look_against_the_product_itself():
    Js = torch.eye(5, dtype=torch.float64) + 0.3 * torch.randn(4, 2, 5, 5, dtype=torch.float64)
    seen = singular_values.look(Js, (1, 4))
    product = Js[3] @ Js[2] @ Js[1] @ Js[0]
    s = torch.linalg.svdvals(product)
    torch.testing.assert_close(seen.logs, s.log(), rtol=0, atol=1e-10)
    volume = float(torch.linalg.slogdet(product)[1].median())
    assert seen.numbers["volume"] == pytest.approx(volume)
    signal = (torch.linalg.matrix_norm(product) / math.sqrt(5)).log().median()
    assert seen.numbers["signal"] == pytest.approx(float(signal))
    assert seen.off < 1e-10
    assert len(seen.over["turn"]) == 2


def test_a_direction_that_is_lost_is_counted_as_zero():
    J = torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=torch.float64)).expand(3, 2, 4, 4)
    seen = singular_values.look(J, (3,))
    assert seen.numbers["lost"] == seen.numbers["end lost"] == 0.25
    assert seen.numbers["volume"] == seen.numbers["end low"] == -math.inf
    assert seen.numbers["worst turn"] == 90


def test_turns():
    scaled = 3 * torch.linalg.qr(torch.randn(2, 6, 6, dtype=torch.float64))[0]
    assert singular_values.turns(scaled) < 1e-12
    flat = torch.ones(1, 6, 6, dtype=torch.float64)
    assert singular_values.turns(flat) == pytest.approx(90, abs=1e-4)
    # (1, 0) and (0, 1) turned by 45 degrees and scaled by a = 2: cos = (a^2 - 1) / (a^2 + 1)
    J = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))[None]
    worst = math.degrees(math.asin(3 / 5))
    assert 0 < singular_values.turns(J) < worst
    assert singular_values.look(J[None], (1,)).numbers["worst turn"] == pytest.approx(worst)
