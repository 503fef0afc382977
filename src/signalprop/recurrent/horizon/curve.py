"""Credit over the lag: a random error on the last state, taken back step by step.

The error of every sample is kept near 1 by powers of two, which round nothing, and its size apart
from it: credit of 1e-200 is as exact as credit of 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from signalprop.capture.time import Horizon
from signalprop.errors import SignalpropError
from signalprop.recurrent.jacobians.steps import Place, Steps

#: |log2 credit| beyond which a float does not hold it
LARGEST = 993


def curve_of(
    steps: Steps, errors: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Horizon, str | None]:
    """The horizon of one layer in one direction.

    Args:
        steps: its step Jacobians.
        errors: how many random errors.
        dtype: of the layer, for the noise floor.
        generator: of the errors.

    Returns:
        It, and what has to be said.

    Raises:
        SignalpropError: a step Jacobian is not finite.
    """
    sizes = sizes_of(steps, errors, generator)
    if bool(sizes.part.isnan().any()):
        t = int(sizes.part.isnan().flatten(1).any(1).nonzero().max()) + 1
        raise SignalpropError(
            f"the step Jacobian of {steps.place.site or 'the model'}, layer {steps.place.layer}, "
            f"is not finite at step {t + 1}; the state or the weights are nan or inf there"
        )
    return horizon_of(steps.place, aligned(sizes, steps.lengths), dtype)


@dataclass(frozen=True)
class Sizes:
    """Sizes of any magnitude, part x 2^power, (T or lags, errors, B) each.

    Attributes:
        part: in [0.5, 1), or 0; nan where there is none.
        power: the exponent.
    """

    part: Tensor
    power: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Sizes:
        """Sizes that a float holds."""
        part, power = x.double().frexp()
        return cls(part, power.long())


def sizes_of(steps: Steps, errors: int, generator: torch.Generator) -> Sizes:
    """The size of the error at every state, (T, errors, B); state t at t - 1."""
    shape = (errors, steps.rows, steps.size)
    u = torch.randn(shape, generator=generator, dtype=torch.float64).to(steps.device)
    parts = torch.empty(steps.length, errors, steps.rows, dtype=torch.float64, device=u.device)
    powers = torch.empty(parts.shape, dtype=torch.long, device=u.device)
    total = torch.zeros(parts.shape[1:], dtype=torch.long, device=u.device)
    for t in range(steps.length, 0, -1):
        parts[t - 1], power = torch.linalg.vector_norm(u, dim=-1).frexp()
        total = total + power
        powers[t - 1] = total
        if t > 1:
            u = steps.back(t, torch.ldexp(u, -power[..., None]))
    return Sizes(parts, powers)


def aligned(sizes: Sizes, lengths: Tensor) -> Sizes:
    """By lag: every sequence counted back from its own end, nan before its beginning."""
    lags = torch.arange(len(sizes.part), device=lengths.device)[:, None]
    at = lengths - 1 - lags
    where = at.clamp_min(0)[:, None].expand_as(sizes.part)
    part, power = sizes.part.gather(0, where), sizes.power.gather(0, where)
    return Sizes(torch.where((at >= 0)[:, None], part, math.nan), power)


def horizon_of(place: Place, sizes: Sizes, dtype: torch.dtype) -> tuple[Horizon, str | None]:
    """A horizon from sizes by lag."""
    going = ~sizes.part.isnan()
    here, top = _root_sum(sizes, going)
    first = Sizes(sizes.part[:1].expand_as(sizes.part), sizes.power[:1].expand_as(sizes.power))
    begun, base = _root_sum(first, going)
    ratios = list(zip((here / begun).tolist(), (top - base).tolist(), strict=True))
    note = None
    cut = next((k for k, (r, p) in enumerate(ratios) if r > 0 and abs(p) > LARGEST), None)
    if cut is not None:
        way = "grows above 1e+299" if ratios[cut][1] > 0 else "falls below 1e-299"
        direction = " (reverse)" if place.reverse else ""
        note = (
            f"{place.site or 'the model'}, layer {place.layer}{direction}: credit {way} at lag "
            f"{cut}, where its curve ends"
        )
        ratios = ratios[:cut]
    credit = tuple(math.ldexp(ratio, power) for ratio, power in ratios)
    lags = tuple(range(len(credit)))
    floor = torch.finfo(dtype).eps
    place_of = (place.site, place.op, place.layer, place.reverse)
    return Horizon(*place_of, lags, credit, floor), note


def _root_sum(sizes: Sizes, going: Tensor) -> tuple[Tensor, Tensor]:
    """The root of the sum of squares of those that are going, (lags,), as part and power."""
    there = going & (sizes.part > 0)
    least = torch.iinfo(torch.int32).min
    top = torch.where(there, sizes.power, least).flatten(1).amax(1)
    top = torch.where(top == least, 0, top)
    shifted = torch.ldexp(sizes.part, (sizes.power - top[:, None, None]).clamp_min(-2000))
    return torch.where(there, shifted, 0).square().sum((1, 2)).sqrt(), top
