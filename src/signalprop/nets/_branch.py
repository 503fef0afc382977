"""What a residual branch is made of: weights, what lies between them, and its multiplier.

A branch F of m weight layers is W_m phi(N(... phi(N(W_1 x)))), phi = ReLU and N a normalisation or
nothing; the block adds alpha F(x) to its input. `Plan` says how, once for fully connected and
convolutional blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from signalprop.nets import _checks

Kind = Literal["A", "B"]
Multiplier = Literal["skipinit", "rezero", "fixup"] | float | None
Norm = Literal["auto", "batch", "layer"] | None


class Scale(nn.Module):
    """alpha x with a scalar alpha, learnt or fixed."""

    def __init__(self, alpha: float, *, learnt: bool, **factory: Any) -> None:
        super().__init__()
        self.start = alpha
        # fixed, it is an argument of the network and no state: a number, exact in every dtype
        self.alpha = nn.Parameter(torch.full((), alpha, **factory)) if learnt else alpha

    def reset_parameters(self) -> None:
        """Put alpha back to where it started."""
        if isinstance(self.alpha, nn.Parameter):
            nn.init.constant_(self.alpha, self.start)

    def forward(self, x: Tensor) -> Tensor:
        """Alpha times x."""
        return self.alpha * x

    def extra_repr(self) -> str:
        """Where alpha starts."""
        return f"{self.start:g}{', learnt' if isinstance(self.alpha, nn.Parameter) else ''}"


class Shift(nn.Module):
    """x + b with one learnt scalar b, 0 at the start: the biases of Fixup."""

    def __init__(self, **factory: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros((), **factory))

    def reset_parameters(self) -> None:
        """Put b back to 0."""
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """X shifted."""
        return x + self.bias


@dataclass(frozen=True)
class Plan:
    """How all blocks of a network are built.

    Attributes:
        kind: "A" has the ReLU behind the addition, "B" before the branch's weights.
        multiplier: alpha, what the branch is multiplied with; see `residual`.
        norm: what normalises, None for nothing.
        depth: number of blocks in the network, which Fixup needs.
        factory: device and dtype.
    """

    kind: Kind
    multiplier: Multiplier
    norm: Literal["batch", "layer"] | None
    depth: int | None
    factory: dict[str, Any]

    @property
    def fixup(self) -> bool:
        """Whether the rules of Fixup hold."""
        return self.multiplier == "fixup"

    @property
    def bias(self) -> bool:
        """Whether weight layers have biases: neither normalisation nor Fixup replaces them."""
        return self.norm is None and not self.fixup

    def normalise(self, size: int, dims: int) -> list[tuple[str, nn.Module]]:
        """The normalisation of `size` channels of images (dims = 2) or of features (0)."""
        if self.norm == "batch":
            made = nn.BatchNorm2d if dims else nn.BatchNorm1d
            return [("norm", made(size, **self.factory))]
        if self.norm == "layer":
            layer = nn.GroupNorm(1, size, **self.factory) if dims else None
            return [("norm", layer or nn.LayerNorm(size, **self.factory))]
        return []

    def shift(self, name: str) -> list[tuple[str, nn.Module]]:
        """A scalar bias, where the rules are those of Fixup."""
        return [(name, Shift(**self.factory))] if self.fixup else []

    def rectified(self, size: int, dims: int) -> list[tuple[str, nn.Module]]:
        """Normalisation, Fixup's bias and the ReLU."""
        return [*self.normalise(size, dims), *self.shift("shift"), ("relu", nn.ReLU())]

    def branch(
        self, weights: Sequence[nn.Module], sizes: Sequence[int], dims: int
    ) -> nn.Sequential:
        """F with its multiplier, from behind the first ReLU of kind B.

        Args:
            weights: the m weight layers.
            sizes: how many features or channels each gives.
            dims: of an image, 0 for features.

        Returns:
            The layers, named weight1, norm1, relu1, weight2, ...
        """
        layers = OrderedDict[str, nn.Module]()
        for i, weight in enumerate(weights, 1):
            layers |= self.shift(f"before{i}")
            layers[f"weight{i}"] = weight
            last = i == len(weights)
            between = self.rectified(sizes[i - 1], dims) if not last else []
            if last and self.kind == "A":
                between = self.normalise(sizes[i - 1], dims)
            layers |= [(f"{name}{i}", layer) for name, layer in between]
        if isinstance(self.multiplier, float):
            layers["scale"] = Scale(self.multiplier, learnt=False, **self.factory)
        elif self.multiplier is not None:
            start = 1.0 if self.fixup else 0.0
            layers["scale"] = Scale(start, learnt=True, **self.factory)
        if self.kind == "A":
            layers |= self.shift("after")
        return nn.Sequential(layers)

    def shrink(self, branch: nn.Sequential) -> None:
        """Fixup's L^(-1/(2m-2)) on the branch's weights, and zeros for its last; else nothing."""
        if not self.fixup or self.depth is None:
            return
        weights = [m.weight for m in branch if isinstance(m, (nn.Linear, nn.Conv2d))]
        with torch.no_grad():
            for weight in weights[:-1]:
                weight.mul_(self.depth ** (-0.5 / (len(weights) - 1)))
            weights[-1].zero_()


def reset(module: nn.Module) -> None:
    """Initialise all below `module`: weights from N(0, 2 / fan_in) with biases 0, the rest itself.

    Source: He et al. 2015, "Delving Deep into Rectifiers", eq. 10.
    """
    for child in module.children():
        if isinstance(child, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(child.weight, nonlinearity="relu")
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif hasattr(child, "reset_parameters"):
            cast(Any, child).reset_parameters()
        else:
            reset(child)


def plan(kind: str, branch: object, norm: str | None, depth: int | None, **factory: Any) -> Plan:
    """The arguments of a block, checked.

    Args:
        kind: "A" or "B".
        branch: the multiplier.
        norm: the normalisation, "auto" for BatchNorm where the branch has no multiplier.
        depth: number of blocks.
        factory: device and dtype.

    Returns:
        What they say.

    Raises:
        ValueError: one of them is none of the known, or two contradict each other.
    """
    if kind not in ("A", "B"):
        raise ValueError(f"kind has to be 'A' (ReLU behind the sum) or 'B' (before), not {kind!r}")
    if norm not in ("auto", "batch", "layer", None):
        raise ValueError(f"norm has to be 'auto', 'batch', 'layer' or None, not {norm!r}")
    if isinstance(branch, (int, float)) and not isinstance(branch, bool):
        multiplier: Multiplier = _checks.number("branch", branch)
    elif branch is None or branch in ("skipinit", "rezero", "fixup"):
        multiplier = cast(Multiplier, branch)
    else:
        raise ValueError(
            f"branch has to be None, 'skipinit', 'rezero', 'fixup' or a number, not {branch!r}"
        )
    if multiplier in ("rezero", "fixup") and norm in ("batch", "layer"):
        raise ValueError(
            f"branch={multiplier!r} is there to do without norm={norm!r}; leave norm out"
        )
    if depth is not None:
        _checks.whole("depth", depth)
    elif multiplier == "fixup":
        raise ValueError(
            "branch='fixup' needs depth=, the number of residual blocks in the network"
        )
    if norm == "auto":
        norm = "batch" if multiplier is None else None
    return Plan(kind, multiplier, cast(Any, norm), depth, factory)
