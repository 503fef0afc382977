"""The rule about targets that the outputs need too many updates to come to."""

from __future__ import annotations

import math
from collections.abc import Iterator

from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program.output import REGRESSION, loss_calls, output, place
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule


@rule(
    "SP214",
    "Targets out of the outputs' reach",
    needs=("learning", "optimizer"),
    cures=("scale-targets",),
)
def out_of_reach(
    evidence: Evidence, *, scale: float = 10.0, near: float = 0.1, crawl: float = 1e-4
) -> Iterator[Finding]:
    """The targets of a regression are so large that no usual number of updates leads there.

    How it is detected:
        For optimizers whose steps do not grow with the gradient (Adam and its kin). The root mean
        square of a regression's targets is above `scale`, that of the outputs below a share `near`
        of it, and the rehearsed updates take less than a share `crawl` of the loss away, each.

    Why it matters:
        Adam moves every weight by about the learning rate, whatever the loss: with outputs near 0,
        targets near 10 000 000 and a rate of 0.001 it takes a billion updates until the last bias
        is there. Until then the loss falls along a straight line, and nothing but the mean is
        learned.

    How to cure it:
        Subtract the mean of the training targets and divide by their standard deviation, and undo
        it on predictions; where they span decades, predict their logarithm.

    Yields:
        One finding.

    Raises:
        NotApplicable: no loss of a regression was seen, or plain SGD is used.
    """
    learning, optimizer = evidence.learning, evidence.optimizer
    if learning is None or optimizer is None or len(learning.after) < 2:
        raise NotApplicable("no updates of a given optimizer were rehearsed")
    if optimizer.plain:
        raise NotApplicable("the steps of SGD grow with the gradient, and so with the targets")
    calls = [c for c in loss_calls(evidence.trace) if c.op in REGRESSION and c.target is not None]
    if not calls:
        raise NotApplicable("no loss of a regression was seen")
    start, end = learning.after[0], learning.after[-1]
    if not (math.isfinite(start) and math.isfinite(end)) or start <= 0:
        return
    taken = (start - end) / start / (len(learning.after) - 1)
    for call in calls:
        assert call.target is not None
        wanted = math.hypot(call.target.mean, call.target.std)
        given = math.hypot(call.input.mean, call.input.std)
        if wanted <= scale or given >= near * wanted or not abs(taken) < crawl:
            continue
        yield finding(
            out_of_reach,
            sites=place(call),
            value=taken,
            unit="share of the loss that an update takes away",
            threshold=crawl,
            explanation=(
                f"{output(call)} has a root mean square of {given:.2g}, the targets {wanted:.2g}: "
                f"an update of {optimizer.name} with a learning rate of {learning.rate:g} takes "
                f"{max(taken, 0):.0e} of the loss away."
            ),
        )
        return


REACH_RULES: tuple[Rule, ...] = (out_of_reach,)
