"""first-layer-idle: who learns, by optimizer and depth."""

from __future__ import annotations

import pytest
import torch

from signalprop.studies import first_layer_idle
from signalprop.studies.data import digits

ADAPTIVE = ("Adam", "AdamW", "RMSprop")


def claims(result):
    return {claim.text.rpartition(": ")[2]: claim for claim in result.claims}


def test_numbers(quick):
    r = quick("first-layer-idle")
    assert r.verdict == "holds in part"
    assert r["dL/dW against the outer product"] < 1e-13
    assert r["the same by differences"] < 1e-6
    for name in ("SGD", "SGD, momentum"):
        assert abs(r[f"{name}, 4 layers: share of layer 1"]) < 0.01
        assert r[f"{name}, 16 layers: layer 1 moved"] == 0  # not one bit
        assert claims(r)[name].verdict == "holds"
    for name in ADAPTIVE:
        # the same gradient, and yet it moves
        assert r[f"{name}, 4 layers: layer 1 moved"] > 1
        assert r[f"{name}, 4 layers: least cost of freezing"] > 0.05
        # below epsilon the optimizer cannot help
        assert r[f"{name}, 16 layers: gradient of W^1"] < 1e-8
        assert r[f"{name}, 16 layers: accuracy"] < 0.2
        assert claims(r)[name].verdict == "holds in part"
        assert "epsilon" in claims(r)[name].correct
    assert r["Adam, 16 layers: layer 1 moved"] < 1e-5
    # weight decay moves it without teaching it anything: lr x decay x steps
    assert r["AdamW, 16 layers: layer 1 moved"] == pytest.approx(2e-3 * 0.01 * 100, rel=0.01)


def all_depths(name, **numbers):
    return {f"{name}, {d} layers: {k}": v for d in (4, 16) for k, v in numbers.items()}


@pytest.mark.parametrize(
    ("name", "changed", "verdict"),
    [
        ("SGD", {"SGD, 4 layers: share of layer 1": 0.8}, "holds in part"),
        ("SGD", {"SGD, 4 layers: least cost of freezing": 0.3}, "holds in part"),
        (
            "Adam",
            all_depths("Adam", **{"share of layer 1": 1e-9, "least cost of freezing": 0.0}),
            "holds",
        ),
        ("Adam", all_depths("Adam", **{"least cost of freezing": 0.4}), "does not hold as printed"),
    ],
)
def test_doctored_numbers_change_the_verdict(name, changed, verdict, quick):
    r = quick("first-layer-idle")
    numbers = {m.name: m.value for m in r.measurements} | changed
    assert first_layer_idle.judge_optimizer(numbers, name).verdict == verdict


def test_moving_without_gain_is_not_learning(quick):
    numbers = {m.name: m.value for m in quick("first-layer-idle").measurements}
    at = "Adam, 4 layers"
    numbers |= {f"{at}: share of layer 1": 3.0, f"{at}: least cost of freezing": 0.001}
    assert first_layer_idle.state(numbers, at) == "moves without gain"


def test_training_leaves_the_model_and_keeps_a_frozen_layer():
    found = digits(200)
    model = first_layer_idle.sigmoid_net(64, 2, 8)
    before = [p.detach().clone() for p in model.parameters()]
    still = first_layer_idle.train(first_layer_idle.frozen(model), "Adam", found, 5, seed=0)
    whole = first_layer_idle.train(model, "Adam", found, 5, seed=0)
    assert still.moved == 0
    assert whole.moved > 0
    assert all(map(torch.equal, before, model.parameters()))
