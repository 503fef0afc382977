"""Rules about directions: which of them get through the whole network, and how evenly.

A good ratio of norms is necessary, not sufficient. A network can hand the error signal on at full
strength along one direction and lose every other, and then it can learn one thing only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from signalprop.capture import batch as batches
from signalprop.capture.batch import Loss
from signalprop.capture.observe import eager
from signalprop.capture.sandbox import untouched
from signalprop.capture.trace import Trace
from signalprop.diagnosis.depth import spine
from signalprop.diagnosis.evidence import Evidence, Leading
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule
from signalprop.diagnosis.samples import learned_share
from signalprop.jacobian.between import between
from signalprop.jacobian.sketch import sketch

#: samples that Jacobians are taken of, and directions that are followed
SAMPLES, DIRECTIONS = 8, 8
#: a ratio below this asks whether the network has learned
SMALL = 1e-3
#: where the second of two directions reaches the output with more than this, it has reached the
#: last hidden layer as well
THROUGH = 1e-2
#: a rectifier kills half of a layer's directions for each sample, so a layer must have many more
WIDE = 4 * DIRECTIONS


def measure(
    model: torch.nn.Module, data: Any, loss: Loss, trace: Trace, batch_dim: int
) -> tuple[Leading, ...]:
    """The leading singular values from the input to the output, and of a narrow one to wide ones.

    Where the output does not show that two directions reach the last hidden layer, from the input
    to that as well: a head of rank one, or a softmax of two outputs, hides the second.

    Cost: a forward and 8 backward passes of 8 samples; 16 or 24 where the output tells too little.

    Args:
        model: the model.
        data: the batch, no loader.
        loss: the loss.
        trace: of this model and batch.
        batch_dim: dimension of the samples.

    Returns:
        One for every end; none where there is no spine.
    """
    if len(trace.spine) < 2:
        return ()
    start, *rest = trace.spine
    ends = rest[-1:]
    if spine.width(trace, ends[0]) < DIRECTIONS:  # too few rows to compare directions
        ends += [name for name in rest if spine.width(trace, name) >= WIDE][-1:]
    hidden = _last_hidden(trace)
    found = []
    with between(model, data, loss, samples=SAMPLES, batch_dim=batch_dim, trace=trace) as live:
        for end in ends:
            values = sketch(live.jacobian(end, start), count=DIRECTIONS)
            found.append(_leading(trace, start, end, values))
        if hidden is not None and hidden not in ends and not _two(found[0]):
            values = sketch(live.jacobian(hidden, start), count=4)
            two = _leading(trace, start, hidden, values)
            held = min(two.narrowest, _directions(trace, hidden))
            found.append(replace(two, narrowest=held))
    if any(len(end.ratios) == DIRECTIONS and end.ratios[-1] < SMALL for end in found):
        learned = _learned(model, data, loss, batch_dim)
        found = [replace(end, learned=learned) for end in found]
    return tuple(found)


def _learned(model: torch.nn.Module, given: Any, loss: Loss, batch_dim: int) -> float | None:
    with untouched(model), eager(), torch.no_grad():
        data = batches.read(given, model, loss, batch_dim=batch_dim, gradients=False)
        return learned_share(model(*data.args, **data.kwargs), data, loss)


def _two(end: Leading) -> bool:
    """Whether two directions reach this end well."""
    return len(end.ratios) > 1 and end.ratios[1] > THROUGH


def _last_hidden(trace: Trace) -> str | None:
    """The last site before the head, where there is one above the input end."""
    names = [site.name for site in spine.hidden(trace)]
    return names[-1] if names[1:] else None


def _leading(trace: Trace, start: str, end: str, values: np.ndarray) -> Leading:
    below = trace.spine[: trace.spine.index(end)]
    alive = values[values[:, 0] > 0]
    ratios = np.median(alive / alive[:, :1], axis=0) if len(alive) else np.zeros(values.shape[1])
    return Leading(
        of=end,
        wrt=start,
        largest=float(np.median(values[:, 0])),
        ratios=tuple(float(r) for r in ratios),
        narrowest=min(_directions(trace, name) for name in below),
        learned=None,
    )


def _directions(trace: Trace, name: str) -> int:
    """How many directions a site can hold: a softmax fixes the sum, a LayerNorm mean and size."""
    taken = {"softmax": 1, "log_softmax": 1, "layer_norm": 2}
    return spine.width(trace, name) - taken.get(trace.sites[name].op, 0)


# ---- SP112 -------------------------------------------------------------------------------------


@rule(
    "SP112",
    "Rank collapse: one direction gets through",
    needs=("leading",),
    cures=("residual", "orthogonal-init", "normalise", "self-normalize", "leaky-activation"),
)
def rank_collapse(evidence: Evidence, *, ratio: float = 1e-4) -> Iterator[Finding]:
    """Of all directions at the input one reaches the head, and one comes back.

    How it is detected:
        The second singular value of the Jacobian from the input to the last hidden layer is below
        `ratio` of the first, in the median of 8 samples, though every layer on the way is two wide
        at least. The head itself is not counted: k outputs, or the k - 1 that a softmax leaves,
        have no more directions by design. Where the output shows two directions, so has the last
        hidden layer, and that is not measured on its own.

    Why it matters:
        The norm of the error signal can be perfect all the way: it is the norm along that one
        direction. All samples then move the output along one line, and all layers learn one
        feature. Narrow deep ReLU networks do this (a layer of width 5 kills half of its directions
        for each sample), as does any product of many unequal matrices: the gap between the two
        largest singular values grows exponentially with depth (Saxe et al. 2014; Pennington et al.
        2017).

    How to cure it:
        Make the layers wider or the network shallower; residual connections, which hand every
        direction on; orthogonal weights with an activation that has a slope everywhere.

    Yields:
        One finding.

    Raises:
        NotApplicable: the network has a layer of width one, or nothing at all gets through.
    """
    if not evidence.leading:
        raise NotApplicable("the network has no chain of layers that every path runs through")
    hidden = _last_hidden(evidence.trace)
    if hidden is None:
        raise NotApplicable("no hidden layer that every path runs through")
    end = next((e for e in evidence.leading if e.of == hidden), evidence.leading[0])
    if end.of != hidden and _two(end):
        return
    if len(end.ratios) < 2 or end.narrowest < 2:
        raise NotApplicable("a layer of width one lets one direction through by design")
    if end.largest == 0:
        raise NotApplicable("nothing gets through from the input to the last hidden layer")
    if end.ratios[1] < ratio:
        yield finding(
            rank_collapse,
            sites=(end.wrt, end.of),
            value=end.ratios[1],
            unit="of the largest singular value",
            threshold=ratio,
            explanation=(
                f"from {end.wrt} to {end.of} the largest singular value of the Jacobian is "
                f"{end.largest:.2g}, the second {small(end.ratios[1])} of it: the network hands "
                "on one direction and loses all others, whatever the norm of its gradient"
            ),
        )


# ---- SP113 -------------------------------------------------------------------------------------


@rule(
    "SP113",
    "Dynamical isometry lost",
    needs=("leading",),
    cures=("residual", "orthogonal-init", "lsuv", "normalise"),
)
def isometry_lost(
    evidence: Evidence, *, ratio: float = 1e-6, chance: float = 0.7
) -> Iterator[Finding]:
    """Before anything is learned, depth has spread the singular values over many decades.

    How it is detected:
        Eight random directions go back from the output, or from the last layer of 32 units where
        the output has less than 8. The weakest arrives with less than `ratio` of the strongest
        (singular values of J^T U, median of 8 samples), all layers on the way are 32 wide at
        least, and the loss is still above `chance` of what it is with the targets of other samples.
        A trained network may give up directions that it does not need.

    Why it matters:
        Gradient descent moves along the strong directions at a rate that the weak ones never see:
        learning time goes with the spread, not with the mean. Mean-field criticality (He, LeCun)
        keeps the mean of the squared singular values at one and lets their spread grow with depth
        over width; orthogonal weights near the linear regime keep all of them (Pennington,
        Schoenholz & Ganguli 2017; Xiao et al. 2018).

    How to cure it:
        Residual connections with a branch that starts small; orthogonal weights with tanh, gain a
        little above 1; more width for the same depth.

    Yields:
        One finding.

    Raises:
        NotApplicable: a layer is too narrow, there is no target, or the network has learned
            already.
    """
    end = next((e for e in evidence.leading if len(e.ratios) == DIRECTIONS), None)
    if end is None or end.narrowest < WIDE:
        raise NotApplicable(f"a layer is less than {WIDE} wide")
    if end.largest == 0:
        raise NotApplicable("nothing gets through from the input to the output")
    if end.ratios[-1] < ratio:
        if end.learned is None:
            raise NotApplicable("without a target it is not known whether the network has learned")
        if end.learned < chance:
            raise NotApplicable("the network has learned already")
        yield finding(
            isometry_lost,
            sites=(end.wrt, end.of),
            value=end.ratios[-1],
            unit="of the largest singular value",
            threshold=ratio,
            explanation=(
                f"of eight directions that go back from {end.of} to {end.wrt} the strongest "
                f"arrives with {end.largest:.2g}, the weakest with {small(end.ratios[-1])} of "
                "that: what lies along it is learned as much more slowly"
            ),
        )


def small(ratio: float) -> str:
    """A share of something in float32."""
    if ratio >= 0.01:
        return f"{ratio:.2g}"
    return f"{ratio:.0e}" if ratio > 1e-7 else "less than 1e-07"


LEADING_RULES: tuple[Rule, ...] = (rank_collapse, isometry_lost)
