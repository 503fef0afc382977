"""The published figures, the edge of chaos, and what must hold for every activation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from signalprop.errors import SignalpropError
from signalprop.theory import MeanField, critical_points, critical_weight_variance

# activation, sigma_b^2, sigma_w^2, q*, chi_1, xi_c, factor per layer (field/cures.md, 1.4). The two
# SELU depths differ from that table (34.4 and 187), which a one-term check below rules out.
TABLE = [
    ("tanh", 0.05, 0.50, 0.088, 0.432, 1.19, 0.657),
    ("tanh", 0.05, 0.80, 0.138, 0.647, 2.30, 0.804),
    ("tanh", 0.05, 1.00, 0.194, 0.759, 3.63, 0.871),
    ("tanh", 0.05, 1.20, 0.270, 0.845, 5.94, 0.919),
    ("tanh", 0.05, 1.50, 0.418, 0.939, 15.8, 0.969),
    ("tanh", 0.05, 2.00, 0.722, 1.048, 25.2, 1.024),
    ("tanh", 0.05, 2.50, 1.064, 1.134, 11.8, 1.065),
    ("tanh", 0.05, 4.00, 2.196, 1.342, 6.98, 1.159),
    ("tanh", 0.0, 25 / 9, 1.179, 1.210, 12.1, 1.100),
    ("tanh", 1 / 1536, 1 / 3, 0.001, 0.333, 0.909, 0.577),
    ("selu", 0.0, 1.0, 1.000, 1.0716, 33.63, 1.0352),
    ("selu", 0.0, 0.5625, 0.023, 1.0037, 560.0, 1.0018),
    ("relu", 0.0, 1 / 3, 0.0, 0.1667, math.nan, 0.408),
]


@pytest.mark.parametrize("row", TABLE)
def test_table_of_depth_scales(row):
    name, bias, weight, q, chi, xi, factor = row
    theory = MeanField(name, weight, bias)
    assert theory.q_star == pytest.approx(q, abs=6e-4)
    assert theory.chi_1 == pytest.approx(chi, abs=6e-4)
    assert theory.xi_c == pytest.approx(xi, rel=6e-3, nan_ok=True)
    assert theory.trainable_depth == pytest.approx(6 * xi, rel=6e-3, nan_ok=True)
    assert theory.gradient_factor == pytest.approx(factor, abs=6e-4)


def test_selu_depth_by_hand():
    """At gain 1, E[phi] = 0, so c* = 0 and the slope there is (E phi')^2 exactly."""
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    mean = scale * (0.5 + alpha * math.exp(0.5) * 0.5 * math.erfc(1 / math.sqrt(2)))
    theory = MeanField("selu", 1.0)
    assert theory.c_star == pytest.approx(0.0, abs=1e-9)
    assert theory.xi_c == pytest.approx(-1 / math.log(mean**2), rel=1e-8)
    # at gain 3/4 the kink rules near c = 1: the slope is chi_1 - 1.5 (chi_1 - 1) to first order
    small = MeanField("selu", 0.5625)
    assert 1 - small.c_slope == pytest.approx(0.5 * (small.chi_1 - 1), rel=0.05)


@pytest.mark.parametrize(
    ("bias", "weight"),
    [(0.0, 1.0), (2e-5, 1.0499), (1e-4, 1.0860), (1e-3, 1.1892), (1e-2, 1.4242), (0.05, 1.7610)],
)
def test_edge_of_chaos_of_tanh(bias, weight):
    found = critical_weight_variance("tanh", bias)
    assert found == pytest.approx(weight, abs=6e-5)
    assert MeanField("tanh", found, bias).phase == "critical"
    assert MeanField("tanh", found, bias).xi_c == math.inf


def test_edges_of_other_activations():
    assert critical_weight_variance("relu", 0.0) == pytest.approx(2.0, rel=1e-12)
    assert critical_weight_variance("erf", 0.0) == pytest.approx(math.pi / 4, rel=1e-9)
    with pytest.raises(SignalpropError, match="no edge of chaos"):
        critical_weight_variance("relu", 0.1)
    # GELU's half-stable point: K = (3 + sqrt 17) / 2, C_W = 1.98305 (Roberts & Yaida 2021, 5.3.4)
    (point,) = critical_points("gelu", 0.17292)
    assert point.weight_variance == pytest.approx(1.98305, abs=2e-4)
    assert point.q_star == pytest.approx((3 + math.sqrt(17)) / 2, abs=5e-3)


def test_rectifiers_have_no_scale():
    he = MeanField("relu", 2.0)
    assert he.scale_free
    assert (he.phase, he.q_star, he.c_star) == ("critical", 1.0, 1.0)
    assert MeanField("relu", 1.9).phase == "vanishing"
    assert MeanField("relu", 2.1).phase == "unbounded"
    assert MeanField("relu", 2.0, 0.1).phase == "unbounded"
    lossy = MeanField("relu", 1.0, 0.1)
    assert lossy.q_star == pytest.approx(0.2, rel=1e-10)
    assert lossy.xi_q == pytest.approx(lossy.xi_c, rel=1e-9)


def test_several_fixed_points():
    """GELU above its edge: 0 holds below a threshold, beyond it q grows without bound."""
    gelu = MeanField("gelu", 2.3)
    low, high = gelu.fixed_points
    assert (low.at, low.stable, high.stable) == (0.0, True, False)
    assert gelu.variance_map.limit(0.9 * high.at) == 0.0
    assert gelu.variance_map.limit(1.1 * high.at) == math.inf


def test_clear_errors():
    with pytest.raises(SignalpropError, match="weight_variance"):
        MeanField("tanh", 0.0)
    with pytest.raises(SignalpropError, match="bias_variance"):
        MeanField("tanh", 1.0, -0.1)
    with pytest.raises(SignalpropError, match="correlation"):
        MeanField("tanh", 1.0).correlation(1.1, 1.0)
    with pytest.raises(SignalpropError, match="does not settle"):
        MeanField("relu", 1.0).correlation(0.5)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["tanh", "relu", "erf", "gelu", "selu", "hardtanh"]),
    st.floats(0.2, 3.0),
    st.floats(0.0, 0.3),
    st.floats(0.05, 4.0),
    st.floats(-0.95, 0.999),
)
def test_what_holds_for_every_activation(name, weight, bias, q, c):
    theory = MeanField(name, weight, bias)
    after = theory.correlation(c, q)
    assert -1.0 <= after <= 1.0
    assert theory.correlation(1.0, q) == 1.0
    # the slope of the map is the correlation of slopes (Price's theorem), at most chi (c = 1)
    h = 1e-4 * min(1 - c, 1.0)
    ratio = q / float(theory.variance(q))
    numeric = (theory.correlation(c + h, q) - theory.correlation(c - h, q)) / 2 / h
    assert numeric == pytest.approx(ratio * theory.chi_at(c, q), abs=2e-5)
    assert abs(theory.chi_at(c, q)) <= float(theory.chi(q)) * (1 + 1e-9)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.3, 4.0), st.floats(0.01, 0.3), st.floats(0.3, 3.0))
def test_a_scale_of_the_activation_is_a_scale_of_the_weights(weight, bias, scale):
    one = MeanField(lambda x: scale * torch.tanh(x), weight, bias)
    other = MeanField("tanh", weight * scale**2, bias)
    assert one.q_star == pytest.approx(other.q_star, rel=1e-9)
    assert one.chi_1 == pytest.approx(other.chi_1, rel=1e-9)


@pytest.mark.parametrize(("weight", "bias"), [(1.0, 0.05), (2.5, 0.05), (1 / 3, 1 / 1536)])
def test_iterates_decay_with_the_predicted_depth(weight, bias):
    theory = MeanField("tanh", weight, bias)
    depth = max(12, int(6 * theory.xi_c))
    path = theory.trajectory(depth, theory.q_star, 0.5 if theory.phase == "ordered" else 0.8)
    gap = np.abs(path.distance - theory.c_distance)
    l = np.arange(depth + 1)[depth // 2 :]
    slope = np.polyfit(l, np.log(gap[depth // 2 :]), 1)[0]
    assert -1 / slope == pytest.approx(theory.xi_c, rel=0.05)


def test_trajectory_goes_to_the_fixed_points():
    theory = MeanField("tanh", 2.5, 0.05)
    path = theory.trajectory(70, np.array([0.1, 4.0]), np.array([0.1, 0.95]))
    assert path.q.shape == (2, 71)
    assert path.q[:, -1] == pytest.approx(theory.q_star, rel=1e-6)
    assert path.c[:, -1] == pytest.approx(theory.c_star, abs=5e-3)
    assert path.log_gradient[:, -1] - path.log_gradient[:, -2] == pytest.approx(
        theory.gradient_rate, rel=1e-5
    )
    assert (path.log_gradient[:, 0] == 0).all()
