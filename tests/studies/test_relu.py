"""relu: the initialisation decides, and units that die stay dead."""

from __future__ import annotations

import math

import pytest
import torch

from signalprop.studies import relu
from signalprop.studies.data import digits
from signalprop.studies.frame import Setup
from signalprop.studies.plain import (
    DEFAULT,
    GLOROT,
    HE,
    LECUN,
    ORTHOGONAL,
    Kind,
    Nets,
    beside,
    contest,
    deltas,
    judge_contest,
    never_on,
    over_depth,
    train,
)


def test_numbers(quick):
    r = quick("relu")
    assert r.verdict == "holds"
    assert [c.verdict for c in r.claims] == ["holds"] * 4
    assert r["slope: distance from 0 or 1"] == 0
    assert r["slope: share of ones"] == pytest.approx(0.5, abs=0.05)
    for name, square in (("PyTorch's default", 1 / 6), ("Glorot", 1 / 2), ("He", 1)):
        measured = r[f"ReLU, {name}: factor per layer"]
        assert measured == pytest.approx(math.sqrt(square), rel=0.06)
    assert r["ReLU, orthogonal x sqrt 2: factor per layer"] == pytest.approx(1, abs=0.06)
    # sigma_w / 4 where the sums are small
    assert r["sigmoid, PyTorch's default: factor per layer"] == pytest.approx(0.1414, rel=0.03)
    assert r["largest gap to theory"] < 0.06
    # tanh with Glorot's weights is told too: the slope of 1 or 0 is not the only way
    assert f"{r['tanh, Glorot: factor per layer']:.3f}" in r.claims[1].because
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
        ({"slope: distance from 0 or 1": 0.5}, "dhhh"),
        ({HE_FACTOR: 0.9}, "hdhh"),
        ({HE_FACTOR: 1.1}, "hdhh"),
        ({"decay by trace": 3.0}, "hdhh"),
        ({"ReLU, Glorot: factor per layer": 1.0}, "hhph"),
        ({f"ReLU, {n}: factor per layer": 1.0 for n in ("Glorot", "PyTorch's default")}, "hhdh"),
        ({"SGD, lr 1: back": 0.9}, "hhhp"),
        ({f"{rate}: dead after": 0.0 for rate in relu.RATES}, "hhhd"),
    ],
)
def test_doctored_numbers_change_the_verdict(changed, verdicts, quick):
    numbers = {m.name: m.value for m in quick("relu").measurements} | changed
    short = {"holds": "h", "holds in part": "p", "does not hold as printed": "d"}
    claims = relu.judge(numbers)
    assert "".join(short[c.verdict] for c in claims) == verdicts
    assert [bool(c.correct) for c in claims] == [c.verdict != "holds" for c in claims]


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
    sizes = deltas(nets, x, y)
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


def test_over_depth_by_hand():
    torch.manual_seed(5)
    found = digits(60)
    nets = Nets([64, 16, 16, 16, 10], torch.relu, HE, 2)
    d = over_depth(Kind("ReLU", torch.relu, HE), nets, found, 4)
    cosines, ratios = [], []
    for k in range(2):
        alone = nets.sequential(k)
        for i in range(4):
            a = alone[:2](found.x_test[i]).detach().requires_grad_()
            top = alone[2:6](a)
            loss = torch.nn.functional.cross_entropy(alone[6:](top), found.y_test[i])
            first, last = torch.autograd.grad(loss, (a, top))
            ratios.append(float((first.norm() / last.norm()).log()))
            others = [alone[:6](found.x_test[j]).detach() for j in range(4) if j != i]
            cosines += [float(torch.cosine_similarity(top.detach(), b, 0)) for b in others]
    assert d.measured[0] == pytest.approx(sum(ratios) / 8)
    assert d.factor == pytest.approx(math.exp(sum(ratios) / 16))
    assert d.alike == pytest.approx(sum(cosines) / len(cosines))
    assert d.measured[-1] == d.theory[-1] == 0
    assert d.theory == pytest.approx([0, 0, 0], abs=1e-9)


def test_curves_beside_one_another():
    measured, theory = beside("figure", "net", [float(i) for i in range(100)], [0.0] * 100)
    assert measured.name == "net, measured"
    assert measured.x[0] == theory.x[0] == 1
    assert measured.x[-1] == theory.x[-1] == 100
    assert len(theory.x) < len(measured.x) < 60
    assert [x - 1 for x in measured.x] == list(measured.y)


def test_contest_is_of_nets_on_the_same_batches():
    found = digits(120)
    split = found.x, found.y, found.x_test, found.y_test
    kinds = {"first": Kind("ReLU", torch.relu, HE), "other": Kind("tanh", torch.tanh, GLOROT)}
    torch.manual_seed(0)
    numbers, _, table = contest(Setup(seed=3), {"digits": (split, 2)}, kinds, 3, 5)
    v = {m.name: m.value for m in numbers}
    torch.manual_seed(0)
    for kind in kinds.values():
        nets = Nets([64, 64, 64, 10], kind.phi, kind.start, 3, torch.float32)
        train(nets, torch.optim.Adam(nets.parameters(), lr=1e-3), found.x, found.y, 5, seed=3)
    reached = nets.accuracy(found.x_test, found.y_test)
    assert v["digits, other: accuracy"] == pytest.approx(float(reached.mean()))
    assert v["digits, other: spread"] == pytest.approx(float(reached.std()))
    assert v["digits, first: behind by"] == 0
    gain = v["digits, first: accuracy"] - v["digits, other: accuracy"]
    assert v["digits, other: behind by"] == pytest.approx(gain)
    assert len(table.rows) == 2


@pytest.mark.parametrize(
    ("gains", "verdict", "told"),
    [
        ((0.4, 0.4), "holds", ""),
        ((0.4, 0.2), "holds in part", "of: A (t). Behind: none. Not told apart: 1 of 2."),
        ((0.4, -0.4), "holds in part", "of: A (t). Behind: B (t). Not told apart: 0 of 2."),
        ((0.2, -0.2), "does not hold as printed", "of: none. Behind: none. Not told apart: 2 of 2"),
    ],
)
def test_a_contest_is_judged_by_three_standard_errors(gains, verdict, told):
    v = {f"t, {name}: behind by": gain for name, gain in zip("AB", gains, strict=True)}
    v |= {f"t, {name}: standard error": 0.1 for name in "AB"}
    claim = judge_contest(v, "text", ("t",), ("A", "B"))
    assert claim.verdict == verdict
    assert told in claim.correct
    assert "+40.0 ± 10.0 (A)" in claim.because or gains[0] != 0.4
