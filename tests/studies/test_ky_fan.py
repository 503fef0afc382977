"""ky-fan: bounds on the singular values of I + X, as printed and as they hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from signalprop.studies import cured, ky_fan
from signalprop.studies.data import digits

RANDOM = tuple(ky_fan.random_matrices(2, 1))


def test_numbers(quick):
    r = quick("ky-fan")
    assert r.verdict == "holds in part"
    assert [c.verdict for c in r.claims] == ["holds", "does not hold as printed", "holds"]
    assert "1 - s_{n-i+1}(X) <= s_i(I + X)" in r.correct_form
    assert r["example: s_2(I + X)"] == 0 == r["example: 1 - s_1(X)"]
    assert r["example: 1 - s_2(X)"] == 1
    for kind in ("random matrices", "real blocks"):
        assert r[f"{kind}: tested"] > 10_000
        assert r[f"{kind}: printed lower violated"] > 0.1 * r[f"{kind}: tested"]
        for kept in ("upper violated", "correct lower violated", "the same, i <= (n + 1) / 2"):
            assert r[f"{kind}: {kept}"] == 0
        assert r[f"{kind}: closest to a violation"] < 1e-14
    # where X takes nothing away the printed form is true
    assert r["positive semidefinite: printed"] == 0
    assert r["negative semidefinite: printed"] > 0
    for name in cured.STACKS:
        for state in ky_fan.STATES:
            assert r[f"{name}, {state}: printed"] > 0.1 * r[f"{name}, {state}: tested"]
            assert r[f"{name}, {state}: worst_printed"] > 0.5


def test_certificate(quick):
    r = quick("ky-fan")
    for name in ("1/L", "1/sqrt(L)"):
        low, inner, least, most, outer, high = (
            r[f"certificate, {name}: {k}"]
            for k in ("low", "blocks low", "least", "most", "blocks high", "high")
        )
        assert low <= inner <= least < most <= outer <= high
    assert r["certificate: worst violation"] < 0
    assert r["certificate, 1/L: least"] - r["certificate, 1/L: low"] > 1
    assert r["certificate, 1/sqrt(L): high"] > 3 * r["certificate, 1/sqrt(L): most"]
    assert 0 < r["certificate, 1/sqrt(L): without a lower bound"] < 1


FIXED = {
    "example: s_2(I + X)": 1.0,
    "example: 1 - s_1(X)": 0.0,
    "random matrices: printed lower violated": 0.0,
    "real blocks: printed lower violated": 0.0,
}


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"real blocks: upper violated": 1.0, "certificate: worst violation": 1.0},
         "does not hold as printed"),
        (FIXED, "holds"),
        (FIXED | {"real blocks: printed lower violated": 1.0}, "holds in part"),
        (FIXED | {"certificate: worst violation": 1e-3}, "holds in part"),
    ],
)  # fmt: skip
def test_doctored_numbers_change_the_verdict(changed, verdict, quick, doctored):
    assert doctored(quick("ky-fan"), changed) == verdict


def test_a_violation_of_the_correct_form_would_be_said(quick):
    numbers = {m.name: m.value for m in quick("ky-fan").measurements}
    claims = ky_fan.judge(numbers | {"real blocks: correct lower violated": 3.0})
    assert "is violated 3 times" in claims[1].correct


def test_count_on_the_example():
    count = ky_fan.Count()
    X = torch.diag(torch.tensor([-1.0, 0.0], dtype=torch.float64))[None]
    broken = count.add(*ky_fan.of_matrices(X))
    assert broken.tolist() == [[False, True]]
    assert (count.tested, count.upper, count.printed, count.first_half) == (2, 0, 1, 0)
    assert (count.correct, count.worst_printed) == (0, 1.0)


def test_count_sees_what_breaks_a_theorem():
    # no matrices have these: s(I + X) = (3, 0) with s(X) = (0.5, 0.25)
    count = ky_fan.Count()
    count.add(np.array([[3.0, 0.0]]), np.array([[0.5, 0.25]]))
    assert (count.upper, count.correct, count.printed) == (1, 1, 1)
    assert count.worst_upper == pytest.approx(1.5 / 1.5)
    assert count.worst_correct == pytest.approx(0.5 / 1.5)
    count.add(np.array([[0.1, 0.1]]), np.array([[0.5, 0.25]]))
    assert count.first_half == 1


@pytest.mark.parametrize("name", RANDOM)
def test_random_matrices(name):
    torch.manual_seed(0)
    X = ky_fan.random_matrices(40, 20)[name]
    assert X.shape == (20, 40, 40)
    s = torch.linalg.svdvals(X)
    if "about" in name:
        assert float(s[:, 0].mean()) == pytest.approx(float(name.split()[-1]), rel=0.15)
    if "semidefinite" in name:
        sign = -1 if name.startswith("negative") else 1
        assert float((sign * torch.linalg.eigvalsh(X)).min()) > -1e-12
    if name == "rank one":
        assert float(s[:, 1].max()) < 1e-12


@pytest.mark.parametrize("name", cured.STACKS)
def test_blocks_against_one_jacobian_at_a_time(name):
    torch.manual_seed(0)
    found = digits(60)
    net = cured.STACKS[name](64, 2, 64)
    blocks = ky_fan.residual_blocks(ky_fan.look(net, found, 3))
    assert len(blocks) == 2
    if "BatchNorm" in name:
        # held at the statistics of the batch of three
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            net(found.x_test[:3])
        net.eval()
    inputs = []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    net(found.x_test[:3])
    for (of_J, of_X), block, value in zip(blocks, net.blocks, list(inputs), strict=True):
        for i in range(3):
            X = torch.autograd.functional.jacobian(
                lambda v, b=block: b.scale * b.branch(v[None])[0], value[i]
            ).reshape(64, 64)
            of_sum, of_branch = ky_fan.of_matrices(X)
            np.testing.assert_allclose(of_X[i], of_branch, rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(of_J[i], of_sum, rtol=1e-9, atol=1e-11)


def test_certified_against_the_product():
    torch.manual_seed(0)
    found, L = digits(60), 5
    net = cured.scaled(64, L, 8, 1 / 20)
    c = ky_fan.certified(ky_fan.look(net, found, 1))
    value, product, X = net.first(found.x_test[:1])[0].detach(), torch.eye(8).double(), []
    for block in net.blocks:
        J = torch.autograd.functional.jacobian(block, value)
        product, value = J @ product, block(value).detach()
        X.append(float(torch.linalg.matrix_norm(J - torch.eye(8), 2)))
    s = torch.linalg.svdvals(product).log()
    assert c["most"] == pytest.approx(float(s[0]), abs=1e-9)
    assert c["least"] == pytest.approx(float(s[-1]), abs=1e-9)
    assert c["low"] == pytest.approx(sum(math.log1p(-x) for x in X), abs=1e-9)
    assert c["high"] == pytest.approx(sum(math.log1p(x) for x in X), abs=1e-9)
    assert c["off"] < 0
    assert c["silent"] == 0
