"""What was measured of time in a network, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from signalprop._views import Viewable
from signalprop.capture.time import Horizon
from signalprop.capture.trace import plain


@dataclass(frozen=True)
class Gains:
    """What single steps do to the state: the step Jacobians J_t = d state_t / d state_(t-1).

    The state is h, and (h, c) of an LSTM.

    Attributes:
        site: as in `Horizon`, like the next three.
        op: the operation.
        layer: from 0.
        reverse: whether it runs from the end to the beginning.
        steps: t of every value below; t = 2 leads from the state after the first step to that after
            the second.
        largest: s_1 of J_t, the most that a step multiplies an error by; median over the samples.
        rms: ||J_t||_F / sqrt(n), what it multiplies a random error by; root mean square over the
            samples.
        size: n.
        samples: how many samples they are of, at most 4 unless `values` were asked for; fewer where
            sequences have ended.
        radius: spectral radius of W_hh, of a plain RNN: the gain per step of its linear twin over
            many steps; None of others.
        values: all singular values of J_t, largest first, (steps, samples, n), nan where a sequence
            has ended; None unless they were asked for.
    """

    site: str
    op: str
    layer: int
    reverse: bool
    steps: tuple[int, ...]
    largest: tuple[float, ...]
    rms: tuple[float, ...]
    size: int
    samples: int
    radius: float | None
    values: np.ndarray | None = None


@dataclass(frozen=True)
class Exponents:
    """Lyapunov exponents: the rates at which the directions of the state grow, over many steps.

    Attributes:
        site: as in `Horizon`, like the next three.
        op: the operation.
        layer: from 0.
        reverse: whether it runs from the end to the beginning.
        values: the largest, largest first, nats per step; above 0 small changes grow (chaos), below
            they are forgotten, and with them the error.
        errors: standard error of each, from parts of the sequence; nan where it is too short.
        size: n, how many there are.
        steps: steps that they were averaged over, at most.
        samples: samples that they were averaged over.
    """

    site: str
    op: str
    layer: int
    reverse: bool
    values: tuple[float, ...]
    errors: tuple[float, ...]
    size: int
    steps: int
    samples: int


@dataclass(frozen=True, repr=False)
class Horizons(Viewable):
    """How far back in time credit reaches in a network.

    Attributes:
        model: class name of the model.
        samples: number of samples it was measured of.
        curves: credit over the lag, of every recurrent layer and direction, and of attention.
        gains: what single steps do, of every recurrent layer and direction.
        exponents: Lyapunov exponents, where they were asked for.
        notes: what the reader has to know, as sentences.
    """

    model: str
    samples: int
    curves: tuple[Horizon, ...]
    gains: tuple[Gains, ...]
    exponents: tuple[Exponents, ...]
    notes: tuple[str, ...]

    def frame(self) -> Any:
        """One row per curve, as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame([self._row(curve) for curve in self.curves]).set_index("site")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for json; arrays as lists, what is not finite as a word."""
        found = plain(self)
        for told, curve in zip(found["curves"], self.curves, strict=True):
            told.update(steps=curve.steps, silent=curve.silent, rate=plain(curve.rate))
        return found

    def _row(self, curve: Horizon) -> dict[str, Any]:
        place = (curve.site, curve.layer, curve.reverse)
        gain = next((g for g in self.gains if (g.site, g.layer, g.reverse) == place), None)
        rates = next((e for e in self.exponents if (e.site, e.layer, e.reverse) == place), None)
        return {
            "site": curve.site,
            "op": curve.op,
            "layer": curve.layer,
            "reverse": curve.reverse,
            "longest": curve.lags[-1],
            "steps": curve.steps,
            "silent": curve.silent,
            "rate": curve.rate,
            "largest": None if gain is None else float(np.median(gain.largest)),
            "rms": None if gain is None else float(np.median(gain.rms)),
            "radius": None if gain is None else gain.radius,
            "exponent": None if rates is None else rates.values[0],
        }
