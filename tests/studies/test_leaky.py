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
    assert verdicts[:3] == ["holds", "holds", "holds in part"]
    assert verdicts[-1] != "holds"
    for kind in leaky.KINDS:
        found = {m.name: m for m in r.measurements}[f"{kind.name}: factor per layer"]
        assert found.value == pytest.approx(found.expected, rel=0.05), kind
    for kind, slope in zip(leaky.OWN, (0.01, 0.2, 0.25), strict=True):
        assert kind.start.variance * (1 + slope**2) / 2 == pytest.approx(1)
        assert r[f"{kind.name}: factor per layer"] == pytest.approx(1, abs=0.05)
    # the negative side alone is no cure for PyTorch's default: sqrt((1 + a^2) / 6)
    assert r["leaky 0.2, PyTorch's default: factor per layer"] == pytest.approx(0.416, abs=0.02)
    for name, factor in (("ReLU", 0.0), ("leaky 0.01", 0.01), ("leaky 0.2", 0.2), ("PReLU", 0.25)):
        found = r[f"{name}: slope below zero"]
        assert found == pytest.approx(factor, rel=1e-6)
    assert 0 < r["ELU: slope below zero"] < 1
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
        ({"ReLU: slope below zero": 0.1}, 0, "does not hold as printed"),
        ({"ELU: slope below zero": 0.0}, 0, "holds in part"),
        ({f"{k.name}: factor per layer": 0.9 for k in leaky.OWN}, 1, "does not hold as printed"),
        ({f"{leaky.OWN[1].name}: factor per layer": 1.1}, 1, "holds in part"),
        (everywhere(ADAM, silent=0.0) | everywhere(BIAS, silent=0.0)
         | everywhere(leaky.ORDINARY.name, silent=0.0), 2, "holds"),
        (everywhere(BIAS, silent=0.4), 2, "does not hold as printed"),
        (everywhere(ADAM, gain_over_ReLU=0.2) | {f"{ADAM}, {n}: gain, standard error": 0.01
                                                  for n in leaky.CURES}, 3, "holds"),
        (everywhere(ADAM, gain_over_ReLU=-0.2), 3, "does not hold as printed"),
        ({f"{ADAM}, ReLU: off": 0.0}, 3, "does not hold as printed"),
        ({f"{leaky.ORDINARY.name}, ELU: gain over ReLU": 0.2}, -1, "holds in part"),
        (everywhere(leaky.ORDINARY.name, gain_over_ReLU=0.0), -1, "does not hold as printed"),
    ],
)  # fmt: skip
def test_doctored_numbers_change_the_verdict(changed, at, verdict, quick):
    numbers = {m.name: m.value for m in quick("leaky").measurements} | changed
    claims = leaky.judge(numbers)
    assert claims[at].verdict == verdict
    assert [bool(c.correct) for c in claims] == [c.verdict != "holds" for c in claims]


def test_worse_is_said(quick):
    numbers = {m.name: m.value for m in quick("leaky").measurements}
    worse = {f"{ADAM}, ELU: gain over ReLU": -0.3, f"{ADAM}, ELU: gain, standard error": 0.01}
    assert "worse: ELU" in leaky.judge(numbers | worse)[3].correct


def test_only_who_falls_silent_is_blamed(quick):
    numbers = {m.name: m.value for m in quick("leaky").measurements}
    said = leaky.judge(numbers)[2].correct
    assert "ELU's slope e^z dies out" in said
    said = leaky.judge(numbers | {f"{s.name}, ELU: silent": 0.0 for s in leaky.SETTINGS})[2].correct
    assert "ELU's" not in said


def test_a_setting_where_no_unit_dies_shows_nothing(quick):
    numbers = {m.name: m.value for m in quick("leaky").measurements}
    claim = leaky.judge(numbers | {f"{ADAM}, ReLU: off": 0.0})[3]
    assert claim.correct == "ReLU units do not die in this setting, so that it shows nothing."
    ordinary = f"{leaky.ORDINARY.name}, ReLU: off"
    assert "units die in this setting" in leaky.judge(numbers | {ordinary: 0.5})[-1].correct


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
