"""What theory expects of every block of a traced network, next to what was measured.

The weights' own variance and the measured moments of the pre-activations are put into the closed
forms, so that the width, the activation and the initialisation of that very network are in them.
The forms take weights that are independent of delta, as at initialisation; a trained network may
differ from them, and by how much is what is worth seeing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from signalprop.capture.observe import unwrapped
from signalprop.capture.sandbox import untouched
from signalprop.capture.trace import Block, Site, Trace
from signalprop.theory.gains import Gain, NoClosedFormError, gain_of, gated, meets, scalars


@dataclass(frozen=True)
class BlockExpectation:
    """A block of the spine: decay as theory expects it, and as measured.

    Attributes:
        start: the site at the input end.
        end: the site at the output end.
        expected: ln(|delta at start| / |delta at end|) in nats, from mean squares; None where no
            closed form is known.
        measured: the same as measured, mean over samples.
        formula: the closed form with its numbers; `""` where there is none.
        reason: why there is none; `""` where there is one.
    """

    start: str
    end: str
    expected: float | None
    measured: float
    formula: str
    reason: str

    @property
    def excess(self) -> float | None:
        """Measured minus expected, in nats; None where nothing is expected."""
        return None if self.expected is None else self.measured - self.expected


def expect(trace: Trace, model: nn.Module) -> dict[str, BlockExpectation]:
    """What mean-field theory expects for every block of a trace's spine.

    - weights: 0.5 ln(|W|_F^2 / n_out), which is 0.5 ln(n_in Var(W)); for convolutions with the
      share of taps that padding leaves
    - activation: 0.5 ln E[phi'(u)^2], u normal with the measured mean and variance
    - LayerNorm, RMSNorm, GroupNorm: -ln of what it divides by, + 0.5 ln(mean gamma^2), + the
      directions it takes out; BatchNorm likewise, its variance from the measured rms and
      correlation of samples (by running_var in evaluation mode)
    - residual block: 0.5 ln(1 + branch^2) with the branch's own product, a learnt multiplier alpha
      in it (ln |alpha|); at alpha = 0 the block is the identity
    - highway block: see `theory.blocks.highway`
    - pooling: -0.5 ln(elements averaged); 0 for a maximum

    Single samples scatter about it by about 1 / sqrt(2 width) nats per layer. It misleads where
    delta is not random to the weights: after training, behind global pooling with BatchNorm in
    training mode, and for pre-activations far from normal.

    Args:
        trace: a pass of the model.
        model: the model, for its activations, strides and norms; it is only read.

    Returns:
        The expectation of every block, keyed by the name of the site at its output end, from the
        input up.
    """
    model = unwrapped(model)
    # a parametrised weight is computed when it is read, and may write to buffers as it is
    parametrised = any(is_parametrized(module) for module in model.modules())
    with untouched(model) if parametrised else nullcontext(), torch.no_grad():
        modules = dict(model.named_modules())
        return {block.end: _of_block(block, trace, modules) for block in trace.blocks}


def _of_block(block: Block, trace: Trace, modules: Mapping[str, nn.Module]) -> BlockExpectation:
    try:
        gain = _gain(block, trace, modules)
    except NoClosedFormError as reason:
        return BlockExpectation(block.start, block.end, None, block.decay, "", str(reason))
    return BlockExpectation(block.start, block.end, gain.nats, block.decay, gain.formula, "")


def _gain(block: Block, trace: Trace, modules: Mapping[str, nn.Module]) -> Gain:
    start, end = trace.sites[block.start], trace.sites[block.end]
    inner = [trace.sites[name] for name in block.inner]
    if block.residual:
        if not inner:
            raise NoClosedFormError("no site of the branch was seen")
        alpha = _multiplier(inner[-1], end, trace)
        if alpha == 0:
            return Gain(0.0, "the branch is multiplied by alpha = 0: the block is the identity")
        branch = _chain([start, *inner], trace, modules)
        if alpha != 1:
            nats, told = branch.nats + math.log(alpha), f"{branch.formula} + ln {alpha:.3g}"
            branch = Gain(nats, told)
        if branch.nats == -math.inf:
            return Gain(0.0, "the branch starts at zero: the block is the identity")
        nats = 0.5 * _log1p_exp(2.0 * branch.nats)
        return Gain(nats, f"0.5 ln(1 + e^(2 b)), branch b = {branch.nats:.3g}: {branch.formula}")
    if not inner:
        kinds = {step.kind for step in block.steps} - {end.kind}
        if kinds:
            raise NoClosedFormError(
                f"several operations without a site: {', '.join(sorted(kinds))}"
            )
        return gain_of(end, start, trace, modules)
    if end.op == "add" and any(site.op == "sigmoid" for site in inner):
        return gated(start, inner, end, trace, modules)
    if end.op == "add":
        raise NoClosedFormError("a sum of branches, none of which is the identity")
    return _chain([start, *inner, end], trace, modules)


def _multiplier(last: Site, end: Site, trace: Trace) -> float:
    """|alpha| of a learnt number that the branch is multiplied with on its way into the sum.

    An addition hands delta on as it is; where less or more comes to the last site of the branch
    than to the sum, it has been multiplied, by a parameter that has this size.

    Returns:
        Its absolute value; 1 where there is none.
    """
    above, below = end.delta, last.delta
    if above is None or below is None or not above.rms > 0 or last.shape != end.shape:
        return 1.0
    ratio = below.rms / above.rms
    if meets(ratio, 1.0):
        return 1.0
    owners = {last.module, end.module, *last.aliases, *end.aliases}
    return next((a for path in owners for a in scalars(trace, path) if meets(ratio, a)), 1.0)


def _chain(sites: list[Site], trace: Trace, modules: Mapping[str, nn.Module]) -> Gain:
    """The product along sites that follow one another."""
    gains: list[Gain] = []
    for before, site in itertools.pairwise(sites):
        gains.append(gain_of(site, before, trace, modules))
        if gains[-1].nats == -math.inf:  # nothing comes through, whatever else is on the way
            break
    return Gain(sum(gain.nats for gain in gains), " + ".join(f"{gain.nats:.3g}" for gain in gains))


def _log1p_exp(x: float) -> float:
    """ln(1 + e^x), however large x is."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
