"""Rules over time: gates that are shut or stuck, and states at the ends of their range."""

from __future__ import annotations

from collections.abc import Iterator

from signalprop.capture.time import Gate, TimeAxis
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program.words import quoted
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule
from signalprop.diagnosis.time import curves

#: the gates that hold the state
HOLDS = frozenset({"forget", "update"})


def _gates(evidence: Evidence) -> list[tuple[TimeAxis, Gate]]:
    found = [(axis, gate) for axis in evidence.trace.time for gate in axis.gates]
    if not found:
        raise NotApplicable("no LSTM or GRU whose gates were seen")
    if curves.has_learned(evidence):
        raise NotApplicable("the network has learned already, its gates stand where it wants them")
    return found


def _where(axis: TimeAxis) -> str:
    several = f", layer {axis.layer}" if axis.layer else ""
    return quoted(axis.site) + several + (" (reverse)" if axis.reverse else "")


# ---- SP304 -----------------------------------------------------------------------------------


@rule(
    "SP304",
    "Forget gates are shut",
    wants=("time", "lag"),
    cures=("forget-bias", "chrono"),
)
def gates_shut(evidence: Evidence, *, steps: float = 0.5, length: int = 8) -> Iterator[Finding]:
    """The gates that hold the state let go of it at every step: the layer has no memory.

    How it is detected:
        What the typical unit holds falls to 1/e in less than `steps` steps: -1 / ln of the mean of
        its forget gate (LSTM) or update gate (GRU), median over the units; below 0.5 the gate is
        below 0.135 on average. As torch draws them they hold for 1.4 steps. Sequences of less than
        `length` steps are not judged, nor tasks whose targets depend on the step before at most,
        nor a network that has learned (its loss is below 0.7 of the loss with other samples'
        targets).

    Why it matters:
        The cell hands the error back multiplied by the forget gate: after t steps its mean to the
        t-th power is left. The recurrent weights alone then hold the past, as in a plain RNN.

    How to cure it:
        A forget bias of 1 or more at the start (Gers, Schmidhuber & Cummins 2000; Jozefowicz,
        Zaremba & Sutskever 2015), or chrono initialisation for the length at hand. torch adds two
        biases, b_ih and b_hh: set one, and the other to 0.

    Yields:
        One finding, about the layer that holds least.

    Raises:
        NotApplicable: no gates were seen, or the network has learned.
    """
    found = _gates(evidence)
    if evidence.lag is not None and evidence.lag.steps <= 1:
        raise NotApplicable("the target depends on the step before at most")
    shut = [
        (axis, gate.mean, gate.remembers)
        for axis, gate in found
        if gate.remembers is not None and gate.remembers < steps and axis.length >= length
    ]
    if not shut:
        return
    axis, mean, remembers = min(shut, key=lambda one: one[2])
    forgets = axis.op == "lstm"
    kind, named = ("forget", gates_shut.rule.cures) if forgets else ("update", ("chrono",))
    yield finding(
        gates_shut,
        sites=[a.site for a, _, _ in sorted(shut, key=lambda one: one[2])],
        value=remembers,
        unit="steps until 1/e is left",
        threshold=steps,
        explanation=(
            f"the {kind} gates of {_where(axis)} are at {mean:.2g} on average: what a unit holds "
            f"falls to 1/e in {remembers:.2g} steps, and the sequence has {axis.length}"
        ),
        cures=named,
    )


# ---- SP305 -----------------------------------------------------------------------------------


@rule(
    "SP305",
    "Gates are saturated",
    wants=("time",),
    cures=("normalise-inputs", "orthogonal-recurrent"),
)
def gates_saturated(
    evidence: Evidence, *, share: float = 0.5, middle: float = 0.1
) -> Iterator[Finding]:
    """Gates are thrown to both ends of their range, where they have no slope.

    How it is detected:
        More than a share `share` of the values of a gate, over units, steps and samples, lies
        within 1% of 0 or 1, and their mean is farther than `middle` from both ends. A gate that is
        open or shut on purpose, by its bias, lies at one end: forget gates at the start, input and
        output gates of the 1997 LSTM. Nor is a network judged that has learned (its loss is below
        0.7 of the loss with other samples' targets): gates that have become switches are its work.

    Why it matters:
        A gate learns through sigma'(z) = gate (1 - gate), which is below 0.01 there: what lets the
        state in, keeps it and lets it out stays as the initial weights and the inputs' scale say.

    How to cure it:
        Normalise the inputs; smaller input weights; orthogonal recurrent weights instead of large
        random ones; layer normalisation before the gates.

    Yields:
        One finding, about the gate that is worst off.

    Raises:
        NotApplicable: no gates were seen, or the network has learned.
    """
    stuck = [
        (axis, gate)
        for axis, gate in _gates(evidence)
        if gate.saturated > share and middle < gate.mean < 1 - middle
    ]
    if not stuck:
        return
    axis, gate = max(stuck, key=lambda one: one[1].saturated)
    others = len(stuck) - 1
    yield finding(
        gates_saturated,
        sites=[a.site for a, _ in sorted(stuck, key=lambda one: -one[1].saturated)],
        value=gate.saturated,
        unit="share of the values",
        threshold=share,
        explanation=(
            f"{100 * gate.saturated:.0f}% of the values of the {gate.name} gate of {_where(axis)} "
            f"lie within 1% of 0 or 1 (mean {gate.mean:.2f})"
            + (f"; so do those of {others} more gates" if others > 1 else "")
            + ("; so do those of another gate" if others == 1 else "")
        ),
    )


# ---- SP307 -----------------------------------------------------------------------------------


@rule(
    "SP307",
    "Hidden states are saturated",
    wants=("time",),
    cures=("normalise-inputs", "orthogonal-recurrent"),
)
def states_saturated(
    evidence: Evidence, *, share: float = 0.5, observations: int = 8
) -> Iterator[Finding]:
    """Units of a recurrent layer sit at -1 or 1, where tanh has no slope.

    How it is detected:
        Per unit of h of a tanh RNN or GRU: in three quarters of its observations over samples and
        steps the slope of tanh is below 5% of its largest. A layer is counted where more than
        `share` of its units is; of all but the top layer the last step is seen. Not judged are
        fewer than `observations` observations per unit, a network that has learned (its loss is
        below 0.7 of the loss with other samples' targets), and the LSTM: its cell may count beyond
        all ends, and hands the error on past the tanh.

    Why it matters:
        The error is multiplied by the slope at every step: 0.05 twice in a row is 1/400. And a
        state at its ends answers hardly to a new input: it counts signs.

    How to cure it:
        Normalise the inputs; smaller input weights; an orthogonal recurrent matrix in place of a
        large random one; layer normalisation inside the recurrence.

    Yields:
        One finding, about the layer that is worst off.

    Raises:
        NotApplicable: there is no recurrent layer with a bounded state, too few observations, or
            the network has learned.
    """
    states = evidence.time.states if evidence.time is not None else ()
    if not states:
        raise NotApplicable("no recurrent layer with a bounded state")
    judged = [s for s in states if s.observations >= observations]
    if not judged:
        raise NotApplicable(f"fewer than {observations} observations per unit; give more samples")
    if curves.has_learned(evidence):
        raise NotApplicable("the network has learned already")
    found = sorted((s for s in judged if s.saturated > share), key=lambda s: -s.saturated)
    if not found:
        return
    worst = found[0]
    yield finding(
        states_saturated,
        sites=[s.site for s in found],
        value=worst.saturated,
        unit="share of units",
        threshold=share,
        explanation=(
            f"{100 * worst.saturated:.0f}% of the {worst.units} units of {quoted(worst.site)} have "
            f"lost their slope in three quarters of {worst.observations} observations"
        ),
    )


GATE_RULES: tuple[Rule, ...] = (gates_shut, gates_saturated, states_saturated)
