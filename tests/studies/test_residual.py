"""residual: A and B, and the size of the branches."""

from __future__ import annotations

import math

import pytest
import torch

from signalprop import studies
from signalprop.nets.residual import ResidualNet
from signalprop.studies import residual as r
from signalprop.studies import trained
from signalprop.studies.data import digits

SMALL = r.Sizes((2, 12), (2, 10), 600, 25, 2, (3e-3,))


@pytest.fixture(scope="module")
def result(bundled):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r, "QUICK", SMALL)
        yield studies.run("residual", quick=True)


@pytest.fixture
def values(result):
    return {m.name: m.value for m in result.measurements}


def test_numbers(values):
    assert values["B, ReZero = SkipInit, 12 blocks: decay"] == 0
    assert values["B, Fixup, 12 blocks: decay"] == 0
    # the mean square doubles at every block, or is multiplied by 1 + 1/L
    assert values["B, 12 blocks: decay"] == pytest.approx(6 * math.log(2), abs=1)
    assert values["B, 1/sqrt(L), 12 blocks: decay"] == pytest.approx(0.48, abs=0.15)
    # sqrt(L + 1) or so with normalisation
    assert 0.8 < values["B, BatchNorm, 12 blocks: decay"] < 3
    assert values["A, 12 blocks: decay"] > 2
    # BatchNorm without a skip path: more than 1.21 a layer
    assert values["plain, BatchNorm, 12 blocks: decay"] > 24 * 0.15
    for option in r.OPTIONS[1:]:
        assert values[f"B, {option}, 10 blocks: accuracy"] > 0.6


def test_verdicts(result):
    assert [c.verdict for c in result.claims[:3]] == ["holds", "holds", "holds in part"]
    assert [bool(c.correct) for c in result.claims] == [c.verdict != "holds" for c in result.claims]
    assert "Theory for B is 4.2" in result.claims[2].because


@pytest.mark.parametrize(
    ("changed", "at", "verdict"),
    [
        ({"A, 12 blocks: decay": -9.0}, 0, "holds in part"),
        ({f"{k}, 2 blocks: decay": -9.0 for k in r.RESIDUAL}, 0, "does not hold as printed"),
        ({f"{k}, 2 blocks: decay": -9.0 for k in r.RESIDUAL}, 1, "does not hold as printed"),
        ({f"{k}, 12 blocks: decay": 0.0 for k in ("A", "B")}, 2, "holds"),
        ({f"{k}, 12 blocks: decay": 5.0 for k in r.RESIDUAL}, 2, "does not hold as printed"),
        ({f"{k}, 10 blocks: accuracy": 0.9 for k in r.RESIDUAL}, 3, "holds"),
        ({f"{k}, 10 blocks: accuracy": 0.9 for k in r.TRAINED}, 3, "does not hold as printed"),
        ({"B, 10 blocks: accuracy": 0.9}, 3, "holds in part"),
        ({f"{k}, 10 blocks: accuracy": 0.9 for k, (f, _) in r.RESIDUAL.items() if f == "B"}, 4,
         "holds"),
        ({"B, 10 blocks: accuracy": 0.9}, 4, "holds in part"),
        ({"A, 10 blocks: accuracy": 0.9}, 4, "does not hold as printed"),
    ],
)  # fmt: skip
def test_doctored_numbers_change_the_verdict(changed, at, verdict, values):
    start = {f"{k}, 10 blocks: accuracy": 0.2 for k in r.TRAINED}
    start |= {f"{k}, 2 blocks: accuracy": 0.9 for k in r.TRAINED}
    start |= {f"{k}, 10 blocks: spread": 0.01 for k in r.TRAINED}
    claims = r.judge(values | start | changed)
    assert claims[at].verdict == verdict
    assert [bool(c.correct) for c in claims] == [c.verdict != "holds" for c in claims]


def test_rezero_and_skipinit_are_one_net_without_normalisation():
    nets = []
    for branch in ("rezero", "skipinit"):
        torch.manual_seed(0)
        nets.append(ResidualNet(64, 20, 3, 10, branch=branch).state_dict())
    assert nets[0].keys() == nets[1].keys()
    assert all(torch.equal(nets[0][k], nets[1][k]) for k in nets[0])


@pytest.mark.parametrize("kind", ["plain", "A, Fixup", "B, 1/sqrt(L)", "A"])
def test_lost_against_autograd(kind):
    found = digits(60)
    net = trained.seeded(lambda: r.make(kind, 64, 3), 1)
    nats = r.lost(net, found, 3)
    x, y = found.x_test[: trained.SEEN], found.y_test[: trained.SEEN]
    if kind == "plain":
        first = net[:2](x).detach().requires_grad_()
        last = net[2:-1](first)
        logits = net[-1](last)
    else:
        first = net.enter(net.first(x)).detach().requires_grad_()
        last = net.blocks(first)
        logits = net.head(net.leave(last))
    loss = torch.nn.functional.cross_entropy(logits, y)
    near, far = torch.autograd.grad(loss, (first, last))
    seen = far.norm(dim=1) > 0
    expected = (near.norm(dim=1) / far.norm(dim=1))[seen].log().mean()
    assert nats == pytest.approx(float(expected), abs=1e-9)


def test_plain_has_as_many_weight_layers():
    def layers(kind):
        return sum(isinstance(m, torch.nn.Linear) for m in r.make(kind, 64, 7).modules())

    assert layers("plain") == layers("plain, BatchNorm") == layers("A") == layers("B") == 16


def test_no_figure_has_more_curves_than_colours(result):
    figures = [s.figure for s in result.series]
    assert len(set(figures)) == 4
    assert all(figures.count(figure) == 6 for figure in figures)
