"""highway: depth that can be trained, and what gates pass at the start."""

from __future__ import annotations

import math

import pytest
import torch

from signalprop import studies
from signalprop.nets.highway import gate_bias_for
from signalprop.studies import highway as h
from signalprop.studies import trained
from signalprop.studies.data import digits
from signalprop.studies.frame import Setup

SMALL = h.Sizes((4, 16), 600, 40, 2, (5e-3,))
SAID: list[tuple[float, str]] = []


@pytest.fixture(scope="module")
def result(bundled):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(h, "QUICK", SMALL)
        yield studies.run("highway", quick=True, progress=lambda *said: SAID.append(said))


@pytest.fixture
def values(result):
    return {m.name: m.value for m in result.measurements}


def test_numbers(result, values):
    assert result["highway, b = -2, 16 layers: accuracy"] > 0.8
    bare = "tanh, PyTorch's default, 16 layers"
    assert result[f"{bare}: accuracy"] < result["highway, b = -2, 16 layers: accuracy"] - 0.2
    # a tanh layer with PyTorch's start keeps 0.58 of delta: 16 ln 0.58 = -8.8
    assert result[f"{bare}: decay"] == pytest.approx(-8.8, abs=1)
    for told, b in (("-1", -1.0), ("-2", -2.0), ("-4", -4.0)):
        at = f"b = {told}, 16 layers"
        assert values[f"{at}: rule"] == pytest.approx(16 * math.log(1 - 1 / (1 + math.exp(-b))))
        assert values[f"{at}: measured"] == pytest.approx(values[f"{at}: theory"], rel=0.1)
    # transforms add where gates are open, and spread gates take where they are nearly shut
    assert values["b = -1, 16 layers: measured"] > values["b = -1, 16 layers: rule"] + 1
    assert values["b = -4, 16 layers: measured"] < values["b = -4, 16 layers: rule"]
    assert values["b = by depth, 16 layers: rule"] == pytest.approx(math.log(0.5))
    # theirs were measured on MNIST
    assert not any("reproduction" in t.title for t in result.tables)
    assert len(result.tables) == 3


def test_it_says_how_long_it_takes_before_it_starts(result):
    assert "20 nets to train, about" in SAID[0][1]
    shares = [share for share, _ in SAID]
    assert shares == sorted(shares)
    assert SAID[-1] == (1.0, "done")
    assert len(SAID) == 1 + 1 + 20 + 1


@pytest.mark.parametrize(
    ("changed", "at", "verdict"),
    [
        ({f"{k}, 16 layers: accuracy": 0.1 for k in h.GATES}, 0, "does not hold as printed"),
        ({"highway, b = -2, 16 layers: accuracy": 0.1}, 0, "holds in part"),
        ({f"{k}, 16 layers: accuracy": 1.0 for k in h.PLAIN}, 1, "does not hold as printed"),
        ({f"{k}, 16 layers: accuracy": 0.1 for k in h.PLAIN}, 1, "holds"),
        ({f"{k}, {d} layers: accuracy": 0.1 for k in h.PLAIN for d in (4, 16)}, 2, "holds"),
        ({f"{k}, {d} layers: accuracy": 1.0 for k in h.PLAIN for d in (4, 16)}, 2,
         "does not hold as printed"),
    ],
)  # fmt: skip
def test_doctored_numbers_change_the_verdict(changed, at, verdict, values):
    start = {f"{k}, 4 layers: accuracy": 0.9 for k in h.KINDS}
    start |= {f"{k}, 16 layers: accuracy": 0.9 for k in h.GATES}
    start |= {f"{k}, {d} layers: spread": 0.01 for k in h.KINDS for d in (4, 16)}
    claims = h.judge(values | start | changed)
    assert claims[at].verdict == verdict
    assert [bool(c.correct) for c in claims] == [c.verdict != "holds" for c in claims]


def test_the_rule_is_judged(values):
    right = {k.replace("rule", "measured"): v for k, v in values.items() if k.endswith(": rule")}
    assert h.judge(values | right)[3].verdict == "holds"
    assert h.judge(values)[3].verdict != "holds"


def test_as_many_parameters():
    for depth in (10, 50):
        gated, plain = (h.make(kind, 784, depth) for kind in ("highway, b = -2", "ReLU, He"))
        count = [sum(p.numel() for p in net.parameters()) for net in (gated, plain)]
        # 2 (50^2 + 50) = 5,100 a layer against 71^2 + 71 = 5,112; the first layers differ
        first = 785 * (71 - 50) + 10 * (71 - 50)
        assert abs(count[1] - first - count[0]) < 0.01 * count[0]


def test_bias_by_depth():
    assert h.bias_at(None, 100) == gate_bias_for(100)
    assert h.bias_at(None, 2) == -1.0
    assert h.bias_at(-2.0, 100) == -2.0


@pytest.mark.parametrize("kind", h.KINDS)
def test_lost_against_autograd(kind):
    found = digits(60)
    net = trained.seeded(lambda: h.make(kind, 64, 5), 1)
    nats = h.lost(net, found, 5)
    x, y = found.x_test[: trained.SEEN], found.y_test[: trained.SEEN]
    if kind in h.GATES:
        first = net.activation(net.first(x)).detach().requires_grad_()
        last = net.layers(first)
        logits = net.head(last)
    else:
        first = net[:2](x).detach().requires_grad_()
        last = net[2:-1](first)
        logits = net[-1](last)
    loss = torch.nn.functional.cross_entropy(logits, y)
    near, far = torch.autograd.grad(loss, (first, last))
    expected = (near.norm(dim=1) / far.norm(dim=1)).log().mean()
    assert nats == pytest.approx(float(expected), abs=1e-9)


def test_tuned_takes_the_rate_with_the_lowest_training_loss():
    found = digits(400)
    calls: list[int] = []
    t = trained.tuned(
        lambda: h.make("ReLU, He", 64, 2), found, rates=(1e-7, 5e-3), steps=30, seeds=3, seed=5,
        told=lambda: calls.append(1),
    )  # fmt: skip
    assert t.rate == 5e-3
    assert len(t.accuracies) == len(t.losses) == 3
    assert len(calls) == 4
    assert t.accuracy == pytest.approx(sum(t.accuracies) / 3)
    assert t.spread == pytest.approx(float(torch.tensor(t.accuracies, dtype=torch.float64).std()))
    assert t.accuracy > 0.6


def test_forecast_leaves_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert trained.seconds(lambda: h.make("ReLU, He", 64, 2), digits(200)) > 0
    assert torch.equal(before, torch.get_rng_state())
    assert trained.spoken(42.3) == "42 s"
    assert trained.spoken(600) == "10 min"


def test_agenda_says_what_is_left():
    said: list[tuple[float, str]] = []
    agenda = trained.Agenda(Setup(progress=lambda *s: said.append(s)), 200.0)
    agenda.start("two nets")
    agenda.next("one", 150.0)
    agenda.next("two", 50.0)
    assert said == [
        (0.0, "two nets, about 3 min in all"),
        (0.0, "one (about 3 min left)"),
        (0.75, "two (about 50 s left)"),
    ]
