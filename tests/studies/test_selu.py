"""selu: the activations are conserved, the error signal and the singular values are not."""

from __future__ import annotations

import math

import pytest
import torch

from signalprop.studies import selu
from signalprop.studies.data import breast_cancer, digits

PARTS = ["holds", "holds", "does not hold as printed", "does not hold as printed", "holds in part"]


def test_numbers(quick):
    r = quick("selu")
    assert r.verdict == "holds in part"
    assert [c.verdict for c in r.claims] == PARTS
    # the paper's 0.7877, section 3 of its supplement
    assert r["norm of the map's Jacobian at (0, 1)"] == pytest.approx(0.7877, abs=1e-4)
    assert 0.78 < r["largest norm over Omega"] < 1
    assert r["chi_1 at the fixed point"] == pytest.approx(1.0716, abs=1e-4)
    # |N(0, 1)| < 0.1 alone leaves 8%
    assert 0.02 < r["units that theorem 1 speaks of"] < 0.08
    for way in selu.RIGHT:
        assert r[f"{way.name}: variance"] == pytest.approx(1, abs=0.25), way
    expected = {m.name: m.expected for m in r.measurements}
    for way in selu.WRONG:
        if way.start is selu.HE:
            assert r[f"{way.name}: variance"] > 1e3
            assert math.isinf(expected[f"{way.name}: variance"])
        else:
            settled = expected[f"{way.name}: variance"]
            assert r[f"{way.name}: variance"] == pytest.approx(settled, rel=0.35), way
    # a factor 1.035 a layer, which a net of width 128 scatters around
    assert r["delta, LeCun normal: factor per layer"] == pytest.approx(1.0352, abs=0.015)
    assert 10 < r["delta, LeCun normal: over 100 layers"] < 100
    assert r["delta, PyTorch's default: over 100 layers"] < 1e-8
    deep = "singular values, LeCun normal, 32 layers"
    assert r[f"{deep}: smallest"] < 1e-20
    assert r[f"{deep}: near one"] < 0.2
    assert r["digits, 32 layers, ReLU, He's: behind by"] > 0.1
    assert abs(r["breast cancer, 8 layers, ReLU, He's: behind by"]) < 0.06
    assert "breast cancer (427 training, 142 test" in r.data


@pytest.mark.parametrize(
    ("changed", "at", "verdict"),
    [
        ({"fixed point: variance": 1.1}, 0, "does not hold as printed"),
        ({"largest norm over Omega": 1.2}, 0, "does not hold as printed"),
        ({"Omega is mapped into itself": 0.0}, 0, "does not hold as printed"),
        ({"LeCun normal, AlphaDropout: highest variance": 3.0}, 1, "holds in part"),
        (
            {f"{w.name}: {k} variance": 1.0 for w in selu.WRONG for k in ("lowest", "highest")}
            | {f"{w.name}: rms of the mean": 0.0 for w in selu.WRONG},
            2,
            "holds",
        ),
        ({f"{w.name}: rms of the mean": 0.5 for w in selu.RIGHT}, 1, "does not hold as printed"),
        (
            {
                "singular values, LeCun normal, 32 layers: near one": 1.0,
                "delta, LeCun normal: over 100 layers": 1.1,
            },
            3,
            "holds",
        ),
        (
            {
                f"{task}, {n}: behind by": 0.9
                for task in selu.TASKS
                for n in ("ReLU, He's", "ReLU, default")
            },
            4,
            "holds",
        ),
    ],
)
def test_doctored_numbers_change_the_verdict(changed, at, verdict, quick):
    numbers = {m.name: m.value for m in quick("selu").measurements}
    claims = selu.judge(numbers | changed)
    assert claims[at].verdict == verdict
    assert [bool(c.correct) for c in claims] == [c.verdict != "holds" for c in claims]


def test_where_the_claim_stops_is_said_from_the_numbers(quick):
    numbers = {m.name: m.value for m in quick("selu").measurements}
    said = selu.judge(numbers)[3].correct
    assert "stops at the activations" in said
    assert f"grows by {numbers['delta, LeCun normal: factor per layer'] - 1:.1%}" in said
    deep = "singular values, LeCun normal, 32 layers"
    other = {f"{w.name}: lowest variance": 0.0 for w in selu.RIGHT}
    other |= {"delta, LeCun normal: factor per layer": 0.9, f"{deep}: median": 1.0}
    said = selu.judge(numbers | other)[3].correct
    assert "stops" not in said
    assert "lost" not in said
    assert "delta shrinks by 10.0% per layer." in said


def test_through_follows_the_map():
    """One wide layer does what the map says, from a point that is not the fixed one."""
    from signalprop.theory.selu import selu_map

    x = torch.randn(200, 2000, dtype=torch.float64) * math.sqrt(1.5)
    means, variances = selu.through(selu.Way(selu.LECUN), x, 1, 2000)
    mean, variance = selu_map(0.0, 1.5)
    assert means[0] == pytest.approx(float(mean), abs=0.03)
    assert variances[0] == pytest.approx(float(variance), abs=0.05)


def test_alpha_dropout_keeps_what_plain_dropout_does_not():
    alpha, plain = (selu.Way(selu.LECUN, kind).expected(64) for kind in ("alpha", "plain"))
    assert alpha == pytest.approx(1, abs=1e-9)
    assert plain > 1.4


def test_singular_values_against_a_matrix():
    found = digits(30)
    torch.manual_seed(3)
    log = selu.singular_values(selu.LECUN, 3, found)
    torch.manual_seed(3)
    net = selu.Nets([64, 64, 64, 64, 10], selu.F.selu, selu.LECUN).sequential()
    a = net[:2](found.x_test[0]).detach()
    J = torch.autograd.functional.jacobian(lambda v: net[2:6](v), a)
    torch.testing.assert_close(log[0].exp()[:40], torch.linalg.svdvals(J)[:40], rtol=1e-6, atol=0)


def test_table():
    x, y, x_test, y_test = breast_cancer()
    assert (len(x), len(x_test), x.shape[1]) == (427, 142, 30)
    torch.testing.assert_close(x.mean(0), torch.zeros(30).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(x.std(0), torch.ones(30).double())
    assert set(y.tolist()) == set(y_test.tolist()) == {0, 1}
