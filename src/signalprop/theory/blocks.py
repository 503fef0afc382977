"""What theory expects a stack of blocks to do to the error signal, one function per block.

Every function returns a `Decay`: nats per block, ln(|delta| at the block's input / |delta| at its
output) from mean squares, at infinite width and independent weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from signalprop.errors import SignalpropError
from signalprop.theory.activations import Activation
from signalprop.theory.maps import Moments
from signalprop.theory.meanfield import MeanField

ActivationLike = Activation | str | nn.Module | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Decay:
    """The expected decay of delta over a stack of blocks.

    Attributes:
        block: what the block is.
        rates: nats per block, shape (blocks,), from the input up; negative where delta shrinks.
        formula: how they come about.
        source: where that is from.
    """

    block: str
    rates: np.ndarray
    formula: str
    source: str

    @property
    def nats(self) -> float:
        """ln(|delta| at the input end / |delta| at the output end)."""
        return float(self.rates.sum())

    @property
    def ratio(self) -> float:
        """|delta| at the input end / |delta| at the output end."""
        return math.exp(self.nats) if self.nats < 700 else math.inf

    @property
    def rate(self) -> float:
        """Mean nats per block."""
        return float(self.rates.mean()) if self.rates.size else 0.0


def _same(block: str, rate: float, blocks: int, formula: str, source: str) -> Decay:
    if blocks < 0:
        raise SignalpropError(f"a stack has zero blocks or more, not {blocks}")
    return Decay(block, np.full(blocks, rate), formula, source)


def plain(
    activation: ActivationLike,
    weight_variance: float,
    bias_variance: float = 0.0,
    *,
    blocks: int,
    start: float | None = None,
) -> Decay:
    """phi(W x + b): 0.5 ln chi(q) per block, chi(q) = sigma_w^2 E[phi'(sqrt(q) z)^2].

    Args:
        activation: phi.
        weight_variance: sigma_w^2 = n_in Var(W); orthogonal weights of gain g have g^2.
        bias_variance: sigma_b^2.
        blocks: how many.
        start: mean square of the first block's input, from where q is followed layer by layer; the
            fixed point q* from the first block on where it is not given.

    Returns:
        The expected decay.
    """
    theory = MeanField(activation, weight_variance, bias_variance)
    name = Activation.of(activation).name
    source = "Poole et al. 2016, Schoenholz et al. 2017 (arXiv 1611.01232, eq. 9)"
    if start is None:
        return _same(f"{name}(W x)", theory.gradient_rate, blocks, "0.5 ln chi_1 at q*", source)
    qs = [weight_variance * start + bias_variance]
    for _ in range(blocks - 1):
        qs.append(float(theory.variance(qs[-1])))
    with np.errstate(divide="ignore"):
        rates = 0.5 * np.log(theory.chi(np.array(qs[:blocks])))
    return Decay(f"{name}(W x)", rates, "0.5 ln chi(q_l) along the variance map", source)


def highway(
    bias: float,
    *,
    blocks: int,
    activation: ActivationLike = "tanh",
    weight_variance: float = 0.0,
    gate_weight_variance: float = 0.0,
    start: float = 1.0,
) -> Decay:
    """T h + (1 - T) x with T = sigmoid(W_T x + b_T), h = phi(W x).

    With both weight variances 0 it is what the carry alone passes, (1 - sigmoid(b_T))^blocks: the
    rule of Srivastava et al. With them, every path counts: per block 0.5 ln of
    E[(1-T)^2] + sigma_w^2 E[T^2] E[phi'^2] + sigma_T^2 E[T'^2] E[(h - x)^2], the mean square of x
    followed through the blocks.

    Args:
        bias: b_T.
        blocks: how many.
        activation: phi.
        weight_variance: sigma_w^2 of the transform's weights.
        gate_weight_variance: sigma_T^2 of the gate's weights.
        start: mean square of the first block's input.

    Returns:
        The expected decay.
    """
    phi, gate = Moments(Activation.of(activation)), Activation.of("sigmoid")
    square, rates = start, list[float]()
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()
    for _ in range(blocks):
        u = bias + math.sqrt(gate_weight_variance * square) * nodes
        t, dt = gate.both(u)
        q = weight_variance * square
        hidden, slope = float(phi.square(q)), float(phi.slope_square(max(q, 1e-24)))
        carried, opened = float(weights @ (1 - t) ** 2), float(weights @ t**2)
        gain = carried + weight_variance * opened * slope
        gain += gate_weight_variance * float(weights @ dt**2) * (hidden + square)
        rates.append(0.5 * math.log(gain))
        square = carried * square + opened * hidden
    only = weight_variance == 0.0 == gate_weight_variance
    return Decay(
        f"highway b_T={bias:g}",
        np.array(rates),
        "ln(1 - sigmoid(b_T)), the carry"
        if only
        else "0.5 ln(E(1-T)^2 + sw^2 E T^2 E phi'^2 + sT^2 E T'^2 E(h-x)^2)",
        "Srivastava et al. 2015 (arXiv 1505.00387) for the carry; second moments of the block",
    )


def residual(
    activation: ActivationLike,
    weight_variance: float,
    *,
    blocks: int,
    scale: float = 1.0,
    bias_variance: float = 0.0,
    start: float = 1.0,
) -> Decay:
    """Residual x + scale W phi(x): 0.5 ln(1 + scale^2 chi(q)) per block, q the mean square of x.

    For ReLU with He weights chi = 1 at every q: sqrt(2)^blocks without a scale, and with
    scale = 1/sqrt(L) (1 + 1/L)^(L/2), which goes to sqrt(e) = 1.65 and no further at any depth.

    Args:
        activation: phi.
        weight_variance: sigma_w^2.
        blocks: how many.
        scale: factor of the branch.
        bias_variance: sigma_b^2.
        start: mean square of the first block's input.

    Returns:
        The expected decay.
    """
    theory = MeanField(activation, weight_variance, bias_variance)
    q, rates = start, list[float]()
    for _ in range(blocks):
        rates.append(0.5 * math.log1p(scale**2 * float(theory.chi(q))))
        q += scale**2 * float(theory.variance(q))
    return Decay(
        f"x + {scale:.3g} W {Activation.of(activation).name}(x)",
        np.array(rates),
        "0.5 ln(1 + scale^2 chi(q)), q' = q + scale^2 V(q)",
        "Yang & Schoenholz 2017 (arXiv 1712.08969); scale 1/sqrt(L): He et al. 2015, Noci et al. "
        "2022",
    )


def rezero(*, blocks: int) -> Decay:
    """Residual x + 0 F(x): the identity, whatever F is (Bachlechner et al. 2020)."""
    return _same("ReZero", 0.0, blocks, "J = I", "Bachlechner et al. 2020 (arXiv 2003.04887)")


def fixup(*, blocks: int) -> Decay:
    """Residual x + F(x) whose last layer is zero: the identity (Zhang et al. 2019).

    The classifier is zero as well, so that delta itself is zero at the first step; the ratio is
    that of any other delta that is sent back.

    Args:
        blocks: how many.

    Returns:
        The expected decay, zero.
    """
    return _same("Fixup", 0.0, blocks, "J = I", "Zhang et al. 2019 (arXiv 1901.09321)")


def looks_linear(*, blocks: int) -> Decay:
    """CReLU with mirrored orthogonal weights: an isometry at initialisation."""
    return _same(
        "looks-linear CReLU", 0.0, blocks, "W [relu(x); -relu(-x)] = Q x", "Balduzzi et al. 2017"
    )


def layer_norm(activation: ActivationLike, *, blocks: int) -> Decay:
    """Layer phi(LN(W x)) without a skip: 0.5 ln(E[phi'^2] / E[phi^2]) at q = 1, for any sigma_w.

    The norm divides by sigma_w sqrt(E[x^2]), and x is phi of a unit normal. For ReLU, and for every
    activation of degree one, the ratio is 1 at every depth; the inputs go to one direction all the
    same, so that the network does not train. Weights have no bias; the two directions that the
    norm takes out of delta are left out of it.

    Args:
        activation: phi.
        blocks: how many.

    Returns:
        The expected decay.
    """
    moments = Moments(Activation.of(activation))
    return _same(
        f"{moments.activation.name}(LN(W x))",
        0.5 * math.log(float(moments.slope_square(1.0)) / float(moments.square(1.0))),
        blocks,
        "0.5 ln(E phi'^2 / E phi^2) at q = 1",
        "second moments of the block; Yang et al. 2019 (arXiv 1902.08129) for its batch twin",
    )


def batch_norm(activation: ActivationLike, *, blocks: int) -> Decay:
    """Layer phi(BN(W x)) without a skip: 0.5 ln(E[phi'^2] / Var[phi]) at q = 1, for any sigma_w.

    For ReLU sqrt(pi / (pi - 1)) = 1.211 per layer: no initialisation avoids it. Large batch whose
    samples have become uncorrelated, which takes a few layers; the norm subtracts the mean over the
    batch, so that the variance of phi stands where layer_norm has its mean square.

    Args:
        activation: phi.
        blocks: how many.

    Returns:
        The expected decay.
    """
    moments = Moments(Activation.of(activation))
    variance = float(moments.square(1.0)) - float(moments.mean(1.0)) ** 2
    return _same(
        f"{moments.activation.name}(BN(W x))",
        0.5 * math.log(float(moments.slope_square(1.0)) / variance),
        blocks,
        "0.5 ln(E phi'^2 / Var phi) at q = 1",
        "Yang et al. 2019 (arXiv 1902.08129, theorem 3.10 for ReLU: pi / (pi - 1))",
    )
