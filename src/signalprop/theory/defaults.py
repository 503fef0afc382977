"""What torch's own defaults and gains mean: every figure is read from the torch installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from signalprop.theory.meanfield import MeanField, Phase

#: the gradient counts as kept where its norm changes by less than this factor over 50 layers
_KEPT = 2.0
_LAYERS = 50


@dataclass(frozen=True)
class Default:
    """An activation with an initialisation, and what mean-field theory says of the pair.

    Attributes:
        activation: name of the activation.
        initialisation: the call that makes the weights.
        weight_variance: sigma_w^2 = n_in Var(W), as drawn by torch.
        bias_variance: sigma_b^2, as drawn by torch.
        q_star: variance that pre-activations settle at; 0 or inf where they vanish or grow.
        chi_1: what the squared gradient norm is multiplied with per layer.
        xi_c: depth in layers over which the correlation of two inputs comes e times nearer to its
            fixed point; nan where q has none above 0.
        trainable_depth: 6 xi_c.
        factor: sqrt(chi_1), what the gradient norm is multiplied with per layer on its way back.
        e_fold: layers over which the gradient norm changes by a factor e; inf at criticality.
        phase: ordered, critical, chaotic, vanishing or unbounded.
        verdict: the same in words.
    """

    activation: str
    initialisation: str
    weight_variance: float
    bias_variance: float
    q_star: float
    chi_1: float
    xi_c: float
    trainable_depth: float
    factor: float
    e_fold: float
    phase: Phase
    verdict: str


def linear_default(width: int = 512) -> tuple[float, float]:
    """(sigma_w^2, sigma_b^2) of `torch.nn.Linear(width, ...)`, from one that torch draws.

    Both are uniform, so that the largest entry tells the variance: bound^2 / 3. The random state
    is left as it was.

    Args:
        width: n_in of the layer.

    Returns:
        n_in Var(W), which is 1/3 (kaiming_uniform_ with a = sqrt(5)), and Var(b) = 1 / (3 n_in).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(width, 4096, dtype=torch.float64)
        weight, bias = (float(p.detach().abs().max()) ** 2 / 3 for p in layer.parameters())
    return width * weight, bias


def drawn_variance(initialise: Callable[[Tensor], object], width: int = 512) -> float:
    """n_in Var(W) of a square matrix that an initialiser of `torch.nn.init` fills.

    Args:
        initialise: fills a tensor in place, e.g. `torch.nn.init.orthogonal_`.
        width: rows and columns; the sampling error is about sqrt(2) / width, relative.

    Returns:
        sigma_w^2, from the mean square of the entries.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        matrix = torch.empty(width, width, dtype=torch.float64)
        with torch.no_grad():
            initialise(matrix)
    return width * float(matrix.square().mean())


def defaults(width: int = 512) -> tuple[Default, ...]:
    """What torch's defaults and gains mean for a deep fully connected network.

    Args:
        width: width of the layers; it sets the bias variance of `nn.Linear`'s default alone.

    Returns:
        A row per activation and initialisation.
    """
    weight, bias = linear_default(width)
    rows = [
        describe(name, "nn.Linear default", weight, bias)
        for name in ("tanh", "sigmoid", "relu", "leaky_relu", "gelu", "silu", "elu", "selu")
    ]
    for name, gain_of, parameter in (
        ("tanh", "linear", None),
        ("tanh", "tanh", None),
        ("sigmoid", "sigmoid", None),
        ("relu", "linear", None),
        ("relu", "relu", None),
        ("leaky_relu", "leaky_relu", 0.01),
        ("gelu", "relu", None),
        ("silu", "relu", None),
        ("elu", "relu", None),
        ("selu", "linear", None),
        ("selu", "selu", None),
    ):
        rows.append(describe(name, *_gained(gain_of, parameter)))
    return tuple(rows)


def _gained(gain_of: str, parameter: float | None) -> tuple[str, float]:
    """The call, and gain^2: on a square layer xavier_ and kaiming_ (fan_in) agree."""
    # the names are Literal types in newer versions of torch and plain strings in older ones
    calculate: Callable[..., float] = nn.init.calculate_gain
    gain = calculate(gain_of, parameter) if parameter is not None else calculate(gain_of)
    known = {
        "linear": "LeCun / Xavier, gain 1",
        "relu": "He: kaiming_normal_(nonlinearity='relu')",
    }
    words = known.get(gain_of, f"gain = calculate_gain('{gain_of}') = {gain:.4g}")
    return words, gain * gain


def describe(
    activation: str | nn.Module, initialisation: str, weight_variance: float, bias: float = 0.0
) -> Default:
    """The row of any activation and variances.

    Args:
        activation: name or module.
        initialisation: what to call the initialisation.
        weight_variance: sigma_w^2.
        bias: sigma_b^2.

    Returns:
        What the maps say of it.
    """
    theory = MeanField(activation, weight_variance, bias)
    return Default(
        activation=activation if isinstance(activation, str) else type(activation).__name__,
        initialisation=initialisation,
        weight_variance=weight_variance,
        bias_variance=bias,
        q_star=theory.q_star,
        chi_1=theory.chi_1,
        xi_c=theory.xi_c,
        trainable_depth=theory.trainable_depth,
        factor=theory.gradient_factor,
        e_fold=_e_fold(theory.gradient_rate),
        phase=theory.phase,
        verdict=_verdict(theory),
    )


def _e_fold(rate: float) -> float:
    return math.inf if abs(rate) < 1e-6 else 1.0 / abs(rate)


def _verdict(theory: MeanField) -> str:
    """The rate and what follows from it over some depth, from q = 1 on, in one sentence."""
    rate, total = theory.gradient_rate, _nats(theory, _LAYERS)
    size = f"{math.exp(abs(total)):.2g}" if abs(total) < 7 else f"{math.exp(abs(total)):.0e}"
    steady = abs(rate) > 0.01 and rate * total > 0
    per_layer = f"{math.exp(abs(rate)):.3g} per layer, " if steady else ""
    if abs(total) <= math.log(_KEPT):
        gradient = f"the gradient is kept (times {math.exp(total):.2g} over {_LAYERS} layers)"
    else:
        verb = "loses" if total < 0 else "gains"
        gradient = f"the gradient {verb} a factor {per_layer}{size} over {_LAYERS} layers"
        if not steady:
            gradient += f", while q goes from 1 to {theory.q_star:.2g}"
    forward = {
        "vanishing": "activations go to zero",
        "unbounded": "activations grow without bound",
        "unsettled": "activations do not settle",
        "ordered": "inputs become alike",
        "critical": "inputs keep their differences longest",
        "chaotic": "inputs that are alike are driven apart",
    }[theory.phase]
    return f"{gradient}; {forward}"


def _nats(theory: MeanField, layers: int) -> float:
    """What theory expects over a number of layers, the first pre-activation at q = 1."""
    qs = [1.0]
    for _ in range(layers - 1):
        qs.append(float(theory.variance(qs[-1])))
    return 0.5 * float(np.log(theory.chi(np.array(qs))).sum())
