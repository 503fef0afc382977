"""sigmoid-quarter: slopes, the video's chain, and why |w| < 1 is not enough."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from signalprop.studies import sigmoid_quarter

WIDE = "weights from U(-0.99, 0.99)"
OWN = "PyTorch's initialisation"


def test_numbers(quick):
    r = quick("sigmoid-quarter")
    assert r.verdict == "holds in part"
    assert [c.verdict for c in r.claims] == ["holds"] * 3 + ["does not hold as printed"]
    assert r["largest slope"] == 0.25
    assert r["largest scalar factor"] < 0.25
    assert r["chain by tool"] == pytest.approx(abs(r["chain by hand"]), rel=1e-12)
    assert r["chain factor by tool"] == pytest.approx(abs(r["chain factor by hand"]), rel=1e-12)
    assert r["two units, all weights 0.9"] == pytest.approx(0.45, rel=1e-12)
    assert r["five units, all weights 0.9"] == pytest.approx(1.125, rel=1e-12)
    assert r[f"{OWN}: share of factors >= 0.25"] == 0
    assert r[f"{WIDE}: largest |w|"] < 1
    assert r[f"{WIDE}: share of factors >= 0.25"] == 1
    assert r["largest factor / (||W|| / 4)"] <= 1
    assert "||W||_2 / 4" in r.correct_form


def test_chain_by_hand_is_autograds_with_its_sign():
    y = torch.tensor([sigmoid_quarter.X], dtype=torch.float64)
    biases = [torch.tensor([b], dtype=torch.float64, requires_grad=True) for b in sigmoid_quarter.B]
    for w, b in zip(sigmoid_quarter.W, biases, strict=True):
        y = torch.sigmoid(w * y + b)
    (gradient,) = torch.autograd.grad((y - sigmoid_quarter.TARGET).square().sum() / 2, biases[:1])
    assert sigmoid_quarter.by_hand()[0] == pytest.approx(float(gradient), rel=1e-12)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        # one unit per layer in all nets: the statement would hold
        (
            {"two units, all weights 0.9": 0.2, f"{WIDE}: share of factors >= 0.25": 0.0},
            "holds",
        ),
        ({"largest slope": 0.3}, "holds in part"),
        (
            {"largest slope": 0.3, "largest scalar factor": 0.3, "chain by tool": 1.0},
            "does not hold as printed",
        ),
    ],
)
def test_doctored_numbers_change_the_verdict(changed, verdict, quick, doctored):
    assert doctored(quick("sigmoid-quarter"), changed) == verdict


def test_a_bound_that_fails_is_said(quick):
    numbers = {m.name: m.value for m in quick("sigmoid-quarter").measurements}
    judged = sigmoid_quarter.judge(numbers | {"largest factor / (||W|| / 4)": 1.5})
    assert "fails" in judged[-1].correct


def test_factors_against_jacobians():
    layers = sigmoid_quarter.sigmoid_net(5, 3, 4, 0.99)
    x, y = torch.randn(2, 5, dtype=torch.float64), torch.tensor([1, 7])
    f = sigmoid_quarter.factors(layers, x, y)
    assert f.factors.shape == (2, 2)
    a = sigmoid_quarter.forward(layers, x)
    for n in range(2):
        delta = torch.autograd.functional.jacobian(
            lambda v, n=n: nn.functional.cross_entropy(layers[-1](v), y[n]), a[2][n].detach()
        )
        for i in (2, 1):
            J = torch.autograd.functional.jacobian(
                lambda v, i=i: torch.sigmoid(layers[i](v)), a[i - 1][n].detach()
            )
            below = delta @ J
            assert float(f.factors[i - 1, n]) == pytest.approx(float(below.norm() / delta.norm()))
            delta = below
