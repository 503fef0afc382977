"""relu: the initialisation decides, and units that die stay dead."""

from __future__ import annotations

import math

import pytest
import torch

from signalprop.studies import relu
from signalprop.studies.data import digits
from signalprop.studies.plain import DEFAULT, GLOROT, HE, LECUN, ORTHOGONAL, Nets, never_on, train


def test_numbers(quick):
    r = quick("relu")
    assert r.verdict == "holds in part"
    assert [c.verdict for c in r.claims] == [
        "holds", "holds", "does not hold as printed", "holds",
    ]  # fmt: skip
    assert r["slope: distance from 0 or 1"] == 0
    assert r["slope: share of ones"] == pytest.approx(0.5, abs=0.05)
    for name, square in (("PyTorch's default", 1 / 6), ("Glorot", 1 / 2), ("He", 1)):
        measured = r[f"ReLU, {name}: factor per layer"]
        assert measured == pytest.approx(math.sqrt(square), rel=0.06)
    assert r["ReLU, orthogonal x sqrt 2: factor per layer"] == pytest.approx(1, abs=0.06)
    # sigma_w / 4 where the sums are small
    assert r["sigmoid, PyTorch's default: factor per layer"] == pytest.approx(0.1414, rel=0.03)
    assert r["largest gap between measured and theory"] < 0.06
    assert r["decay by trace"] == pytest.approx(r["decay by hand"], abs=1e-12)
    assert r["ReLU, He: accuracy"] > 0.5 > r["ReLU, PyTorch's default: accuracy"]
    for rate in relu.RATES:
        assert r[f"{rate}: dead before"] < 0.05
        assert r[f"{rate}: dead after"] > 0.3
        assert r[f"{rate}: back"] < 0.1
        assert r[f"{rate}: back, layer 1"] == 0  # no gradient at all, and inputs that do not change


HE_FACTOR = "ReLU, He: factor per layer"


@pytest.mark.parametrize(
    ("changed", "verdicts"),
    [
        ({"slope: distance from 0 or 1": 0.5}, "dhdh"),
        ({HE_FACTOR: 0.7}, "hddh"),
        ({"decay by trace": 3.0}, "hddh"),
        (
            {f"ReLU, {n}: factor per layer": 1.0 for n in ("Glorot", "PyTorch's default")},
            "hhhh",
        ),
        ({"SGD, lr 1: back": 0.9}, "hhdp"),
        ({f"{rate}: dead after": 0.0 for rate in relu.RATES}, "hhdd"),
    ],
)
def test_doctored_numbers_change_the_verdict(changed, verdicts, quick):
    numbers = {m.name: m.value for m in quick("relu").measurements} | changed
    short = {"holds": "h", "holds in part": "p", "does not hold as printed": "d"}
    assert "".join(short[c.verdict] for c in relu.judge(numbers)) == verdicts


@pytest.mark.parametrize("start", [DEFAULT, GLOROT, LECUN, HE, ORTHOGONAL], ids=lambda s: s.name)
def test_starts_draw_what_they_say(start):
    W, b = start.draw(2, 256, 256)
    assert W.shape == (2, 256, 256)
    assert not torch.equal(W[0], W[1])
    assert float(256 * W.square().mean()) == pytest.approx(start.variance, rel=0.02)
    assert float(b.square().mean()) == pytest.approx(start.bias_variance(256), rel=0.2)
    if start is DEFAULT:  # the same as torch's own
        layer = torch.nn.Linear(256, 256)
        for drawn, own in ((W, layer.weight), (b, layer.bias)):
            largest = float(own.detach().abs().max())
            assert float(drawn.abs().max()) == pytest.approx(largest, rel=0.05)


def test_glorot_takes_both_sides():
    W, _ = GLOROT.draw(1, 300, 100)
    assert float(W.square().mean()) == pytest.approx(2 / 400, rel=0.03)


def test_copies_are_the_nets_they_would_be_alone():
    found = digits(200)
    nets = Nets([64, 8, 8, 10], torch.relu, HE, 3)
    x, y = found.x[:5], found.y[:5]
    sizes = relu.deltas(nets, x, y)
    assert sizes.shape == (2, 3, 5)
    for k in range(3):
        alone = nets.sequential(k)
        torch.testing.assert_close(alone(x), nets(x)[k])
        a = alone[:2](x).detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(alone[2:](a), y, reduction="sum")
        (delta,) = torch.autograd.grad(loss, a)
        torch.testing.assert_close(sizes[0, k], delta.norm(dim=1))


def test_training_a_stack_is_training_each():
    found = digits(200)
    nets = Nets([64, 8, 10], torch.relu, HE, 3)
    alone = nets.sequential(1)
    train(nets, torch.optim.SGD(nets.parameters(), lr=0.1), found.x, found.y, 4, seed=7)
    order = torch.Generator().manual_seed(7)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    for _ in range(4):
        pick = torch.randint(200, (3, 64), generator=order)[1]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(alone(found.x[pick]), found.y[pick]).backward()
        optimizer.step()
    torch.testing.assert_close(nets(found.x_test)[1], alone(found.x_test))


def test_never_on_by_hand():
    nets = Nets([2, 3, 1], torch.relu, HE)
    with torch.no_grad():
        nets.W[0].copy_(torch.tensor([[[1.0, -1.0, 1.0], [0.0, 0.0, 0.0]]]))
        nets.b[0].copy_(torch.tensor([[[0.0, 0.0, -5.0]]]))
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    assert never_on(nets, x).tolist() == [[[False, True, True]]]


def test_a_dead_unit_has_no_gradient():
    nets = Nets([64, 16, 10], torch.relu, HE)
    with torch.no_grad():
        nets.b[0][0, 0, 3] = -100.0
    found = digits(100)
    dead = never_on(nets, found.x)[0, 0]
    assert dead[3]
    assert not dead.all()
    torch.nn.functional.cross_entropy(nets(found.x)[0], found.y).backward()
    assert torch.equal(nets.W[0].grad[0].abs().amax(0) == 0, dead)
