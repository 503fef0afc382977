"""SP110 and SP111: dead and saturated units, counted per unit over the batch."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name
from tests.diagnosis.support import evidence_of, features, judge, labels, rehearsal
from torch import nn

from signalprop.diagnosis.depth.units import dead_units, saturated_units
from signalprop.diagnosis.engine import diagnose
from signalprop.diagnosis.rule import NotApplicable
from signalprop.diagnosis.samples import SampleFacts

WIDTH, UNITS = 16, 200


def net(activation, units=UNITS):
    return nn.Sequential(nn.Linear(WIDTH, units), activation, nn.Linear(units, 5))


def seen(model, n=32, x=None):
    x = features(n, WIDTH) if x is None else x
    return evidence_of(model, (x, labels(len(x))), F.cross_entropy)


def pushed(share, bias, activation, units=UNITS):
    """A net in which this share of the hidden units has a bias far out."""
    model = net(activation, units)
    nn.init.constant_(model[0].bias[: round(share * units)], bias)
    return model


@pytest.mark.parametrize(
    ("name", "rule", "code"),
    [
        ("mlp-relu-dead", dead_units, "SP110"),
        ("mlp-relu-mostly-dead", dead_units, "SP110"),
        ("mlp-tanh-saturated", saturated_units, "SP111"),
        ("mlp-sigmoid-saturated", saturated_units, "SP111"),
    ],
)
def test_sick(name, rule, code):
    case = by_name(name)
    model, batch, loss = case.build()
    found = diagnose(model, batch, loss, case.optimizer(model))
    (own,) = (f for f in found.findings if f.code == code)
    assert own.severity == "issue"
    assert own.unit == "share of units"
    assert own.value > own.threshold
    assert f"{100 * own.value:.0f}% of the" in own.explanation
    assert own.cures == rule.rule.cures


@pytest.mark.parametrize("name", ["mlp-relu-he-20", "mlp-tanh-xavier-8", "highway-bias-minus-2"])
def test_healthy(name):
    case = by_name(name)
    model, batch, loss = case.build()
    found = diagnose(model, batch, loss, case.optimizer(model))
    assert {r.outcome for r in found.results if r.code in ("SP110", "SP111")} <= {
        "passed",
        "not applicable",
    }


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Threshold(0.0, 0.0)])
@pytest.mark.parametrize(("share", "fires"), [(0.59, False), (0.62, True)])
def test_dead_needs_its_share_of_the_units(activation, share, fires):
    evidence = seen(pushed(share, -50.0, activation))
    found = judge(dead_units, evidence)
    dead = evidence.trace.sites["1"].activation.dead
    assert dead == pytest.approx(share, abs=0.01)
    assert bool(found) == fires
    if fires:
        assert found[0].sites == ("1",)
        assert found[0].value == dead
        told = f"{100 * dead:.0f}% of the 200 units of 1 are zero for all of 32 observations"
        assert told in found[0].explanation


@pytest.mark.parametrize(
    ("units", "dead", "fires"), [(5, 5, True), (5, 4, False), (16, 13, False), (16, 15, True)]
)
def test_few_units_may_be_off_by_chance(units, dead, fires):
    """Three standard deviations of a fair coin: 5 units may all but one be off, 16 up to 14."""
    found = judge(dead_units, seen(pushed(dead / units, -50.0, nn.ReLU(), units)))
    assert bool(found) == fires
    if fires:  # the finding names the limit that it was held against
        assert found[0].threshold == pytest.approx(min(0.5 + 1.5 / math.sqrt(units), 0.999))


def test_dead_names_the_worst_layer_first():
    model = nn.Sequential(*net(nn.ReLU())[:2], nn.Linear(UNITS, 64), nn.ReLU(), nn.Linear(64, 5))
    nn.init.constant_(model[0].bias[:150], -50.0)
    nn.init.constant_(model[2].bias, -500.0)
    (found,) = judge(dead_units, seen(model))
    assert found.sites == ("3", "1")
    assert "most units of 1 more layer" in found.explanation


def test_units_of_a_convolution_are_channels():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    nn.init.constant_(model[0].bias, -50.0)
    evidence = seen(model, x=torch.randn(8, 1, 8, 8))
    assert evidence.trace.sites["1"].activation.units == 8
    (found,) = judge(dead_units, evidence)
    assert "100% of the 8 units of 1 are zero for all of 288 observations" in found.explanation


@pytest.mark.parametrize(("n", "applies"), [(15, False), (16, True)])
def test_dead_needs_observations(n, applies):
    evidence = seen(pushed(0.9, -50.0, nn.ReLU()), n=n)
    if applies:
        assert judge(dead_units, evidence)
        return
    with pytest.raises(NotApplicable, match="fewer than 16 observations"):
        judge(dead_units, evidence)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.LeakyReLU(), nn.Tanh(), nn.SiLU()])
def test_dead_is_for_rectifiers(activation):
    with pytest.raises(NotApplicable, match="no rectifier"):
        judge(dead_units, seen(net(activation)))


@pytest.mark.parametrize(
    "activation", [nn.Tanh(), nn.Sigmoid(), nn.Softsign(), nn.Hardtanh(), nn.Hardsigmoid()]
)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("share", "fires"), [(0.48, False), (0.53, True)])
def test_saturated_needs_its_share_of_the_units(activation, sign, share, fires):
    evidence = seen(pushed(share, sign * 100.0, activation))
    found = judge(saturated_units, evidence)
    assert evidence.trace.sites["1"].activation.saturated == pytest.approx(share, abs=0.011)
    assert bool(found) == fires
    if fires:
        assert found[0].sites == ("1",)
        assert found[0].threshold == 0.5
        assert found[0].value == evidence.trace.sites["1"].activation.saturated
        assert f"{100 * found[0].value:.0f}% of the 200" in found[0].explanation


@pytest.mark.parametrize(("slope", "fires"), [(0.06, False), (0.04, True)])
def test_saturated_is_a_slope_below_a_twentieth(slope, fires):
    """tanh: 1 - y^2 = slope, so the place is atanh(sqrt(1 - slope))."""
    model = net(nn.Tanh())
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[0].bias, math.atanh(math.sqrt(1 - slope)))
    assert bool(judge(saturated_units, seen(model))) == fires


def test_saturated_leaves_out_outputs_and_gates():
    out = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 5), nn.Tanh())
    nn.init.constant_(out[2].bias, 50.0)
    with pytest.raises(NotApplicable, match="no hidden activation"):
        judge(saturated_units, seen(out))

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.g = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
            nn.init.constant_(self.g.bias, -10.0)

        def forward(self, x):
            x = self.first(x)
            gate = torch.sigmoid(self.g(x))
            return self.head(gate * torch.relu(self.a(x)) + (1 - gate) * x)

    with pytest.raises(NotApplicable, match="no hidden activation"):
        judge(saturated_units, seen(Gated()))


@pytest.mark.parametrize(("n", "applies"), [(7, False), (8, True)])
def test_saturated_needs_observations(n, applies):
    evidence = seen(pushed(0.9, 50.0, nn.Tanh()), n=n)
    if applies:
        assert judge(saturated_units, evidence)
        return
    with pytest.raises(NotApplicable, match="fewer than 8 observations"):
        judge(saturated_units, evidence)


def test_rules_survive_activations_that_were_not_counted():
    evidence = seen(net(nn.ReLU()))
    sites = {
        name: replace(site, activation=replace(site.activation, dead=None, units=None))
        for name, site in evidence.trace.sites.items()
    }
    with pytest.raises(NotApplicable):
        judge(dead_units, replace(evidence, trace=replace(evidence.trace, sites=sites)))


# ---- layers that work all the same


def learns(evidence, share, loss=1.0):
    """The same evidence with that share of the learning for the layer, and that much learned."""
    learning = rehearsal(evidence.model, share={"0": share, "2": 1 - share})
    learning = replace(learning, later_share=learning.share)
    samples = SampleFacts(learned=loss, above=0.5, lost=0.0, loss=math.nan)
    return replace(evidence, learning=learning, samples=samples)


@pytest.mark.parametrize(
    ("saturated", "share", "loss", "fires"),
    [
        (0.6, 0.2, 1.0, False),  # half of the layer is enough
        (0.6, 0.04, 1.0, True),
        (0.95, 0.2, 1.0, True),
        (0.95, 0.2, 0.1, False),  # it has learned with it
        (0.95, 0.04, 0.1, True),
    ],
)
def test_saturated_units_of_a_layer_that_learns(saturated, share, loss, fires):
    evidence = learns(seen(pushed(saturated, 100.0, nn.Tanh())), share, loss)
    assert bool(judge(saturated_units, evidence)) == fires


@pytest.mark.parametrize(
    ("share", "loss", "fires"), [(0.4, 1.0, True), (0.4, 0.1, False), (0.01, 0.1, True)]
)
def test_dead_units_of_a_network_that_has_learned(share, loss, fires):
    evidence = learns(seen(pushed(0.75, -100.0, nn.ReLU())), share, loss)
    assert bool(judge(dead_units, evidence)) == fires


def test_a_rectified_output_is_for_another_rule():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1), nn.ReLU())
    nn.init.constant_(model[2].bias, -50.0)
    evidence = evidence_of(model, (features(), torch.zeros(32, 1)), F.mse_loss)
    with pytest.raises(NotApplicable, match="no rectifier"):
        judge(dead_units, evidence)
