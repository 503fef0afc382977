"""Mean-field theory of a deep network: variance, correlation and gradient over depth."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor, nn

from signalprop.errors import SignalpropError
from signalprop.theory.activations import Activation
from signalprop.theory.fixed import FixedPoint, VarianceMap, correlation_fixed_point
from signalprop.theory.maps import Moments

Phase = Literal["ordered", "critical", "chaotic", "vanishing", "unbounded", "unsettled"]

#: chi_1 within this of 1 counts as critical
CRITICAL = 1e-6
#: stands for q going to 0 or to infinity where a limit of chi is asked for
_TINY, _HUGE = 1e-24, 1e16


@dataclass(frozen=True)
class Trajectory:
    """What the maps say layer by layer; every array has shape (..., depth + 1).

    Attributes:
        q: variance of a pre-activation.
        distance: 1 - c, c the correlation of the pre-activations of two inputs.
        chi: sigma_w^2 E[phi'(sqrt(q_l) z)^2], what the squared error signal is multiplied with
            between layer l + 1 and layer l.
        log_gradient: ln(|delta| at layer 0 / |delta| at layer l) in nats, from its mean square:
            0.5 (ln chi_0 + ... + ln chi_{l-1}).
    """

    q: np.ndarray
    distance: np.ndarray
    chi: np.ndarray
    log_gradient: np.ndarray

    @property
    def c(self) -> np.ndarray:
        """Correlation of the pre-activations of two inputs."""
        return 1.0 - self.distance


@dataclass(frozen=True)
class MeanField:
    """A deep fully connected network of infinite width at initialisation.

    h_l = W_l phi(h_{l-1}) + b_l with weights of variance sigma_w^2 / n_in and biases of variance
    sigma_b^2. The same rates hold for convolutions, with n_in = kernel size x channels (Xiao et
    al. 2018), and for orthogonal weights.

    - variance: V(q) = sigma_w^2 E[phi(sqrt(q) z)^2] + sigma_b^2
    - correlation at q*: C(c) = (sigma_w^2 E[phi(u1) phi(u2)] + sigma_b^2) / q*
    - gradient: E|delta_{l-1}|^2 = chi_1 E|delta_l|^2, chi_1 = sigma_w^2 E[phi'(sqrt(q*) z)^2]
    - depth scales: 1/xi_q = -ln |V'(q*)|, 1/xi_c = -ln |C'(c*)|

    Sources: Poole et al. 2016 (arXiv 1606.05340, eqs. 3-8), Schoenholz et al. 2017 (arXiv
    1611.01232, eqs. 3-9). The theory is of infinite width: at width n a log gradient norm is off by
    about sqrt(depth / n), and its mean lies below these values by about depth / n.

    Example:
        >>> MeanField("tanh", 1.5, 0.05).phase
        'ordered'

    Attributes:
        activation: a name, a module or a callable; see `Activation.of`.
        weight_variance: sigma_w^2 = n_in Var(W).
        bias_variance: sigma_b^2 = Var(b).
    """

    activation: Activation | str | nn.Module | Callable[[Tensor], Tensor]
    weight_variance: float
    bias_variance: float = 0.0

    def __post_init__(self) -> None:
        """Check the variances."""
        for name in ("weight_variance", "bias_variance"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0) or (name[0] == "w" and value == 0):
                bound = "above zero" if name[0] == "w" else "zero or above"
                raise SignalpropError(f"{name} has to be a finite number {bound}, not {value!r}")
        object.__setattr__(self, "activation", Activation.of(self.activation))

    @functools.cached_property
    def moments(self) -> Moments:
        """Gaussian moments of the activation."""
        return Moments(Activation.of(self.activation))

    @functools.cached_property
    def variance_map(self) -> VarianceMap:
        """V and where it comes to rest."""
        return VarianceMap(self.moments, self.weight_variance, self.bias_variance)

    def variance(self, q: np.ndarray | float) -> np.ndarray:
        """V(q), the variance of the next layer's pre-activation, of q's shape."""
        return self.variance_map(_variances(q))

    def correlation(self, c: float, q: float | None = None) -> float:
        """C(c), the correlation of the next layer's pre-activations of two inputs.

        Args:
            c: their correlation now, between -1 and 1.
            q: variance of both now; q* where it is not given.

        Returns:
            The next correlation.
        """
        return 1.0 - self.next_distance(1.0 - c, q)

    def next_distance(self, distance: float, q: float | None = None) -> float:
        """1 - C(1 - distance): the correlation map with all its digits near c = 1."""
        if not 0.0 <= distance <= 2.0:
            raise SignalpropError(f"a correlation lies between -1 and 1, not at {1 - distance!r}")
        q = self._settled(q)
        after = float(self.variance_map(q))
        return min(self.weight_variance * self.moments.gap(q, distance) / after, 2.0)

    def chi(self, q: np.ndarray | float) -> np.ndarray:
        """sigma_w^2 E[phi'(sqrt(q) z)^2] at any variance, of q's shape."""
        q = _variances(q)
        q = np.where(q == 0.0, _TINY, np.where(np.isinf(q), _HUGE, q))
        return self.weight_variance * self.moments.slope_square(q)

    def chi_at(self, c: float, q: float | None = None) -> float:
        """sigma_w^2 E[phi'(u1) phi'(u2)], the slope of the correlation map at c and fixed q."""
        return self.weight_variance * self.moments.pair_slope(self._settled(q), 1.0 - c)

    @functools.cached_property
    def fixed_points(self) -> tuple[FixedPoint, ...]:
        """Fixed points of the variance map from 0 up, with their stability.

        Empty where q grows without bound from everywhere, and where every q is fixed (see
        `scale_free`).
        """
        return self.variance_map.fixed_points()[0]

    @functools.cached_property
    def scale_free(self) -> bool:
        """Whether every q is a fixed point: a rectifier or the identity at criticality."""
        return self.variance_map.fixed_points()[1]

    @functools.cached_property
    def q_star(self) -> float:
        """The variance that q settles at from q = 1; 0 or inf where it vanishes or grows."""
        return self.variance_map.limit(1.0)

    @functools.cached_property
    def chi_1(self) -> float:
        """The value of chi at q*, its limit where q vanishes or grows; nan where q cycles."""
        return math.nan if math.isnan(self.q_star) else float(self.chi(self.q_star))

    @property
    def gradient_rate(self) -> float:
        """0.5 ln chi_1: nats that ln |delta| gains per layer on its way back."""
        return 0.5 * math.log(self.chi_1) if self.chi_1 > 0 else -math.inf

    @property
    def gradient_factor(self) -> float:
        """sqrt(chi_1): what |delta| is multiplied with per layer on its way back."""
        return math.sqrt(self.chi_1)

    @functools.cached_property
    def c_distance(self) -> float:
        """1 - c* of the stable fixed point of the correlation map; nan where q does not settle."""
        if not self._has_scale:
            return math.nan
        return correlation_fixed_point(self.moments, self.q_star, self.weight_variance)

    @property
    def c_star(self) -> float:
        """Correlation that two inputs go to; nan where q does not settle at a positive value."""
        return 1.0 - self.c_distance

    @functools.cached_property
    def c_slope(self) -> float:
        """C'(c*), below 1 in size where c* is stable; nan where q does not settle."""
        if not self._has_scale:
            return math.nan
        return self.weight_variance * self.moments.pair_slope(self.q_star, self.c_distance)

    @property
    def xi_q(self) -> float:
        """Depth in layers over which q's distance from q* falls to 1/e."""
        if not self._has_scale:
            return math.nan
        return math.inf if self.scale_free else _scale(self.variance_map.slope(self.q_star))

    @property
    def xi_c(self) -> float:
        """Depth in layers over which c's distance from c* falls to 1/e; inf at criticality."""
        if self.phase == "critical":
            return math.inf
        return _scale(self.c_slope) if self._has_scale else math.nan

    @property
    def trainable_depth(self) -> float:
        """6 xi_c: the depth up to which such networks were seen to train (Schoenholz et al. 2017).

        An observation, not a theorem: fully connected tanh networks on MNIST and CIFAR-10.
        """
        return 6.0 * self.xi_c

    @property
    def phase(self) -> Phase:
        """Ordered, critical or chaotic; vanishing or unbounded where q goes to 0 or infinity.

        `unsettled` where q neither settles nor grows (a variance map that falls may cycle).
        """
        if math.isnan(self.q_star):
            return "unsettled"
        if math.isinf(self.q_star):
            return "unbounded"
        if abs(self.chi_1 - 1.0) <= CRITICAL:
            return "critical"
        if self.q_star == 0.0:
            return "vanishing"
        return "ordered" if self.chi_1 < 1.0 else "chaotic"

    def trajectory(
        self, depth: int, q0: np.ndarray | float = 1.0, c0: np.ndarray | float = 0.0
    ) -> Trajectory:
        """Variance, correlation and gradient over the layers, from a given start.

        Args:
            depth: number of layers after the first pre-activation.
            q0: variance of the first pre-activation, the same for both inputs.
            c0: correlation of the first pre-activations of two inputs; broadcast with q0.

        Returns:
            Arrays of shape (..., depth + 1); the costliest part is two-dimensional quadrature,
            1 to 6 ms per layer and start.
        """
        q, c = np.broadcast_arrays(_variances(q0), np.asarray(c0, dtype=np.float64))
        qs, gaps = [q.astype(np.float64)], [1.0 - c]
        for _ in range(depth):
            pairs = zip(qs[-1].ravel().tolist(), gaps[-1].ravel().tolist(), strict=True)
            gap = np.array([self.next_distance(d, q) if q > 0.0 else d for q, d in pairs])
            gaps.append(gap.reshape(q.shape))
            qs.append(self.variance(qs[-1]))
        stacked = np.stack(qs, axis=-1)
        chi = self.chi(stacked)
        with np.errstate(divide="ignore"):
            nats = 0.5 * np.cumsum(np.log(chi[..., :-1]), axis=-1)
        start = np.zeros((*q.shape, 1))
        return Trajectory(stacked, np.stack(gaps, -1), chi, np.concatenate([start, nats], -1))

    @property
    def _has_scale(self) -> bool:
        return 0.0 < self.q_star < math.inf

    def _settled(self, q: float | None) -> float:
        if q is not None:
            value = float(_variances(q))
            if value == 0.0:
                raise SignalpropError("two inputs have no correlation at q = 0; give a q above 0")
            return value
        if self._has_scale:
            return self.q_star
        raise SignalpropError(
            f"q does not settle at a positive value ({self.phase}); give the q to look at"
        )


def _variances(q: np.ndarray | float) -> np.ndarray:
    q = np.asarray(q, dtype=np.float64)
    if not (q >= 0).all():
        raise SignalpropError("a variance q is zero or above, and not nan")
    return q


def _scale(slope: float) -> float:
    """-1 / ln |slope|: a depth in layers; inf for a slope of 1."""
    if slope == 0.0:
        return 0.0
    rate = -math.log(abs(slope)) if math.isfinite(slope) else -math.inf
    return math.inf if abs(rate) <= CRITICAL else 1.0 / rate
