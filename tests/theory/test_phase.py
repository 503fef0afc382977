"""The diagram against the maps, point by point."""

import math

import numpy as np
import pytest

from signalprop.errors import SignalpropError
from signalprop.theory import MeanField, critical_weight_variance, phase_diagram


@pytest.mark.parametrize("phi", ["tanh", "selu", "relu", "gelu"])
def test_every_point_is_that_of_the_maps(phi):
    weights, biases = np.array([0.3, 1.0, 1.7, 2.0, 2.6, 3.8]), np.array([0.0, 0.01, 0.05, 0.3])
    found = phase_diagram(phi, weights, biases)
    assert found.q_star.shape == found.phase.shape == (4, 6)
    for i, j in np.ndindex(4, 6):
        theory = MeanField(phi, weights[j], biases[i])
        assert found.phase[i, j] == theory.phase
        assert found.q_star[i, j] == pytest.approx(theory.q_star, rel=1e-8)
        assert found.chi_1[i, j] == pytest.approx(theory.chi_1, rel=1e-8)
        assert found.c_star[i, j] == pytest.approx(theory.c_star, abs=2e-5, nan_ok=True)
        assert found.xi_c[i, j] == pytest.approx(theory.xi_c, rel=5e-4, nan_ok=True)


def test_the_line_parts_the_phases():
    weights, biases = np.linspace(0.5, 3.0, 12), np.linspace(0.0, 0.2, 6)
    found = phase_diagram("tanh", weights, biases)
    for i, bias in enumerate(biases):
        assert found.critical[i] == pytest.approx(critical_weight_variance("tanh", bias), rel=1e-7)
        chaotic = found.phase[i] == "chaotic"
        assert (chaotic == (weights > found.critical[i])).all()
    assert (found.trainable_depth[found.phase == "ordered"] > 0).all()
    assert np.isnan(phase_diagram("relu", [1.0], [0.0, 0.1]).critical).tolist() == [False, True]


def test_clear_errors():
    with pytest.raises(SignalpropError, match="above zero"):
        phase_diagram("tanh", [0.0, 1.0], [0.0])
    with pytest.raises(SignalpropError, match="bias_variances"):
        phase_diagram("tanh", [1.0], [math.nan])
    with pytest.raises(SignalpropError, match="jumps"):
        phase_diagram("hardshrink", [1.0], [0.1])
