"""The time axis of a recurrent layer, as plain data; `recurrent` measures it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """One gate over all steps, samples and units.

    Attributes:
        name: `input`, `forget`, `output`, `reset` or `update`.
        mean: its mean.
        saturated: share within 1 percent of 0 or 1.
        remembers: -1 / ln of its mean over samples and steps, median over the units: steps until
            what the unit holds has fallen to 1/e; only of the gate that holds (`forget`, `update`),
            else None.
    """

    name: str
    mean: float
    saturated: float
    remembers: float | None


@dataclass(frozen=True)
class TimeAxis:
    """Deltas of one layer in one direction, step by step.

    Attributes:
        site: path of the module; `path#2` for its second call.
        op: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.
        layer: from 0.
        reverse: whether it runs from the end to the beginning; steps are counted the way it runs.
        length: steps of the longest sequence.
        steps: t of every value below: h_t is the state after t steps.
        h: rms of dL/dh_t over the units and the sequences that are still going.
        c: rms of dL/dc_t, of an LSTM; else empty.
        gates: facts of the gates; empty where they were not seen.
    """

    site: str
    op: str
    layer: int
    reverse: bool
    length: int
    steps: tuple[int, ...]
    h: tuple[float, ...]
    c: tuple[float, ...]
    gates: tuple[Gate, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """ln(|dL/dh_t| / |dL/dh_t'|) / (t' - t) of neighbours t < t', nats; negative is lost.

        Two zeros give nan.
        """
        found = itertools.pairwise(zip(self.steps, self.h, strict=True))
        return tuple((_log(a) - _log(b)) / (t2 - t1) for (t1, a), (t2, b) in found)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf
