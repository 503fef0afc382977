"""pretraining: what is learnt layer by layer, and the controls that tell it from a good start."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from signalprop import studies
from signalprop.studies import pretraining as p
from signalprop.studies.trained import accuracy, fit, seeded

SMALL = p.Sizes((2, 6), 30, 600, 6, 60, 60, 2, (1e-2,))


@pytest.fixture(scope="module")
def result(bundled):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(p, "QUICK", SMALL)
        yield studies.run("pretraining", quick=True)


@pytest.fixture
def values(result):
    return {m.name: m.value for m in result.measurements}


def test_numbers(result):
    assert len(result.claims) == 5
    # 6 sigmoid layers with Glorot's start hardly pass anything; larger weights do, and so do ReLUs
    assert result["Glorot: decay"] < -6
    assert -4 < result["4 x Glorot: decay"] < -1
    assert abs(result["ReLU, He: decay"]) < 1
    assert result["Glorot, 6 layers: accuracy"] < 0.5 < result["ReLU, He, 6 layers: accuracy"]
    assert result["autoencoder, 6 layers: accuracy"] > result["Glorot, 6 layers: accuracy"] + 0.2
    assert result["few labels"] == 60
    assert {s.figure for s in result.series} == {"Accuracy after training, over depth"}
    assert [row[0] for row in result.tables[0].rows] == list(p.KINDS)


def doctored(values, deep, **accuracies):
    """Accuracies at the deepest nets, without spread."""
    changed = {f"{kind}, {deep}: spread": 0.0 for kind in p.KINDS}
    changed |= {f"{kind}, {deep}: accuracy": 0.1 for kind in p.KINDS}
    changed |= {f"{kind}, {deep}: accuracy": value for kind, value in accuracies.items()}
    return p.judge(values | {"best": 0.9, "chance": 0.1} | changed)


def test_verdicts_follow_the_numbers(values):
    cured = {p.RBM: 0.9, p.CODER: 0.9}
    claims = doctored(values, "6 layers", **cured)
    assert [c.verdict for c in claims[:2]] == ["holds", "holds"]
    # nothing but pre-training does it
    assert claims[3].verdict == "holds"
    claims = doctored(values, "6 layers", **cured, **{p.FOUR: 0.9, p.HE: 0.9})
    assert claims[3].verdict == "holds in part"
    assert "Random weights train as deep a net: 4 x Glorot and ReLU, He." in claims[3].correct
    claims = doctored(values, "6 layers", **dict.fromkeys(p.KINDS, 0.9))
    assert claims[0].verdict == "does not hold as printed"
    assert "nothing to cure" in claims[1].correct
    assert claims[3].verdict == "does not hold as printed"
    claims = doctored(values, "6 layers", **{p.RBM: 0.9})
    assert claims[1].verdict == "holds in part"
    assert claims[1].correct.endswith("autoencoder.")


def test_few_labels_are_judged(values):
    few = "6 layers, few labels"
    assert doctored(values, few, RBM=0.5, autoencoder=0.5)[4].verdict == "holds"
    claim = doctored(values, few, RBM=0.5)[4]
    assert claim.verdict == "holds in part"
    assert "autoencoder of 4 x Glorot" in claim.correct
    # by less than the scatter of seeds
    noise = {f"{kind}, {few}: spread": 0.2 for kind in p.KINDS}
    claims = p.judge(values | noise | {f"RBM, {few}: accuracy": 0.5})
    assert claims[4].verdict == "does not hold as printed"


def test_decay_is_judged(values):
    same = {f"{kind}: decay": -10.0 for kind in (p.RBM, p.CODER, p.FOUR, p.GLOROT)}
    claim = p.judge(values | same)[2]
    assert claim.verdict == "does not hold as printed"
    assert "Larger random weights do not" in claim.because
    assert p.judge(values | same | {"RBM: decay": -2.0})[2].verdict == "holds in part"


def test_claims_say_what_is_correct(result):
    assert [bool(c.correct) for c in result.claims] == [c.verdict != "holds" for c in result.claims]


def test_shallower_is_what_a_shallower_net_learns():
    """Greedy from the input up: the layers of a deeper net, cut off, bit for bit."""
    found = p.pixels(300)
    sizes = p.Sizes((2,), 20, 300, 2, 1, 10, 1, (1e-2,))
    deeper = p.learnt("rbm", found, p.Sizes((4,), 20, 300, 2, 1, 10, 1, (1e-2,)), 3)
    two = p.learnt("rbm", found, sizes, 3)
    cut = p.shallower(deeper, 2)
    assert len(cut) == len(two)
    for a, b in zip(list(cut)[:-1], list(two)[:-1], strict=True):
        for x, y in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(x, y)


def test_shuffled_keeps_the_numbers_and_the_head():
    torch.manual_seed(0)
    net = p.network(64, 3, 20, p.GLOROT)
    before = copy.deepcopy(net)
    p.shuffled(net)
    for a, b in zip(net, before, strict=True):
        if isinstance(a, nn.Linear):
            same = torch.equal(a.weight, b.weight)
            assert same == (a is net[-1])
            assert torch.equal(a.weight.flatten().sort()[0], b.weight.flatten().sort()[0])


def test_pixels_are_probabilities():
    found = p.pixels(300)
    assert float(found.x.min()) == 0
    assert float(found.x.max()) == 1
    assert 0 <= float(found.x_test.min()) <= float(found.x_test.max()) <= 1
    assert len(p.few(found, 40).x) == len(p.few(found, 40).y) == 40


def test_longer_is_longer_by_the_passes_of_pretraining():
    assert p.updates(p.GLOROT, SMALL, 600) == 60
    assert p.updates(p.LONGER, SMALL, 600) == 60 + 6 * 6


def test_fit_stops_where_the_loss_is_no_number_and_learns_where_it_is():
    found = p.pixels(600)
    net = seeded(lambda: p.network(64, 1, 20, p.HE), 0)
    loss = fit(net, found, 1e-2, 60, 0)
    assert loss < 1
    assert accuracy(net, found) > 0.7
    with torch.no_grad():
        net[0].weight.fill_(float("nan"))
    assert fit(net, found, 1e-2, 5, 0) == float("inf")
