"""The cures of one setting side by side: expected first-to-last ratio of delta at initialisation.

Networks of equal width: h_1 = tanh(W_in x) with W_in of variance 1 / n_in on standardised inputs,
then L - 1 blocks, then a linear classifier. The ratio is |dL/dh_1| / |dL/dh_L|. Measured at width
50 and depth 30 / 50 / 100 it spans more than 19 orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from signalprop.theory import blocks
from signalprop.theory.activations import Activation
from signalprop.theory.blocks import Decay
from signalprop.theory.defaults import linear_default
from signalprop.theory.maps import Moments
from signalprop.theory.rectified import residual_rectified

#: depths the table has columns for
DEPTHS = (30, 50, 100)


@dataclass(frozen=True)
class Row:
    """A block of the table.

    Attributes:
        key: short name, for code.
        block: what it is, in words.
        expected: the decay over the L - 1 blocks of a network of depth L.
        asymptotic: the same from the fixed point alone, which is what is usually quoted; None
            where it is the same.
    """

    key: str
    block: str
    expected: Callable[[int], Decay]
    asymptotic: Callable[[int], Decay] | None = None

    def ratio(self, depth: int) -> float:
        """|delta| at the first block's input / |delta| at the last one's output, at depth L."""
        return self.expected(depth).ratio


def rows(width: int = 50) -> tuple[Row, ...]:
    """The rows of the table, in its order.

    Args:
        width: width of the networks; it sets the biases of `nn.Linear`'s default, and what is
            common to the units of ReLU(x + W x).

    Returns:
        A row per block; `row.expected(depth)` is its `Decay`.
    """
    start = float(Moments(Activation.of("tanh")).square(1.0))
    weight, bias = linear_default(width)
    gain = nn.init.calculate_gain("tanh")

    def plain(key: str, words: str, phi: str, w: float, b: float = 0.0) -> Row:
        return Row(
            key,
            words,
            lambda depth: blocks.plain(phi, w, b, blocks=depth - 1, start=start),
            lambda depth: blocks.plain(phi, w, b, blocks=depth - 1),
        )

    def highway(bias_t: float) -> Row:
        return Row(
            f"highway{bias_t:g}",
            f"highway tanh, b_T = {bias_t:g}",
            lambda depth: blocks.highway(
                bias_t,
                blocks=depth - 1,
                weight_variance=weight,
                gate_weight_variance=weight,
                start=start,
            ),
            lambda depth: blocks.highway(bias_t, blocks=depth - 1),
        )

    def residual(depth: int, scale: float) -> Decay:
        return blocks.residual("relu", 2.0, blocks=depth - 1, scale=scale, start=start)

    return (
        plain("tanh-default", "tanh, nn.Linear default", "tanh", weight, bias),
        plain("relu-default", "ReLU, nn.Linear default", "relu", weight, bias),
        plain("tanh-gain", "tanh, xavier x calculate_gain 5/3", "tanh", gain**2),
        plain("tanh-xavier", "tanh, xavier gain 1", "tanh", 1.0),
        plain("tanh-orthogonal", "tanh, orthogonal 1", "tanh", 1.0),
        plain("tanh-orthogonal-1.05", "tanh, orthogonal 1.05", "tanh", 1.05**2),
        plain("relu-he", "ReLU, He", "relu", 2.0),
        plain("selu-lecun", "SELU, LeCun", "selu", 1.0),
        Row(
            "looks-linear",
            "looks-linear CReLU, mirrored orthogonal",
            lambda depth: blocks.looks_linear(blocks=depth - 1),
        ),
        highway(-1.0),
        highway(-2.0),
        highway(-4.0),
        Row(
            "relu-residual",
            "ReLU(x + W x), He, no norm",
            lambda depth: residual_rectified(2.0, blocks=depth - 1, width=width),
        ),
        Row("residual", "x + W ReLU(x), He, no norm", lambda depth: residual(depth, 1.0)),
        Row(
            "residual-scaled",
            "x + W ReLU(x) / sqrt(L)",
            lambda depth: residual(depth, 1.0 / math.sqrt(depth)),
        ),
        Row("rezero", "ReZero", lambda depth: blocks.rezero(blocks=depth - 1)),
        Row("fixup", "Fixup", lambda depth: blocks.fixup(blocks=depth - 1)),
        Row(
            "layer-norm",
            "ReLU(LN(W x)), no skip",
            lambda depth: blocks.layer_norm("relu", blocks=depth - 1),
        ),
        Row(
            "batch-norm",
            "ReLU(BN(W x)), no skip",
            lambda depth: blocks.batch_norm("relu", blocks=depth - 1),
        ),
    )
