"""Time axes and horizons with known numbers."""

from __future__ import annotations

import math

import numpy as np

from signalprop.capture.time import Gate, Horizon, TimeAxis
from signalprop.recurrent.horizon.result import Exponents, Gains, Horizons

EPS = 2.0**-23
GATES = (
    Gate("input", 0.5, 0.0, None),
    Gate("forget", 0.9, 0.25, -1 / math.log(0.9)),
    Gate("output", 0.4, 0.002, None),
)


def axis(site="rnn", h=(1e-4, 1e-3, 1e-2), **other) -> TimeAxis:
    """A time axis, by default of three steps over which a decade is lost each."""
    known = {"op": "gru", "layer": 0, "reverse": False, "c": (), "gates": ()} | other
    steps = known.pop("steps", tuple(range(1, len(h) + 1)))
    length = known.pop("length", max(steps, default=0))
    return TimeAxis(site=site, length=length, steps=steps, h=tuple(h), **known)


def lstm(site="rnn", h=(1e-4, 1e-3, 1e-2), **other) -> TimeAxis:
    """The same of an LSTM, with gates and dL/dc."""
    return axis(site, h, op="lstm", c=tuple(2 * v for v in h), gates=GATES, **other)


def deep(layers: int, **other) -> list[TimeAxis]:
    """A bidirectional stack; every layer loses a little more than the one before."""
    return [
        axis("enc.rnn", [math.exp(-0.01 * (i + 1) * (10 - t)) for t in range(11)],
             layer=i, reverse=back, **other)
        for i in range(layers)
        for back in (False, True)
    ]  # fmt: skip


def called(count: int, length: int = 4, gain: float = 0.5, **other) -> list[TimeAxis]:
    """Calls of one layer that hand their state on: gain to the power of the steps back."""
    total = count * length
    made = []
    for k in range(count):
        first = 0 if k else 1
        steps = tuple(range(first, length + 1))
        h = [gain ** (total - k * length - t) for t in steps]
        made.append(axis(f"rnn#{k + 1}" if k else "rnn", h, steps=steps, **other))
    return made


def curve(gain=0.5, longest=60, site="rnn", **other) -> Horizon:
    """Credit gain^lag."""
    known = {"op": "rnn_tanh", "layer": 0, "reverse": False, "floor": EPS} | other
    lags = tuple(range(longest + 1))
    return Horizon(site=site, lags=lags, credit=tuple(gain**k for k in lags), **known)


def horizons(*curves: Horizon, spectra=False, exponents=False, notes=()) -> Horizons:
    """A result around curves, with gains of 2 g and g."""
    gains, rates = [], []
    for mine in curves:
        if mine.op == "attention":
            continue
        place = {"site": mine.site, "op": mine.op, "layer": mine.layer, "reverse": mine.reverse}
        g = mine.credit[1]
        steps = (2, 30, 61)
        values = np.array([[[2 * g, g, 0.0], [2 * g, g, 0.0]]] * 3)
        values[2, 1] = math.nan  # a sequence that has ended
        gains.append(
            Gains(
                **place, steps=steps, largest=(2 * g,) * 3, rms=(g,) * 3, size=3, samples=2,
                radius=g if mine.op.startswith("rnn") else None,
                values=values if spectra else None,
            )
        )  # fmt: skip
        if exponents:
            values = tuple(math.log(g) - k for k in range(3))
            rates.append(
                Exponents(**place, values=values, errors=(0.01,) * 3, size=3, steps=60, samples=2)
            )
    return Horizons("Net", 2, tuple(curves), tuple(gains), tuple(rates), tuple(notes))
