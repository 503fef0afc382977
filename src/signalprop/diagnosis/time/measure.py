"""What the rules over time need to know, measured where something recurs."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from signalprop.capture.batch import Loss
from signalprop.capture.time import Horizon
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.time import lag_data
from signalprop.diagnosis.time.facts import TimeFacts, facts_of, recurs
from signalprop.errors import SignalpropError
from signalprop.recurrent.horizon.measure import horizon

#: samples that the horizon is measured of, and random errors for each
SAMPLES, ERRORS = 8, 2


def check_clip(clip: float | None) -> None:
    """Raise where a clipping norm is none.

    Args:
        clip: the norm that the gradient is clipped to; None for no clipping.

    Raises:
        SignalpropError: it is no number above 0.
    """
    number = isinstance(clip, (int, float)) and not isinstance(clip, bool)
    if clip is not None and not (number and 0 < clip < math.inf):
        raise SignalpropError(
            f"clip is the norm that the gradient is clipped to, a number above 0, not {clip!r}"
        )


def over_time(
    evidence: Evidence,
    given: Any,
    data: Any,
    loss: Loss,
    batch_dim: int,
    say: Callable[[str], None],
) -> Evidence:
    """Add to the evidence what is about time; where nothing recurs, that is hardly a look.

    Args:
        evidence: with what the user said of lag and clipping.
        given: a batch, or a loader.
        data: the batch.
        loss: the loss.
        batch_dim: dimension of the samples.
        say: told about each phase.

    Returns:
        The evidence.
    """
    missing = dict(evidence.missing)
    if evidence.clip is None:
        missing["clip"] = "no clipping norm was given (clip=)"
    model, trace = evidence.model, evidence.trace
    if trace.failure is not None:
        missing["horizon"] = f"the pass stopped: {trace.failure.message}"
        return replace(evidence, missing=missing)
    if not recurs(model, trace):
        return replace(evidence, missing=missing)
    say("how far back in time credit reaches")
    horizons: tuple[Horizon, ...] = ()
    facts: TimeFacts | None = None
    with suppress(Exception):  # a model that runs but once; nothing here stops the diagnosis
        facts = facts_of(model, data, loss, batch_dim)
    try:
        horizons = horizon(
            model, data, loss, errors=ERRORS, samples=SAMPLES, gains=False, batch_dim=batch_dim
        ).curves
    except Exception as error:
        first = str(error).strip().splitlines()
        missing["horizon"] = first[0].rstrip(".") if first else type(error).__name__
    lag = evidence.lag
    if lag is None and horizons:
        lengths = {axis.length for axis in trace.time} | {len(h.lags) for h in horizons}
        with suppress(Exception):  # data of a form of their own show nothing
            lag = lag_data.of_data(given, model, loss, batch_dim, lengths)
    return replace(evidence, horizons=horizons, time=facts, lag=lag, missing=missing)
