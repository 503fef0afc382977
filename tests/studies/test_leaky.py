"""leaky: what passes below zero, who falls silent, and whether it helps."""

from __future__ import annotations

import math

import pytest
import torch

from signalprop.studies import leaky
from signalprop.studies.data import digits
from signalprop.studies.plain import never_on

ADAM, BIAS, SGD = (s.name for s in leaky.DYING)


def test_numbers(quick):
    r = quick("leaky")
    assert r.verdict == "holds in part"
    verdicts = [c.verdict for c in r.claims]
    assert verdicts[0] == "holds"
    assert verdicts[-1] != "holds"
    for name, factor in (("ReLU", 0.0), ("leaky 0.01", 0.01), ("leaky 0.2", 0.2), ("PReLU", 0.25)):
        found = r[f"{name}: factor on delta, all units below zero"]
        assert found == pytest.approx(factor, rel=1e-6)
    assert 0 < r["ELU: factor on delta, all units below zero"] < 1
    for setting in (ADAM, BIAS):
        # with ReLU off and silent are the same thing, with a slope they are not
        assert r[f"{setting}, ReLU: silent"] == r[f"{setting}, ReLU: off"] > 0.5
        for name in ("leaky 0.01", "leaky 0.2"):
            assert r[f"{setting}, {name}: silent"] == 0
        assert r[f"{setting}, leaky 0.01: off"] > 0.2
        assert r[f"{setting}, leaky 0.2: gain over ReLU"] > 0.1
    assert r[f"{ADAM}, ELU: silent"] > 0.1
    assert r[f"{BIAS}, ELU: gain over ReLU"] > 0.3
    for name in leaky.CURES:
        assert abs(r[f"{leaky.ORDINARY.name}, {name}: gain over ReLU"]) < 0.03


def everywhere(setting, **numbers):
    return {f"{setting}, {n}: {k.replace('_', ' ')}": v
            for n in leaky.CURES for k, v in numbers.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "at", "verdict"),
    [
        ({"ReLU: factor on delta, all units below zero": 0.1}, 0, "does not hold as printed"),
        ({"ELU: factor on delta, all units below zero": 0.0}, 0, "does not hold as printed"),
        (everywhere(ADAM, silent=0.0) | everywhere(BIAS, silent=0.0)
         | everywhere(leaky.ORDINARY.name, silent=0.0), 1, "holds"),
        (everywhere(BIAS, silent=0.4), 1, "does not hold as printed"),
        (everywhere(ADAM, gain_over_ReLU=0.2) | {f"{ADAM}, {n}: gain, standard error": 0.01
                                                  for n in leaky.CURES}, 2, "holds"),
        (everywhere(ADAM, gain_over_ReLU=-0.2), 2, "does not hold as printed"),
        ({f"{leaky.ORDINARY.name}, ELU: gain over ReLU": 0.2}, -1, "holds in part"),
    ],
)  # fmt: skip
def test_doctored_numbers_change_the_verdict(changed, at, verdict, quick):
    numbers = {m.name: m.value for m in quick("leaky").measurements} | changed
    assert leaky.judge(numbers)[at].verdict == verdict


def test_worse_is_said(quick):
    numbers = {m.name: m.value for m in quick("leaky").measurements}
    worse = {f"{ADAM}, ELU: gain over ReLU": -0.3, f"{ADAM}, ELU: gain, standard error": 0.01}
    assert "worse: ELU" in leaky.judge(numbers | worse)[2].correct


def test_a_difference_has_to_stand_out_of_its_spread():
    at = "s, ELU"
    numbers = {f"{at}: gain over ReLU": 0.2, f"{at}: gain, standard error": 0.1}
    assert leaky.gained(numbers, at) == 0
    assert leaky.gained(numbers | {f"{at}: gain, standard error": 0.01}, at) == 1
    assert leaky.gained(numbers | {f"{at}: gain over ReLU": -0.4}, at) == -1


def test_the_same_weights_for_every_activation():
    nets = [leaky.build(name, 64, 2, -3.0, seed=4) for name in leaky.PHIS]
    for other in nets[1:]:
        assert all(map(torch.equal, nets[0].W, other.W))
    assert float(nets[0].b[0].detach().max()) == -3.0
    assert float(nets[0].b[-1].detach().abs().max()) == 0.0


def test_slopes_learn():
    found = digits(200)
    nets = leaky.build("PReLU", 64, 2, 0.0, seed=0)
    optimizer = torch.optim.SGD(nets.parameters(), lr=0.1)
    leaky.train(nets, optimizer, found.x, found.y, 5, seed=0)
    slopes = torch.stack([phi.a.detach().flatten() for phi in nets.phi])
    assert slopes.shape == (3, 2)
    assert (slopes != 0.25).all()
    assert not torch.equal(slopes[:, 0], slopes[:, 1])


def test_off_is_not_silent():
    found = digits(100)
    far = {name: leaky.build(name, 64, 1, -30.0, seed=0) for name in ("ReLU", "leaky 0.2", "ELU")}
    for name, nets in far.items():
        assert never_on(nets, found.x)[:, 0].all(), name
    silent = {name: bool(leaky.silent(nets, found.x)[:, 0].all()) for name, nets in far.items()}
    assert silent == {"ReLU": True, "leaky 0.2": False, "ELU": True}


def test_a_net_that_diverged_is_no_net_without_dead_units():
    setting = leaky.Setting("far too large", torch.optim.SGD, 1e6)
    r = leaky.run("leaky 0.2", setting, digits(200), 2, 20, seed=0)
    assert r.diverged.all()
    assert r.off.isnan().all()
    assert r.accuracy.tolist() == [0.1, 0.1]
    assert math.isnan(leaky.mean(r.silent))
