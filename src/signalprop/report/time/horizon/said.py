"""What a horizon says, in words that every view shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from signalprop.capture.time import Horizon
from signalprop.report import words
from signalprop.report.time.horizon.curves import Curve, centre, curves
from signalprop.report.time.said import KEPT, nats

if TYPE_CHECKING:
    from signalprop.recurrent.horizon.result import Exponents, Gains, Horizons

#: whose rounding it is
DTYPES = {2.0**-52: "float64", 2.0**-23: "float32", 2.0**-10: "float16", 2.0**-7: "bfloat16"}
#: Lyapunov exponents that a sentence names
NAMED = 4


def heading(found: Horizons) -> str:
    """What was looked at, in a few words."""
    return f"Horizon of {words.shorten(words.clean(found.model), 60)}"


def headline(found: Horizons) -> str:
    """How far back credit reaches, in one or two sentences."""
    told = sentence(curves(found))
    return told or "Nothing in the model recurs or attends, so there is no horizon."


def sentence(mine: Sequence[Curve], lag: int | None = None) -> str:
    """How far back credit reaches, and over how many steps the task needs it.

    Args:
        mine: every layer and direction.
        lag: of the task, where it is known.

    Returns:
        Sentences; empty where there are no curves.
    """
    if not mine:
        return ""
    return " ".join(filter(None, [_reached(mine), _needed(mine, lag)]))


def _needed(mine: Sequence[Curve], lag: int | None) -> str:
    if lag is None:
        return ""
    text = f"The task needs memory over {words.plural(lag, 'step')}"
    # credit takes the best way that there is
    known = [at for curve in mine if (at := curve.at(lag)) is not None]
    arrives = f": {words.number(max(known))} of the credit arrives there" if known else ""
    return f"{text}{arrives}."


def _reached(mine: Sequence[Curve]) -> str:
    if len(mine) == 1:
        (curve,) = mine
        return f"{_of(curve)} {reaches(curve.horizon)}."
    nearest = min(mine, key=_order)
    farthest = max(mine, key=_order)
    if _order(nearest)[0] == _order(farthest)[0]:
        return f"In each of {len(mine)} layers and directions the horizon {_far(mine)}."
    return (
        f"{_of(nearest)} {reaches(nearest.horizon)}. {_of(farthest)} {reaches(farthest.horizon)}."
    )


def reaches(curve: Horizon) -> str:
    """How far, after `the horizon of x`."""
    longest, left = curve.lags[-1], curve.credit[-1]
    if grows(curve):
        return (
            f"is longer than the sequence, and credit grows on its way back: "
            f"{nats(curve.rate)} nats per step, {words.number(left)} times as much after "
            f"{words.plural(longest, 'step')}"
        )
    if curve.steps is None:
        return (
            f"is longer than the sequence: {words.number(left)} of the credit is left after "
            f"{words.plural(longest, 'step')}"
        )
    if curve.steps == 0:
        text = "is 0 steps: no earlier step gets 1/e of the credit that the last one has"
    else:
        text = (
            f"is {words.plural(curve.steps, 'step')}: beyond, less than 1/e of the credit is left"
        )
    if curve.silent is not None:
        return f"{text}; beyond {words.plural(curve.silent, 'step')} it drowns in {rounding(curve)}"
    return f"{text}; {words.number(left)} of it is left after {words.plural(longest, 'step')}"


def grows(curve: Horizon) -> bool:
    """Whether credit is larger far back than it is at the last step."""
    left = curve.credit[-1]
    return curve.steps is None and (left == math.inf or (left > 0 and math.log(left) > KEPT))


def rounding(curve: Horizon) -> str:
    """What credit drowns in: `the rounding of float32 (1.2e-7)`."""
    dtype = next((name for eps, name in DTYPES.items() if math.isclose(eps, curve.floor)), "")
    return f"the rounding{f' of {dtype}' if dtype else ''} ({words.number(curve.floor)})"


def until(values: Sequence[int | None], longest: int) -> str:
    """Steps of one curve or of several: `12`, `12 to 40`, `> 59` where it is not known."""
    known = [v for v in values if v is not None]
    if not known:
        return f"> {longest:,}"
    low, high = f"{min(known):,}", f"{max(known):,}"
    if len(known) < len(values):
        return f"{low} and more"
    return low if low == high else f"{low} to {high}"


def steps_do(found: Sequence[Gains]) -> str:
    """What single steps do to an error; empty where it was not measured."""
    if not found:
        return ""
    usual = centre([v for gains in found for v in gains.rms])
    most = [v for gains in found for v in gains.largest]
    text = f"a step multiplies a random error by {words.number(usual)}"
    text += f", any error by at most {words.number(max(most, default=math.nan))}"
    radii = [g.radius for g in found if g.radius is not None]
    if radii:
        text += f"; spectral radius of W_hh {spanned(radii)}"
    return text


def grow(found: Sequence[Exponents]) -> str:
    """The Lyapunov exponents; empty where they were not asked for."""
    if not found:
        return ""
    if len(found) > 1:
        return f"largest Lyapunov exponents {spanned([e.values[0] for e in found], sign=True)}"
    (one,) = found
    shown = ", ".join(exponent(v) for v in one.values[:NAMED])
    error = one.errors[0]
    sure = f" (error {error:.1g})" if math.isfinite(error) else ""
    more = " ..." if len(one.values) > NAMED else ""
    many = "s" if len(one.values) > 1 else ""
    return f"Lyapunov exponent{many} {shown}{more}{sure}, of {one.size}"


def exponent(value: float) -> str:
    """One Lyapunov exponent, nats per step."""
    return words.nats(value, sign=True) if not math.isfinite(value) else f"{value:+.3f}"


def spanned(values: Sequence[float], *, sign: bool = False) -> str:
    """One number, or the range of several."""
    told = exponent if sign else words.number
    low, high = told(min(values)), told(max(values))
    return low if low == high else f"{low} to {high}"


def about(found: Horizons) -> list[tuple[str, str]]:
    """What was looked at, as pairs of a name and a value."""
    mine = curves(found)
    pairs = [
        ("model", words.clean(found.model)),
        ("samples", f"{found.samples:,}"),
        ("layers and directions", f"{len(mine):,}"),
    ]
    if mine:
        longest = max(curve.longest for curve in mine)
        pairs.append(("longest lag", words.plural(longest, "step")))
        pairs.append(("drowns in", rounding(mine[0].horizon)))
    return pairs


def _of(curve: Curve) -> str:
    return f"The horizon of {curve.place.label} ({curve.horizon.op})"


def _beyond(steps: int) -> str:
    return f"is {words.plural(steps, 'step')}: beyond, less than 1/e of the credit is left"


def _far(mine: Sequence[Curve]) -> str:
    """What is said of all at once."""
    first = mine[0].horizon
    if first.steps is None:
        left = spanned([curve.left() for curve in mine])
        longest = max(curve.longest for curve in mine)
        return f"is longer than the sequence: {left} of the credit is left after {longest:,} steps"
    text = _beyond(first.steps)
    silent = [curve.horizon.silent for curve in mine]
    if all(value is None for value in silent):
        return text
    known = [value for value in silent if value is not None]
    if len(known) < len(silent):
        return f"{text}; in some beyond {min(known):,} steps it drowns in {rounding(first)}"
    return f"{text}; beyond {until(known, 0)} steps it drowns in {rounding(first)}"


def _order(curve: Curve) -> tuple[float, float]:
    """By the horizon, and where it is the same by how fast credit falls."""
    steps = curve.horizon.steps
    rate = curve.horizon.rate
    return math.inf if steps is None else steps, -math.inf if math.isnan(rate) else rate
