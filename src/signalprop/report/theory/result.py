"""A phase diagram with what is marked in it, ready to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from signalprop._views import Viewable
from signalprop.capture.trace import plain
from signalprop.theory.activations import Activation
from signalprop.theory.edge import edge_curve
from signalprop.theory.meanfield import MeanField
from signalprop.theory.phase import PhaseDiagram, phase_diagram

#: points of the diagram along sigma_w^2 and sigma_b^2
GRID = 81, 41


@dataclass(frozen=True, repr=False)
class PhaseView(Viewable):
    """A phase diagram, a point, and a depth.

    Attributes:
        diagram: what the maps say on a grid.
        point: the network that is marked; None for none.
        depth: layers that a network is to bear; None for none.
        fine: the edge of chaos more finely than the diagram has it: sigma_b^2 and sigma_w^2.
    """

    diagram: PhaseDiagram
    point: MeanField | None = None
    depth: int | None = None
    fine: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def edge(self) -> tuple[np.ndarray, np.ndarray]:
        """sigma_b^2 and sigma_w^2 along the edge of chaos, within the diagram."""
        d = self.diagram
        b, w = self.fine or (d.bias_variances, d.critical)
        inside = np.isfinite(w) & (w <= d.weight_variances[-1])
        return b[inside], w[inside]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for json."""
        return {
            **plain(self.diagram),
            "trainable_depth": plain(self.diagram.trainable_depth),
            "depth": self.depth,
            "point": None if self.point is None else plain(numbers(self.point)),
        }


def around(
    activation: str, at: tuple[float, float] | None = None, depth: int | None = None
) -> PhaseView:
    """The diagram of an activation over a range that shows its edge of chaos.

    Args:
        activation: its name.
        at: sigma_w^2 and sigma_b^2 of a point to mark, which the range then holds.
        depth: layers that a network is to bear.

    Returns:
        What is shown.
    """
    point = None if at is None else MeanField(activation, *at)
    biases = np.linspace(0.0, max(1.0, 1.25 * at[1] if at else 0.0), GRID[1])
    fine = biases[-1] * np.linspace(0.0, 1.0, 101) ** 3  # the edge is steepest at 0
    edge = edge_curve(Activation.of(activation), fine)
    known = edge[np.isfinite(edge)]
    high = min(1.25 * float(known.max()), 64.0) if len(known) else 4.0
    high = max(high, 2.0, 1.25 * at[0] if at else 0.0)
    weights = np.linspace(0.0, high, GRID[0] + 1)[1:]
    return PhaseView(phase_diagram(activation, weights, biases), point, depth, (fine, edge))


def numbers(point: MeanField) -> dict[str, Any]:
    """What the maps say of one point, by name."""
    names = (
        "weight_variance", "bias_variance", "phase", "q_star", "chi_1", "c_star", "xi_q", "xi_c",
        "trainable_depth", "gradient_factor", "gradient_rate",
    )  # fmt: skip
    return {name: getattr(point, name) for name in names}
