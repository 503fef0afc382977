"""Rules over time about the program: a state cut off the graph, and clipping that hides a cause."""

from __future__ import annotations

import math
from collections.abc import Iterator

from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program.words import quoted
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule
from signalprop.diagnosis.time import curves
from signalprop.diagnosis.time.facts import LoopFacts

# ---- SP306 -----------------------------------------------------------------------------------


@rule("SP306", "Truncation cuts the credit", wants=("time", "lag"), cures=("reconnect",))
def truncated(evidence: Evidence, *, most: float = 0.5) -> Iterator[Finding]:
    """The state is detached on its way through time, and the error stops there.

    How it is detected:
        A module is called three times or more, each time with what it has returned before, and at
        some call the very values arrive, but outside the graph (`detach()`, `.data`, a copy). An
        issue where less than a share `most` of the steps gets an error signal at all, as with a
        loss at the end alone, or where the task needs more steps (`lag`, given or shown by the
        data) than lie between two cuts. Where every part has a loss of its own, it is truncated
        backpropagation through time, and only a tip; as it is for a module that is given nothing
        new from call to call, and so refines one thing. Where the lag is known and shorter than
        the parts, nothing.

    Why it matters:
        Beyond the cut every step is computed and none is learned from: the network uses whatever
        its random weights happen to keep. No initialisation or architecture can reach farther.

    How to cure it:
        Take `.detach()` off the state inside the sequence; cut only between batches, and give them
        more steps than the task needs; checkpointing (`torch.utils.checkpoint`) saves the memory.

    Yields:
        One finding for every loop that is cut.

    Raises:
        NotApplicable: nothing is called again with what it has returned before, and cut.
    """
    loops = evidence.time.loops if evidence.time is not None else ()
    if not loops:
        raise NotApplicable("no loop whose state is cut off the graph")
    for loop in loops:
        part = _longest(loop)
        lag = evidence.lag.usual if evidence.lag is not None else None
        short = lag is not None and lag >= part
        if lag is not None and not short:
            continue
        lost = loop.reached < most * loop.steps
        told = f"the state that {quoted(loop.site)} is given is cut off the graph "
        told += f"{len(loop.cuts)} time{'' if len(loop.cuts) == 1 else 's'} in "
        told += f"{curves.count(loop.steps)}: an error goes back no farther than {part}"
        if lost:
            told += f", and the first {loop.steps - loop.reached} get none at all"
        if short:
            told += f"; the task needs {lag}"
        yield finding(
            truncated,
            sites=(loop.site,),
            value=loop.reached if lost else part,
            unit="steps that get an error signal" if lost else "steps between two cuts",
            threshold=most * loop.steps if lost or lag is None else lag,
            explanation=told,
            severity="issue" if (lost or short) and loop.recurrent else "tip",
        )


def _longest(loop: LoopFacts) -> int:
    """Steps of the longest part that gets an error signal."""
    ends = (*loop.cuts, loop.steps)
    starts = (0, *loop.cuts)
    first = loop.steps - loop.reached
    parts = [b - max(a, first) for a, b in zip(starts, ends, strict=True) if b > first]
    return max(parts, default=0)


# ---- SP308 -----------------------------------------------------------------------------------


@rule(
    "SP308",
    "Gradient clipping hides an explosion in time",
    needs=("horizon", "clip"),
    cures=("orthogonal-recurrent", "identity-recurrent", "lstm", "gru"),
)
def clipping_hides(
    evidence: Evidence, *, times: float = 10.0, nats: float = 3.0
) -> Iterator[Finding]:
    """The gradient is cut down many times in every update, because it explodes over the steps.

    How it is detected:
        The norm of the whole gradient is more than `times` the norm that it is clipped to (`clip`,
        given to `diagnose`), and an error put on the last step alone grows by more than `nats` on
        its way back through the steps.

    Why it matters:
        Clipping keeps the length of the update and not its direction, which is that of the oldest
        steps: the loss falls slowly and evenly, and looks like a learning rate that is too small.
        With every update of the same length, neither the gradient's size nor Adam's second moment
        says any more how near the minimum is.

    How to cure it:
        What makes it grow: a recurrent matrix with singular values of 1 (orthogonal, identity), or
        a gated layer. Clipping is for the rare wall, not for every update.

    Yields:
        One finding.

    Raises:
        NotApplicable: nothing recurs, or no parameter has a gradient.
    """
    found = curves.curves(evidence)
    if not found:
        raise NotApplicable("no recurrent layer that the error reaches")
    gradients = [w.gradient for w in evidence.trace.weights.values() if w.gradient is not None]
    if not gradients or evidence.clip is None:
        raise NotApplicable("no parameter has a gradient")
    size = math.hypot(*gradients)
    gained, worst = curves.rise(found)
    if worst is None or gained <= nats or size <= times * evidence.clip:
        return
    plain = worst.op.startswith("rnn")
    yield finding(
        clipping_hides,
        sites=(worst.site,),
        value=size / evidence.clip,
        unit="times the clipping norm",
        threshold=times,
        explanation=(
            f"the gradient has a norm of {size:.3g} and is clipped to {evidence.clip:g}: it is cut "
            f"down {size / evidence.clip:.0f} times, as an error at the last step of "
            f"{quoted(worst.site)} grows {curves.factor(gained)} times on its way back"
        ),
        cures=clipping_hides.rule.cures if plain else ("orthogonal-recurrent",),
    )


CUT_RULES: tuple[Rule, ...] = (truncated, clipping_hides)
