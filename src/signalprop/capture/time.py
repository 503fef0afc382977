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
        op: `lstm`, `gru`, `rnn_tanh`, `rnn_relu`, `mingru`, `minlstm`, or the class of a module
            that the model loops over, in lower case.
        layer: from 0.
        reverse: whether it runs from the end to the beginning; steps are counted the way it runs.
        length: steps of the longest sequence.
        steps: t of every value below: h_t is the state after t steps.
        h: rms of dL/dh_t over the units and the sequences that are still going.
        c: rms of dL/dc_t, of an LSTM, or of the second state of a cell that hands on two; else
            empty.
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


@dataclass(frozen=True)
class Horizon:
    """How far back in time the credit of the last step reaches.

    A random error is put on the last step alone, and goes back from there.

    Attributes:
        site: path of the module, or of the place whose positions are the steps (attention).
        op: `lstm`, `gru`, `rnn_tanh`, `rnn_relu`, `mingru`, `minlstm`, the class of a module that
            the model loops over, in lower case, or `attention`.
        layer: from 0.
        reverse: whether it runs from the end to the beginning.
        lags: steps back from the last one, rising from 0.
        credit: size of the error at each lag over that at lag 0: L2 norm over units and samples,
            of an LSTM over h and c together.
        floor: credit below it drowns in rounding: the dtype's epsilon.
    """

    site: str
    op: str
    layer: int
    reverse: bool
    lags: tuple[int, ...]
    credit: tuple[float, ...]
    floor: float

    @property
    def steps(self) -> int | None:
        """Steps until credit has fallen to 1/e; None where it has not within the sequence."""
        return self.reach(1 / math.e)

    @property
    def silent(self) -> int | None:
        """Steps until credit has fallen to `floor`; None where it has not within the sequence."""
        return self.reach(self.floor)

    @property
    def rate(self) -> float:
        """Slope of ln credit over the lags where it is above `floor`, nats per step.

        Least squares; nan where fewer than two lags are.
        """
        known = [
            (k, math.log(c))
            for k, c in zip(self.lags, self.credit, strict=True)
            if self.floor < c < math.inf
        ]
        if len(known) < 2:
            return math.nan
        mean_k = sum(k for k, _ in known) / len(known)
        mean_c = sum(c for _, c in known) / len(known)
        spread = sum((k - mean_k) ** 2 for k, _ in known)
        return sum((k - mean_k) * (c - mean_c) for k, c in known) / spread

    def reach(self, share: float) -> int | None:
        """The largest lag whose credit is at least `share`: floor(ln share / ln g) if it is g^lag.

        Args:
            share: of the credit at lag 0.

        Returns:
            The lag, or None where credit is that large up to the longest lag.
        """
        if self.credit[-1] >= share:
            return None
        known = zip(self.lags, self.credit, strict=True)
        return max((k for k, c in known if c >= share), default=0)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf
