"""The rule about probabilities that are given to a loss that makes its own."""

from __future__ import annotations

import math
from collections.abc import Iterator

from signalprop.capture.trace import LossCall
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program.output import (
    RANGES,
    SIGMOID_INSIDE,
    SOFTMAX_INSIDE,
    loss_calls,
    output,
    place,
)
from signalprop.diagnosis.rule import Rule, finding, rule

#: losses that take log-probabilities
LOG_PROBABILITIES = frozenset({"nll_loss", "kl_div"})


@rule(
    "SP203",
    "Softmax or sigmoid before a loss that applies its own",
    cures=("remove-softmax", "remove-sigmoid", "use-log-softmax", "use-cross-entropy"),
)
def squashed_twice(
    evidence: Evidence, *, floor: float = 0.05, tolerance: float = 1e-3
) -> Iterator[Finding]:
    """Probabilities are given to a loss that makes probabilities itself.

    How it is detected:
        `cross_entropy` or `binary_cross_entropy_with_logits` is given the output of a softmax or a
        sigmoid, or numbers whose sum over the classes is 1 for every sample (within `tolerance`),
        and the lowest value the loss can then reach is above `floor` nats. `nll_loss` or `kl_div`
        is given numbers above `tolerance`, which no log-probability is. A log_softmax before
        `cross_entropy` is harmless: the second one changes nothing.

    Why it matters:
        The loss reads numbers between 0 and 1 as logits, so no class can get far from the others:
        with ten classes the best loss is 1.46 and the best probability 0.23, however long it
        trains, and the slope of the first softmax is lost on the way back. With `nll_loss` the
        result is no likelihood: it falls without a bound or stops falling at -1.

    How to cure it:
        Take the activation off the end of the model and keep it for prediction, or use the loss
        that fits it: `nll_loss` after `log_softmax`, `binary_cross_entropy` after a sigmoid.

    Yields:
        One finding for every output that is squashed twice.
    """
    seen: set[str | None] = set()
    for call in loss_calls(evidence.trace):
        if call.site in seen and call.site is not None:
            continue
        found = _squashed(call, floor, tolerance) or _no_log(call, tolerance)
        if found is not None:
            seen.add(call.site)
            yield found


def _squashed(call: LossCall, floor: float, tolerance: float) -> Finding | None:
    classes, op = call.classes or 1, call.site_op
    if call.op in SOFTMAX_INSIDE and classes > 1:
        sums = call.row_sums
        summed = sums is not None and max(abs(s - 1) for s in sums) <= _loose(call, tolerance)
        if op not in ("softmax", "sigmoid", "hardsigmoid") and not summed:
            return None
        lowest = math.log1p((classes - 1) / math.e)
        own, name = "softmax", op if op in RANGES else "softmax"
    elif call.op in SIGMOID_INSIDE and op in ("softmax", "sigmoid", "hardsigmoid", "logsigmoid"):
        ones = call.target.mean if call.target is not None else 0.5
        top = 0.0 if op == "logsigmoid" else 1.0
        lowest = ones * math.log1p(math.exp(-top)) + (1 - ones) * (0 if top == 0 else math.log(2))
        own, name = "sigmoid", op
    else:
        return None
    if lowest <= floor:
        return None
    return finding(
        squashed_twice,
        sites=place(call),
        value=lowest,
        unit="nats, the lowest loss possible",
        threshold=floor,
        explanation=(
            f"{output(call)} has been through a {name} already, and {call.op} applies its own "
            f"{own}: read as logits, such values cannot bring the loss below {lowest:.2f}."
        ),
        cures=("remove-softmax",) if name == "softmax" else ("remove-sigmoid",),
    )


def _loose(call: LossCall, tolerance: float) -> float:
    """A sum of rounded numbers is farther from 1 in half precision."""
    return 10 * tolerance if call.input.dtype in ("float16", "bfloat16") else tolerance


def _no_log(call: LossCall, tolerance: float) -> Finding | None:
    if call.op not in LOG_PROBABILITIES or not call.input.high > _loose(call, tolerance):
        return None
    sums = call.row_sums
    summed = sums is not None and max(abs(s - 1) for s in sums) <= _loose(call, tolerance)
    if summed or call.site_op in ("softmax", "sigmoid"):
        what, cures = "probabilities", ("use-log-softmax", "remove-softmax")
    else:
        what, cures = "raw scores", ("use-log-softmax", "use-cross-entropy")
    return finding(
        squashed_twice,
        sites=place(call),
        value=call.input.high,
        unit="largest log-probability",
        threshold=tolerance,
        explanation=(
            f"{call.op} expects log-probabilities, which are never above 0, but {output(call)} "
            f"holds {what} up to {call.input.high:.3g}: there is no log_softmax before it."
        ),
        cures=cures,
    )


SQUASHED_RULES: tuple[Rule, ...] = (squashed_twice,)
