"""What spectra say, in words and numbers that every view shares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from signalprop.jacobian.spectra import DeepSpectrum, Spectra, Spectrum
from signalprop.report import words

#: distortion up to which J is called an isometry, and up to which it is roughly one
CLOSE, ROUGH = 0.1, 0.5
LN10 = math.log(10)


@dataclass(frozen=True)
class Fact:
    """One number of a Jacobian.

    Attributes:
        name: what it is called.
        value: median over the samples.
        spread: its range over the samples, and its error; empty where neither says anything.
        meaning: how to read it.
    """

    name: str
    value: str
    spread: str
    meaning: str


@dataclass(frozen=True)
class Reach:
    """Between what the singular values lie, medians over the samples.

    Attributes:
        high: ln of the largest.
        low: ln of the smallest, -inf where it is exactly zero; None where it was not measured.
        hidden: whether the smallest lies below `low`, lost in the rounding of the largest.
    """

    high: float
    low: float | None
    hidden: bool

    @property
    def decades(self) -> float | None:
        """Between the largest and the smallest."""
        return None if self.low is None else (self.high - self.low) / LN10


def middle(values: np.ndarray | None) -> float | None:
    """Median over the samples; None of nothing."""
    if values is None or not len(values):
        return None
    with np.errstate(invalid="ignore"):
        return float(np.median(values))


def middles(values: np.ndarray) -> np.ndarray:
    """Medians over the samples, the first axis; -inf is a number like any other."""
    with np.errstate(invalid="ignore"):
        return np.median(values, axis=0)


def along(values: np.ndarray, at: float, axis: int) -> np.ndarray:
    """A quantile along an axis that never mixes two values, so that -inf stays -inf."""
    ordered = np.sort(values, axis=axis)
    return np.take(ordered, round(at * (ordered.shape[axis] - 1)), axis=axis)


def power(ln: float) -> str:
    """A number of which only the logarithm fits into a float."""
    if not math.isfinite(ln):
        return "zero" if ln == -math.inf else words.number(ln)
    if abs(ln) < 600:
        return words.number(math.exp(ln))
    exponent, rest = divmod(ln / LN10, 1)
    mantissa = f"{10**rest:.1f}"
    return f"1.0e{exponent + 1:.0f}" if mantissa == "10.0" else f"{mantissa}e{exponent:.0f}"


def least(s: Spectrum) -> np.ndarray | None:
    """The smallest singular value of every sample; None unless it was measured."""
    if s.smallest.shape[1]:
        return s.smallest[:, 0]
    return s.values[:, -1] if s.whole else None


def sure(s: Spectrum) -> np.ndarray:
    """The known singular values, zero where they are lost in rounding."""
    return np.where(s.values > s.resolution[:, None], s.values, 0.0)


def known(s: Spectrum) -> bool:
    """Whether it is known how all singular values are distributed."""
    return s.whole or s.distribution is not None


def sides(s: Spectrum) -> int:
    """How many singular values there are."""
    return min(s.rows, s.columns)


def covers(spectra: Spectra) -> DeepSpectrum | None:
    """The log-spectrum, where its product is the Jacobian that was asked for."""
    deep, s = spectra.deep, spectra.between
    same = deep is not None and deep.sites and (deep.sites[0], deep.sites[-1]) == (s.wrt, s.of)
    return deep if same else None


def scale(s: Spectrum) -> float | None:
    """Of which multiple of an isometry J is nearest: the root mean square of its values."""
    value = middle(s.frobenius.value / math.sqrt(sides(s)))
    return value if value is not None and math.isfinite(value) else None


def reach(spectra: Spectra) -> Reach:
    """Between what the singular values of the Jacobian that was asked for lie."""
    s = spectra.between
    high = _ln(middle(s.largest))
    low, resolution = middle(least(s)), middle(s.resolution) or 0.0
    if low is not None and low > 10 * resolution:
        return Reach(high, _ln(low), False)
    deep = covers(spectra)
    if deep is not None and deep.whole and deep.log_values.shape[1]:
        return Reach(high, middle(deep.log_values[:, -1]), False)
    if low is None:
        return Reach(high, None, False)
    hidden = low <= resolution and resolution > 0
    return Reach(high, _ln(resolution if hidden else low), hidden)


def headline(spectra: Spectra) -> str:
    """The end-to-end spectrum in a sentence or two."""
    s = spectra.between
    ends = f"of J from {words.clean(s.wrt)} to {words.clean(s.of)}"
    found = reach(spectra)
    high, low, decades = power(found.high), found.low, found.decades
    if not math.isfinite(found.high):
        zero = found.high == -math.inf
        return f"Every singular value {ends} is {'zero' if zero else 'not a number'}."
    if sides(s) == 1:
        return f"The only singular value {ends} is {high}."
    if low is None or decades is None:
        count = s.values.shape[1]
        last = words.number(middle(s.values[:, -1]))
        span = f"run from {last} to {high}" if count > 1 else f"is {high}"
        which = f"{count} largest" if count > 1 else "largest"
        sentence = f"The {which} of the {sides(s):,} singular values {ends} {span}."
    elif low == -math.inf:
        sentence = f"The singular values {ends} run from exactly zero to {high}."
    elif decades < 0.005:
        sentence = f"All {sides(s):,} singular values {ends} are {high}."
    else:
        below, more = ("below ", "more than ") if found.hidden else ("", "")
        sentence = (
            f"The singular values {ends} run from {below}{power(low)} to {high}, "
            f"over {more}{_decades(decades)}."
        )
    return " ".join(filter(None, [sentence, isometry(s)]))


def isometry(s: Spectrum) -> str:
    """How far J is from a multiple of an isometry, as a sentence; empty where nothing is known."""
    d, c = middle(s.distortion), scale(s)
    if sides(s) == 1 or d is None or c is None or not math.isfinite(d) or c == 0:
        return ""
    times = "" if abs(math.log(c)) < CLOSE else f"{words.number(c)} times "
    measured = f"(distortion {_small(d)}, where an isometry has 0)"
    if d <= CLOSE:
        return f"J is close to {times}an isometry {measured}."
    if d <= ROUGH:
        return f"J is roughly {times}an isometry {measured}."
    return f"J is far from an isometry {measured}."


def isometric(s: Spectrum) -> bool:
    """Whether J neither stretches nor turns: close to an isometry, and to no multiple of it."""
    d, c = middle(s.distortion), scale(s)
    return d is not None and d <= CLOSE and c is not None and abs(math.log(c or 1e-300)) < CLOSE


def facts(spectra: Spectra) -> list[Fact]:
    """What was measured of the Jacobian that was asked for, number by number."""
    s, found, deep = spectra.between, reach(spectra), covers(spectra)
    error = middle(s.errors[:, 0]) if s.errors.size else None
    result = [_fact("largest", s.largest, "factor of a direction at most", error)]
    result += _lower_end(s, found, deep)
    result.append(
        _fact(
            "mean square",
            s.mean_square,
            "factor on delta's mean square",
            middle(2 * s.frobenius.value * s.frobenius.error / s.columns),
        )
    )
    if sides(s) > 1:
        result.append(_fact("distortion", s.distortion, "0 is a multiple of an isometry"))
    angle = middle(s.angle)
    if angle is not None and s.rows >= s.columns > 1:
        text = "below 0.01" if angle < 0.01 else f"{angle:.3g}"
        result.append(Fact("angle", text, "", "degrees a right angle may lose"))
    what = "ln |det J|" if s.rows == s.columns else "sum of ln s"
    if deep is not None and deep.whole:
        sums = deep.log_values.sum(axis=1)
    elif s.log_volume is not None:
        sums = s.log_volume
        what += ", at most" if found.hidden else ""
    else:
        return result
    result.append(_nats("log-volume", sums, what))
    return result


def _lower_end(s: Spectrum, found: Reach, deep: DeepSpectrum | None) -> list[Fact]:
    """The smallest singular value and the condition number; nothing where they are not known."""
    low = least(s)
    if found.low is None or found.decades is None:
        return []
    condition = power(found.high - found.low)
    if found.hidden and low is not None:
        lost = int(np.median((s.values <= s.resolution[:, None]).sum(axis=1)))
        return [
            Fact("smallest", f"< {power(found.low)}", "", "lost in rounding"),
            Fact("condition", f"> {condition}", "", "largest / smallest"),
            *(
                [Fact("lost", f"{lost:,}", "", f"of {sides(s):,} directions, below rounding")]
                if s.whole
                else []
            ),
        ]
    swept = low is None or found.low != _ln(middle(low))
    if swept and deep is not None:
        ends = np.sort(deep.log_values[:, -1])
        ranged = power(float(ends[0])), power(float(ends[-1]))
        spread = f"{ranged[0]} to {ranged[1]}" if ranged[0] != ranged[1] else ""
        smallest = Fact("smallest", power(found.low), spread, "and at least, by sweeps")
        return [smallest, Fact("condition", condition, "", "largest / smallest")]
    assert low is not None
    result = [_fact("smallest", low, "and at least")]
    if s.condition is not None:
        result.append(_fact("condition", s.condition, "largest / smallest"))
    return result


def _nats(name: str, values: np.ndarray, meaning: str) -> Fact:
    ends = [words.nats(float(v)) if np.isfinite(v) else power(float(v)) for v in np.sort(values)]
    centre = middle(values)
    text = "-infinite" if centre == -math.inf else words.nats(centre or 0.0)
    spread = f"{ends[0]} to {ends[-1]}" if ends[0] != ends[-1] and "zero" not in ends else ""
    return Fact(name, text, spread, meaning)


def _fact(name: str, values: np.ndarray, meaning: str, error: float | None = None) -> Fact:
    low, high = words.number(float(np.min(values))), words.number(float(np.max(values)))
    spread = f"{low} to {high}" if low != high else ""
    centre = middle(values) or 0.0
    if error is not None and math.isfinite(error) and error > 1e-3 * abs(centre):
        spread += f"{', ' if spread else ''}error {words.number(error)}"
    return Fact(name, words.number(centre), spread, meaning)


def deep_sentence(deep: DeepSpectrum) -> str:
    """The log-spectrum by sweeps, in a sentence."""
    r = deep.log_values.shape[1]
    values = np.median(np.where(np.isneginf(deep.log_values), np.nan, deep.log_values), axis=0)
    finite = values[np.isfinite(values)]
    which = f"all {r:,}" if deep.whole else f"the {r:,} largest"
    sweeps = words.plural(deep.sweeps, "sweep")
    head = f"Log-spectrum over {words.plural(len(deep.sites) - 1, 'block')} by {sweeps}: {which}"
    if not len(finite):
        return f"{head} singular values are exactly zero."
    high, low = float(finite.max()), float(finite.min())
    text = f"{head}, ln s from {words.nats(high)} down to {words.nats(low)} (s = {power(low)})"
    text += f", {_decades((high - low) / LN10)}"
    errors = np.median(deep.errors, axis=0)[np.isfinite(values)]
    if errors.max() > 0.05:
        text += f", error up to {words.number(float(errors.max()))} nats"
    zero = r - len(finite)
    return text + (f"; {zero:,} exactly zero." if zero else ".")


def certificate_sentence(spectra: Spectra) -> str:
    """What the blocks by themselves promise, and what was measured; empty without residual ones."""
    certificate = spectra.certificate
    if certificate is None:
        return ""
    low, high = middle(certificate.log_low), middle(certificate.log_high)
    assert low is not None
    assert high is not None
    count = certificate.blocks
    text = f"Certificate of {words.plural(count, 'residual block')}: "
    if low == -math.inf:
        text += f"no singular value above {power(high)}; nothing is promised from below: a branch "
        text += "has s_1(X) of 1 or more, or another block may lose a direction."
    else:
        text += f"every singular value lies between {power(low)} and {power(high)}."
    found = reach(spectra)
    measured = "" if found.low is None else f"{power(found.low)} to "
    text += f" Measured: {'below ' if found.hidden else ''}{measured}{power(found.high)}."
    others = len(spectra.blocks) - count
    if others > 0:
        text += f" {words.plural(others, 'other block')} between the ends "
        text += f"count{'s' if others == 1 else ''} with {'its' if others == 1 else 'their'} own "
        text += "smallest and largest."
    return text


def skipped_sentences(spectra: Spectra, limit: int = 6) -> Iterator[str]:
    """Blocks that could not be measured, those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for block, why in spectra.skipped.items():
        by_reason.setdefault(words.clean(why), []).append(words.clean(block))
    for why, blocks in list(by_reason.items())[:limit]:
        yield f"Not measured: {words.listed(blocks)}: {why.rstrip('.')}."
    if len(by_reason) > limit:
        more = sum(len(blocks) for blocks in list(by_reason.values())[limit:])
        yield f"Not measured: {words.plural(more, 'more block')}."


def about(spectra: Spectra) -> list[tuple[str, str]]:
    """What was looked at, as pairs of a name and a value."""
    s = spectra.between
    measured = "all" if s.whole else f"{s.values.shape[1]} largest"
    measured += f", {s.smallest.shape[1]} smallest" if s.smallest.shape[1] and not s.whole else ""
    pairs = [
        ("model", words.clean(spectra.model)),
        ("samples", f"{spectra.samples:,}"),
        ("J", f"{s.rows:,} × {s.columns:,}"),
        ("singular values", measured),
        ("measured by", words.clean(s.method)),
    ]
    if spectra.blocks:
        residual = sum(block.residual for block in spectra.blocks)
        of = f", {residual:,} residual" if residual else ""
        pairs.insert(4, ("blocks", f"{len(spectra.blocks):,}{of}"))
    return pairs


def _decades(value: float) -> str:
    text = f"{value:.1f}"
    return f"{text} decade{'' if text == '1.0' else 's'}"


def _small(value: float) -> str:
    return "below 0.001" if value < 1e-3 else words.number(value)


def _ln(value: float | None) -> float:
    if value is None or math.isnan(value):
        return math.nan
    if value <= 0:
        return -math.inf
    return math.log(value) if value < math.inf else math.inf
