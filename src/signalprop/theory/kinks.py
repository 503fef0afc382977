"""Where an elementwise function is not smooth, and panels on which it is.

The line is bisected until the function and its first two derivatives are resolved by a Legendre
series on every panel (the idea of Chebfun's splitting: Pachon, Platte & Trefethen 2010). A panel
that is not resolved at the width of rounding holds a kink; the line is then cut there and bisected
anew, so that quadrature on the panels converges as it does for a smooth function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: the line is looked at between plus and minus this
REACH = 256.0
#: nodes of the Legendre series of a panel, and how many of its last coefficients have to vanish
NODES = 16
_TAIL = 3
#: they count as zero below this, relative to the size of the function: value, slope, curvature
_TOLERANCE = (1e-12, 1e-11, 1e-9)
#: a jump counts above this, relative to the size of the function: value, slope, curvature
_JUMP = (1e-7, 1e-7, 1e-6)
#: relative width of a panel that is not divided any more
_NARROWEST = 2.0**-46
_MOST_KINKS = 64
_MOST_PANELS = 20_000

Derivatives = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Kink:
    """A point where an elementwise function or one of its first two derivatives jumps.

    Attributes:
        at: where.
        value: jump of the function, right minus left.
        slope: jump of its first derivative.
        curvature: jump of its second derivative.
    """

    at: float
    value: float
    slope: float
    curvature: float


class TooManyKinksError(ValueError):
    """The function jumps at so many places that no quadrature can be split at them."""


def _legendre() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    degree = np.arange(NODES)
    values = np.polynomial.legendre.legvander(nodes, NODES - 1)
    return nodes, (degree[:, None] + 0.5) * values.T * weights


_X, _TO_SERIES = _legendre()


def analyse(derivatives: Derivatives) -> tuple[tuple[float, ...], tuple[Kink, ...]]:
    """Edges of the panels on which a function is smooth, and its kinks.

    Args:
        derivatives: value, slope and curvature at points of any shape.

    Returns:
        The edges between -REACH and REACH, rising; and the kinks, a jump of the value, the slope
        or the curvature, each to about 1e-13 of its place.

    Raises:
        TooManyKinksError: the function jumps or varies too often.
    """
    powers = [4.0**k for k in range(1, 5)]
    edges = np.array(sorted([-p for p in powers] + [0.0] + powers))
    middle = np.linspace(-4.0, 4.0, 257) + 1 / 512
    sizes = [max(float(np.abs(f).max()), 1e-30) for f in derivatives(middle)]
    _, narrow = _bisected(derivatives, edges, sizes)
    suspects = _clusters(narrow)
    edges = np.array(sorted({*edges.tolist(), *suspects}))
    panels, _ = _bisected(derivatives, edges, sizes, narrowest=2.0**-20)
    kinks = _jumps(derivatives, panels, sizes)
    if max(len(suspects), len(kinks)) > _MOST_KINKS:
        raise TooManyKinksError(f"it has more than {_MOST_KINKS} kinks")
    return (*panels[:, 0].tolist(), REACH), kinks


def _bisected(
    derivatives: Derivatives,
    edges: np.ndarray,
    sizes: list[float],
    narrowest: float = _NARROWEST,
) -> tuple[np.ndarray, np.ndarray]:
    """Panels (n, 2) that are resolved, in order, and those that never were."""
    todo = np.stack([edges[:-1], edges[1:]], axis=1)
    done: list[np.ndarray] = []
    stuck: list[np.ndarray] = []
    while len(todo):
        if len(todo) + sum(map(len, done)) > _MOST_PANELS:
            raise TooManyKinksError("it varies too quickly to be resolved")
        good = _resolved(derivatives, todo, sizes)
        done.append(todo[good])
        left = todo[~good]
        small = (left[:, 1] - left[:, 0]) <= narrowest * np.maximum(1.0, np.abs(left).max(1))
        stuck.append(left[small])
        done.append(left[small])
        left = left[~small]
        middle = left.mean(1)
        todo = np.concatenate(
            [np.stack([left[:, 0], middle], 1), np.stack([middle, left[:, 1]], 1)]
        )
    panels = np.concatenate(done)
    return panels[np.argsort(panels[:, 0])], np.concatenate(stuck)


def _series(
    derivatives: Derivatives, panels: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Values (n, NODES) of the three functions on every panel, and their Legendre series."""
    points = panels.mean(1)[:, None] + 0.5 * (panels[:, 1] - panels[:, 0])[:, None] * _X
    values = list(derivatives(points))
    return values, [f @ _TO_SERIES.T for f in values]


def _resolved(derivatives: Derivatives, panels: np.ndarray, sizes: list[float]) -> np.ndarray:
    good = np.ones(len(panels), dtype=bool)
    values, series = _series(derivatives, panels)
    for f, s, size, tolerance in zip(values, series, sizes, _TOLERANCE, strict=True):
        scale = np.maximum(np.abs(f).max(1), size)
        good &= np.abs(s[:, -_TAIL:]).max(1) <= tolerance * scale
    return good


def _clusters(panels: np.ndarray) -> list[float]:
    """Middles of the runs of neighbouring panels."""
    found: list[list[float]] = []
    for a, b in panels[np.argsort(panels[:, 0])].tolist():
        if found and a - found[-1][1] <= 8 * (b - a):
            found[-1][1] = b
        else:
            found.append([a, b])
    return [0.5 * (a + b) for a, b in found]


def _jumps(derivatives: Derivatives, panels: np.ndarray, sizes: list[float]) -> tuple[Kink, ...]:
    """The edges between panels at which the series of the two sides do not meet."""
    values, series = _series(derivatives, panels)
    alternating = (-1.0) ** np.arange(NODES)
    jumps: list[np.ndarray] = []
    counts = np.zeros(len(panels) - 1, dtype=bool)
    for f, s, size, threshold in zip(values, series, sizes, _JUMP, strict=True):
        jump = (s[1:] @ alternating) - s[:-1].sum(1)
        local = np.abs(f).max(1)
        scale = np.maximum(np.maximum(local[1:], local[:-1]), size)
        large = np.abs(jump) > threshold * scale
        jumps.append(np.where(large, jump, 0.0))
        counts |= large
    return tuple(
        Kink(float(panels[i + 1, 0]), *(float(jump[i]) for jump in jumps))
        for i in np.flatnonzero(counts)
    )
