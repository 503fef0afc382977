"""The phase diagram over (sigma_w^2, sigma_b^2), all points at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from signalprop.errors import SignalpropError
from signalprop.theory.activations import Activation
from signalprop.theory.edge import edge_curve
from signalprop.theory.fixed import HIGHEST, LOWEST
from signalprop.theory.maps import Moments
from signalprop.theory.meanfield import CRITICAL

_POINTS = 720
#: nodes of the interpolation in sqrt(1 - c)
_NODES = 11
_HUGE, _TINY = 1e16, 1e-24


@dataclass(frozen=True)
class PhaseDiagram:
    """What the maps say on a grid; every array but the axes and the line has shape (b, w).

    Attributes:
        activation: its name.
        weight_variances: sigma_w^2, shape (w,).
        bias_variances: sigma_b^2, shape (b,).
        q_star: variance that q settles at from q = 1; 0 or inf where it vanishes or grows.
        chi_1: slope of the correlation map at c = 1.
        c_star: correlation that two inputs go to; nan where q does not settle above 0.
        xi_c: depth scale of correlations, in layers; inf on the edge of chaos.
        phase: ordered, critical, chaotic, vanishing or unbounded.
        critical: sigma_w^2 on the edge of chaos for every sigma_b^2, shape (b,); nan where there
            is none.
    """

    activation: str
    weight_variances: np.ndarray
    bias_variances: np.ndarray
    q_star: np.ndarray
    chi_1: np.ndarray
    c_star: np.ndarray
    xi_c: np.ndarray
    phase: np.ndarray
    critical: np.ndarray

    @property
    def trainable_depth(self) -> np.ndarray:
        """6 xi_c, shape (b, w)."""
        return 6.0 * self.xi_c


def phase_diagram(
    activation: Activation | str | nn.Module | Callable[[Tensor], Tensor],
    weight_variances: Sequence[float] | np.ndarray,
    bias_variances: Sequence[float] | np.ndarray,
) -> PhaseDiagram:
    """The phase diagram of an activation (Poole et al. 2016, fig. 2; Schoenholz et al. 2017).

    q* and chi_1 are exact to about 1e-9. c* and xi_c of the chaotic phase are interpolated in q and
    sqrt(1 - c), to about 1e-5; `MeanField` has them to rounding. A 40 x 40 grid takes one to three
    seconds. The variance map is taken to rise with q, as it does for every common activation.

    Args:
        activation: a name, a module or a callable.
        weight_variances: sigma_w^2 of the columns, above zero.
        bias_variances: sigma_b^2 of the rows, zero or above.

    Returns:
        The diagram.

    Raises:
        SignalpropError: a variance is out of range, or the activation is not continuous.
    """
    phi = Activation.of(activation)
    if phi.discontinuous:
        raise SignalpropError(
            f"{phi.name} jumps, so two inputs always part (chi_1 at c = 1 is infinite) and there "
            f"is no edge to draw; give a continuous activation"
        )
    weights = _axis("weight_variances", weight_variances)
    biases = _axis("bias_variances", bias_variances)
    if (weights == 0).any():
        raise SignalpropError("weight_variances have to be above zero")
    moments = Moments(phi)
    w, b = np.broadcast_arrays(weights[None, :], biases[:, None])
    shape = w.shape
    w, b = w.ravel(), b.ravel()
    q = _settled(moments, w, b)
    at = np.where(q == 0.0, _TINY, np.where(np.isinf(q), _HUGE, q))
    chi = w * moments.slope_square(at)
    c, slope = np.ones_like(q), chi.copy()
    scaled = (q > 0) & np.isfinite(q)
    chaotic = scaled & (chi > 1.0 + CRITICAL)
    if chaotic.any():
        distance, inner = _correlations(moments, q[chaotic], w[chaotic])
        c[chaotic], slope[chaotic] = 1.0 - distance, inner
    phase = np.where(chi > 1.0, "chaotic", "ordered").astype("<U9")
    phase[q == 0.0] = "vanishing"
    phase[np.abs(chi - 1.0) <= CRITICAL] = "critical"
    phase[np.isinf(q)] = "unbounded"
    with np.errstate(divide="ignore"):
        rate = -np.log(np.abs(slope))
        xi = np.where(np.abs(rate) <= CRITICAL, np.inf, 1.0 / rate)
    xi[phase == "critical"] = np.inf
    no_scale = ~scaled & (phase != "critical")
    c[~scaled], xi[no_scale] = np.nan, np.nan
    return PhaseDiagram(
        activation=phi.name,
        weight_variances=weights,
        bias_variances=biases,
        q_star=q.reshape(shape),
        chi_1=chi.reshape(shape),
        c_star=c.reshape(shape),
        xi_c=xi.reshape(shape),
        phase=phase.reshape(shape),
        critical=edge_curve(phi, biases),
    )


def _axis(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    axis = np.asarray(values, dtype=np.float64)
    if axis.ndim != 1 or not axis.size or not (np.isfinite(axis) & (axis >= 0)).all():
        raise SignalpropError(f"{name} has to be a list of finite numbers, zero or above")
    return axis


def _settled(moments: Moments, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where q goes from 1, for every point."""
    grid = np.geomspace(LOWEST, HIGHEST, _POINTS)
    square = moments.square(grid) / grid
    excess = w[:, None] * square + b[:, None] / grid - 1.0
    excess[np.abs(excess) < 1e-12] = 0.0
    start = int(np.abs(grid - 1.0).argmin())
    rising = excess[:, start] > 0
    places = np.arange(_POINTS)
    # the first grid point, going the way q goes, at which q would turn back
    over = np.where((excess < 0) & (places > start), places, _POINTS).min(1)
    under = np.where((excess > 0) & (places < start), places, -1).max(1)
    q = np.where(rising, np.inf, 0.0)
    q[excess[:, start] == 0.0] = 1.0
    rows = np.flatnonzero((rising & (over < _POINTS)) | ((excess[:, start] < 0) & (under >= 0)))
    low = np.where(rising, over - 1, under)[rows]
    first, second = np.log(grid[low]), np.log(grid[low + 1])
    before, value = excess[rows, low], excess[rows, low + 1]
    for _ in range(7):  # secant steps in ln q, from a bracket a few per cent wide
        change = value - before
        step = np.where(change == 0.0, 0.0, value * (second - first) / np.where(change, change, 1))
        first, second, before = second, second - step.clip(-0.1, 0.1), value
        at = np.exp(second)
        value = (w[rows] * moments.square(at) + b[rows]) / at - 1.0
    q[rows] = np.exp(second)
    return q


def _correlations(moments: Moments, q: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 - c* and the slope of the correlation map there, where chi_1 > 1."""
    low, high = np.log(q.min()) - 1e-3, np.log(q.max()) + 1e-3
    count = int(np.clip(8 + 1.5 * (high - low), 10, 30))
    x, t = _chebyshev(count), 0.5 * (_chebyshev(_NODES) + 1.0)
    at = np.exp(0.5 * (low + high) + 0.5 * (high - low) * x)
    slopes = np.array(
        [[moments.pair_slope(v, root * root, nodes=6) for root in t.tolist()] for v in at.tolist()]
    )
    slopes = _interpolation(x, (2 * np.log(q) - low - high) / (high - low)) @ slopes
    # E[(phi(u1) - phi(u2))^2] / 2 q d is the mean of the slope between c and 1
    s, weight = np.polynomial.legendre.leggauss(12)
    s, weight = 0.5 * (s + 1.0), 0.5 * weight
    mean = np.stack([(weight * 2 * s) @ _interpolation(t, root * s) for root in t])
    difference = slopes @ mean.T
    below, above = np.zeros_like(q), np.ones_like(q)
    for _ in range(46):
        middle = 0.5 * (below + above)
        value = w * (_interpolation(t, middle) * difference).sum(1) - 1.0
        below, above = np.where(value > 0, middle, below), np.where(value > 0, above, middle)
    root = 0.5 * (below + above)
    return root**2, w * (_interpolation(t, root) * slopes).sum(1)


def _chebyshev(count: int) -> np.ndarray:
    """Chebyshev points of the second kind on [-1, 1], rising."""
    return -np.cos(np.pi * np.arange(count) / (count - 1))


def _interpolation(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Barycentric weights (points, nodes) that interpolate from Chebyshev nodes."""
    signs = (-1.0) ** np.arange(len(nodes))
    signs[[0, -1]] *= 0.5
    apart = x[:, None] - nodes
    hit = np.abs(apart) < 1e-15
    weights = signs / np.where(hit, 1.0, apart)
    weights = np.where(hit.any(1, keepdims=True), hit.astype(float), weights)
    return weights / weights.sum(1, keepdims=True)
