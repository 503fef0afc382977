"""product-bound: both sides of the inequality on real nets."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from signalprop.studies import product_bound
from signalprop.studies.data import digits


def test_numbers(quick):
    r = quick("product-bound")
    assert r.verdict == "holds"
    assert r["cases with k < 1"] >= 90
    assert r["worst violation"] < 0
    assert r["worst violation, k < 1"] < 0
    assert 0.25 < r["sigmoid: k"] < 0.35
    assert r["sigmoid: measured"] < r["sigmoid: bound"] < -50
    # sufficient, not necessary
    assert r["tanh: k"] > 1
    assert r["tanh: bound"] > 0
    assert r["tanh: measured"] < -10
    # ||W|| of a wide matrix is twice what it does to a typical vector
    assert r["looseness, sigmoid, width 64"] == pytest.approx(math.log(2), abs=0.12)
    parts = (
        r[f"looseness, sigmoid, width 64: {name}"]
        for name in ("one k for all layers", "norms multiplied", "delta not worst direction")
    )
    assert sum(parts) == pytest.approx(r["looseness, sigmoid, width 64"], abs=1e-9)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"worst violation, k < 1": 0.3}, "holds in part"),
        ({"worst violation": 0.3}, "holds in part"),
        ({"cases with k < 1": 0.0}, "holds in part"),
        ({"sigmoid: measured": 1.0}, "holds in part"),
        ({"worst violation": 0.3, "sigmoid: measured": 1.0}, "does not hold as printed"),
    ],
)
def test_doctored_numbers_change_the_verdict(changed, verdict, quick, doctored):
    assert doctored(quick("product-bound"), changed) == verdict


@pytest.mark.parametrize("kind", product_bound.NETS, ids=lambda kind: kind.name)
def test_sides_against_plain_jacobians(kind):
    found, depth, width = digits(30), 4, 6
    state = torch.get_rng_state()
    s = product_bound.sides(kind, depth, width, found, samples=3)
    # the same net again, its Jacobians by autograd, nothing rescaled
    torch.set_rng_state(state)
    sizes = [64, *[width] * depth]
    layers = [torch.nn.Linear(m, n, dtype=torch.float64) for m, n in pairwise(sizes)]
    if kind.norm is not None:
        for layer in layers:
            layer.weight.data *= kind.norm / torch.linalg.svdvals(layer.weight.detach())[0]
    phi = torch.sigmoid if kind.sigmoid else torch.tanh
    for n in range(3):
        a, Js = phi(layers[0](found.x_test[n])), []
        for layer in layers[1:]:
            Js.append(torch.autograd.functional.jacobian(lambda v, f=layer: phi(f(v)), a))
            a = phi(layer(a))
        norms = [torch.linalg.svdvals(J.detach())[0] for J in Js]
        whole = torch.linalg.multi_dot([J.detach() for J in reversed(Js)])
        assert float(s.k[n]) == pytest.approx(float(max(norms)), rel=1e-10)
        assert float(s.norms[n]) == pytest.approx(float(sum(v.log() for v in norms)), rel=1e-9)
        top = float(torch.linalg.svdvals(whole)[0].log())
        assert float(s.product[n]) == pytest.approx(top, rel=1e-9)
    assert product_bound.violation(s) <= 1e-12
