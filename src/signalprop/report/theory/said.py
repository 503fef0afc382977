"""What theory says, in words and numbers that every view shares."""

from __future__ import annotations

import math

import numpy as np

from signalprop.report import words
from signalprop.report.spectra.said import power
from signalprop.report.theory.result import PhaseView
from signalprop.theory.meanfield import MeanField

#: phases in words
PHASES = {
    "ordered": "inputs become alike, gradients vanish",
    "critical": "on the edge of chaos",
    "chaotic": "inputs part, gradients explode",
    "vanishing": "activations go to zero",
    "unbounded": "activations grow without bound",
    "unsettled": "activations do not settle",
}


def layers(value: float) -> str:
    """A depth in layers."""
    if math.isnan(value):
        return "none"
    return "infinite" if value == math.inf else words.number(value)


def headline(shown: PhaseView) -> str:
    """The diagram in a sentence or two."""
    diagram = shown.diagram
    name = words.clean(diagram.activation)
    at = np.flatnonzero(np.isfinite(diagram.critical))
    if not len(at):
        text = f"{name} has no edge of chaos in this range."
    elif len(at) == 1:
        i = at[0]
        text = f"The edge of chaos of {name} is the point sigma_w^2 = "
        text += f"{diagram.critical[i]:.4g}, sigma_b^2 = {diagram.bias_variances[i]:.3g}."
    else:
        i, j = at[0], at[-1]
        text = f"The edge of chaos of {name} runs from sigma_w^2 = {diagram.critical[i]:.4g} "
        text += f"at sigma_b^2 = {diagram.bias_variances[i]:.3g} to {diagram.critical[j]:.4g} "
        text += f"at {diagram.bias_variances[j]:.3g}."
    if shown.depth is not None:
        depth = diagram.trainable_depth
        share = float(np.mean(np.nan_to_num(depth, nan=0.0, posinf=np.inf) >= shown.depth))
        text += f" {words.share(share)} of it bears {words.plural(shown.depth, 'layer')}."
    return text


def facts(point: MeanField, depth: int | None = None) -> list[tuple[str, str, str]]:
    """The numbers of one point: name, value, meaning."""
    result = [
        ("phase", point.phase, PHASES[point.phase]),
        ("q*", words.number(point.q_star), "variance that pre-activations settle at"),
        ("chi_1", f"{point.chi_1:.4g}", "factor on delta's mean square per layer"),
        ("factor", f"{point.gradient_factor:.4g}", "factor on |delta| per layer on its way back"),
        ("c*", layers(point.c_star), "correlation that two inputs go to"),
        ("xi_q", layers(point.xi_q), "layers over which q comes e times nearer to q*"),
        ("xi_c", layers(point.xi_c), "layers over which c comes e times nearer to c*"),
        ("6 xi_c", layers(point.trainable_depth), "trainable depth in layers, as observed"),
    ]
    if depth is not None and math.isfinite(point.gradient_rate):
        over = words.plural(depth, "layer")
        total = power(depth * point.gradient_rate)
        result.append((f"at {over}", total, f"factor on |delta| over {over}"))
    return result


def point_sentence(point: MeanField, depth: int | None) -> str:
    """Where a point lies, and whether it bears the depth that is asked for."""
    where = f"sigma_w^2 = {point.weight_variance:g}, sigma_b^2 = {point.bias_variance:g}"
    text = f"{where} is {point.phase}: {PHASES[point.phase]}."
    if depth is None or math.isnan(point.trainable_depth):
        return text
    if point.trainable_depth == math.inf:
        return f"{text} The trainable depth is infinite there."
    verb = "within" if point.trainable_depth >= depth else "deeper than"
    return (
        f"{text} {words.plural(depth, 'layer')} are {verb} the trainable depth of "
        f"{layers(point.trainable_depth)}."
    )
