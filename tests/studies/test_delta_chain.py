"""delta-chain: the product of Jacobians is autograd's delta, and where that ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from signalprop.studies import delta_chain


def test_numbers(quick):
    r = quick("delta-chain")
    assert r.verdict == "holds"
    assert r.correct_form == ""
    for name in (
        "one layer, float64",
        "product, float64",
        "product, J in closed form",
        "product, skips + BatchNorm (eval)",
        "BatchNorm in training, whole batch",
    ):
        assert r[name] < 1e-13, name
    assert r["product, J by differences"] < 1e-7
    assert 1e-9 < r["product, float32"] < 1e-5
    assert r["decay by trace"] == pytest.approx(r["decay by hand"], abs=1e-12)
    assert r["BatchNorm in training, per sample"] > 0.1


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"product, float64": 1e-3}, "holds in part"),
        ({"product, J by differences": 0.1}, "holds in part"),
        ({"decay by trace": 1.0}, "holds in part"),
        ({"product, skips + BatchNorm (eval)": 0.2}, "holds in part"),
        (
            {
                "one layer, float64": 1.0,
                "product, skips + BatchNorm (eval)": 1.0,
                "BatchNorm in training, whole batch": 1.0,
            },
            "does not hold as printed",
        ),
    ],
)
def test_doctored_numbers_change_the_verdict(changed, verdict, quick, doctored):
    assert doctored(quick("delta-chain"), changed) == verdict


def test_three_ways_to_a_jacobian():
    layer = nn.Sequential(nn.Linear(5, 4, dtype=torch.float64), nn.Tanh())
    a = torch.randn(3, 5, dtype=torch.float64)
    exact = delta_chain.by_formula(layer, a)
    assert exact.shape == (3, 4, 5)
    torch.testing.assert_close(delta_chain.by_autograd(layer, a), exact)
    torch.testing.assert_close(delta_chain.by_differences(layer, a), exact, rtol=0, atol=1e-9)


def test_a_wrong_layer_is_noticed():
    layers = delta_chain.plain_net(6, 3, 5)
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.randint(10, (4,))

    def transposed_sign(layer, a):
        return -delta_chain.by_autograd(layer, a)

    _, good = delta_chain.chain(layers, x, y, delta_chain.by_autograd)
    steps, _ = delta_chain.chain(layers, x, y, transposed_sign)
    assert max(good) < 1e-13
    assert min(steps) == pytest.approx(2)
