"""The statistics that a watched run records, per sampled step and site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: what a log axis is worth: the largest value over the smallest
DECADES = 100.0


@dataclass(frozen=True)
class Statistic:
    """One number per site and sampled step.

    Attributes:
        name: as in the run file.
        unit: of its values; `""` where it has none.
        log: whether it spans decades: its axis is logarithmic, its means are geometric.
        of: what it is about: `activation`, `delta`, `weights`, `attention`; `""` of a user's own.
        meaning: one sentence, with the formula.
    """

    name: str
    unit: str
    log: bool
    of: str
    meaning: str


_ALL = (
    Statistic("activation_rms", "", True, "activation", "Root mean square of all elements of a."),
    Statistic(
        "dead",
        "share of units",
        False,
        "activation",
        "Share of a rectifier's units that are zero for every observation of the step.",
    ),
    Statistic(
        "saturated",
        "share of units",
        False,
        "activation",
        "Share of units of a bounded activation that are saturated in 3/4 of their observations.",
    ),
    Statistic(
        "delta_rms",
        "",
        True,
        "delta",
        "Root mean square of all elements of delta = dL/da, with loss scaling taken out.",
    ),
    Statistic("weight_norm", "", True, "weights", "|w|, L2 norm of the site's own parameters."),
    Statistic(
        "gradient_norm",
        "",
        True,
        "weights",
        "|g|, L2 norm of their gradient as the optimizer gets it: scaling and clipping done.",
    ),
    Statistic("update_norm", "", True, "weights", "|dw|, L2 norm of what the update changed."),
    Statistic("update_ratio", "", True, "weights", "|dw| / |w|."),
    Statistic(
        "gradient_rms",
        "",
        True,
        "weights",
        "Root mean square of the gradient's elements, estimated at every step from at most 256 of "
        "each weight that are spread evenly over it; kept in the windows around spikes.",
    ),
    Statistic(
        "gradient_snr",
        "",
        True,
        "weights",
        "Signal-to-noise of the gradient over two steps: g . g' / (|g - g'|^2 / 2), g' that of the "
        "step before; at most 0 means that nothing but noise was seen.",
    ),
    Statistic(
        "learning_share",
        "share of the decrease",
        False,
        "weights",
        "The site's part of the first-order decrease of the loss, -g . dw over its own parameters "
        "by the same over all; sums to 1.",
    ),
    Statistic(
        "attention_entropy",
        "nats",
        False,
        "attention",
        "Mean entropy of the attention weights over heads and a sample of queries.",
    ),
    Statistic(
        "attention_entropy_lowest",
        "nats",
        False,
        "attention",
        "The same of the head where it is lowest.",
    ),
    Statistic(
        "attention_entropy_most",
        "nats",
        False,
        "attention",
        "Mean of ln(positions that a query may attend to): the largest the entropy could be.",
    ),
    Statistic(
        "attention_logit",
        "",
        False,
        "attention",
        "Largest attention logit q . k * scale, masked ones left out.",
    ),
)

#: every statistic by name, in the order in which they are shown
STATISTICS: Mapping[str, Statistic] = {statistic.name: statistic for statistic in _ALL}


def statistic(name: str) -> Statistic:
    """What is known of a statistic; of a user's own, its name.

    Args:
        name: as in the run file.

    Returns:
        One of `STATISTICS`, or one without unit and meaning.
    """
    return STATISTICS.get(name) or Statistic(name, "", False, "", "")


def is_log(name: str, values: Sequence[float] | NDArray[np.floating]) -> bool:
    """Whether a statistic is drawn on a log scale: a known one says so, a user's own shows it.

    Args:
        name: as in the run file.
        values: of any shape; what is not finite is left out. Of a whole run rather than of a part,
            so that the scale is the same for all parts.

    Returns:
        Whether it is.
    """
    known = statistic(name)
    return known.log if known.of else spans_decades(values)


def spans_decades(values: Sequence[float] | NDArray[np.floating]) -> bool:
    """Whether numbers are told apart on a log scale only: all above zero, over two decades or more.

    Args:
        values: of any shape; what is not finite is left out.

    Returns:
        Whether they are; not so where none is finite.
    """
    seen = np.asarray(values, dtype=np.float64)
    seen = seen[np.isfinite(seen)]
    return bool(seen.size) and float(seen.min()) > 0 and float(seen.max() / seen.min()) > DECADES
