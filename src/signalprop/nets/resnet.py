"""Residual blocks A and B of convolutions, and the 6n+2-layer network of them for small images.

He et al. 2016, "Deep Residual Learning for Image Recognition", sec. 4.2 (A), and "Identity Mappings
in Deep Residual Networks" (B). The blocks' equations and multipliers are those of
`signalprop.nets.residual`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.nets import _checks
from signalprop.nets._branch import Kind, Multiplier, Norm, plan, reset

Shortcut = Literal["projection", "pad"]


class Pad(nn.Module):
    """Every `stride`-th pixel, with zeros for the missing channels: a skip without parameters."""

    def __init__(self, missing: int, stride: int) -> None:
        super().__init__()
        self.missing, self.stride = missing, stride

    def forward(self, x: Tensor) -> Tensor:
        """The smaller image with more channels."""
        x = x[..., :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.missing))

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"missing={self.missing}, stride={self.stride}"


class ResidualConv2d(nn.Module):
    """Residual block of `layers` convolutions, kind A or B; see `signalprop.nets.residual`.

    Where channels or size change, the skip is a 1 x 1 convolution (option B of He et al., sec. 3.3;
    in kind A with normalisation behind it, in kind B on the rectified input that the branch sees),
    or the input with zero channels added (option A).

    Args:
        in_channels: of x.
        out_channels: of y; `in_channels` where it is None.
        kind: "A" or "B".
        stride: of the first convolution; the image gets that much smaller.
        kernel_size: taps a side of the branch's convolutions; odd.
        shortcut: "projection" or "pad".
        branch: None, "skipinit", "rezero", "fixup" or a number.
        norm: "batch", "layer" (one group, all channels and pixels) or None; "auto" is "batch" where
            `branch` is None, and None else.
        layers: convolutions m of the branch.
        depth: residual blocks L in the whole network; needed by "fixup".
        device: as for `torch.nn.Conv2d`.
        dtype: as for `torch.nn.Conv2d`.

    Shape:
        (batch, in_channels, h, w) to (batch, out_channels, ceil(h / stride), ceil(w / stride)).

    Raises:
        ValueError: an argument is out of range, or two contradict each other.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        kind: Kind = "B",
        stride: int = 1,
        kernel_size: int = 3,
        shortcut: Shortcut = "projection",
        branch: Multiplier = None,
        norm: Norm = "auto",
        layers: int = 2,
        depth: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.whole("in_channels", in_channels)
        out = in_channels if out_channels is None else _checks.whole("out_channels", out_channels)
        _checks.whole("stride", stride)
        _checks.odd("kernel_size", kernel_size)
        if shortcut not in ("projection", "pad"):
            raise ValueError(f"shortcut has to be 'projection' or 'pad', not {shortcut!r}")
        if shortcut == "pad" and out < in_channels:
            raise ValueError(
                f"shortcut='pad' cannot go from {in_channels} to {out} channels; use 'projection'"
            )
        sizes = [out] * _checks.whole("layers", layers)
        self.plan = plan(kind, branch, norm, depth, device=device, dtype=dtype)

        def convolution(n: int, taps: int, step: int) -> nn.Conv2d:
            return nn.Conv2d(
                n,
                out,
                taps,
                stride=step,
                padding=taps // 2,
                bias=self.plan.bias,
                device=device,
                dtype=dtype,
            )

        # in A the ReLU is behind the sum, and what is added is x itself
        rectified = self.plan.rectified(in_channels, 2) if kind == "B" else []
        self.enter = nn.Sequential(OrderedDict(rectified))
        weights = [convolution(in_channels, kernel_size, stride)]
        weights += [convolution(out, kernel_size, 1) for _ in sizes[1:]]
        self.branch = self.plan.branch(weights, sizes, 2)
        self.project: nn.Module | None = None
        if (stride > 1 or out != in_channels) and shortcut == "projection":
            behind = self.plan.normalise(out, 2) if kind == "A" else []
            self.project = nn.Sequential(
                OrderedDict([("weight", convolution(in_channels, 1, stride)), *behind])
            )
        self.pad: nn.Module | None = None
        if (stride > 1 or out != in_channels) and shortcut == "pad":
            self.pad = Pad(out - in_channels, stride)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from N(0, 2 / fan_in) (He et al. 2015), multipliers where they start."""
        reset(self)
        self.plan.shrink(self.branch)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of skip and branch, rectified in A."""
        entered = self.enter(x)
        if self.project is not None:
            skip = self.project(entered)
        else:
            skip = x if self.pad is None else self.pad(x)
        y = skip + self.branch(entered)
        return torch.relu(y) if self.plan.kind == "A" else y

    def extra_repr(self) -> str:
        """Kind and multiplier."""
        return f"kind={self.plan.kind!r}, branch={self.plan.multiplier!r}"


class ResNet(nn.Module):
    """The residual network for CIFAR: 6n+2 layers of 3 x 3 convolutions in three stages.

    One convolution, then per width n blocks of two convolutions, the first of every stage but the
    first halving the image, then the mean over the image and a linear head. In A the first
    convolution is normalised and rectified, in B what leaves the blocks.

    Args:
        depth: weight layers in all, 2 n len(widths) + 2: 8, 14, 20, 32, 44, 56, 110, 1202, ...
        out_features: classes.
        in_channels: of the images.
        kind: "A" or "B".
        widths: channels of the stages.
        shortcut: "projection", or "pad" as in the paper's CIFAR networks.
        branch: None, "skipinit", "rezero", "fixup" or a number.
        norm: "batch", "layer" or None; "auto" is "batch" where `branch` is None, and None else.
        device: as for `torch.nn.Conv2d`.
        dtype: as for `torch.nn.Conv2d`.

    Attributes:
        blocks: the residual blocks, all stages in one sequence.

    Shape:
        (batch, in_channels, h, w) to (batch, out_features).

    Raises:
        ValueError: an argument is out of range, or two contradict each other.
    """

    def __init__(
        self,
        depth: int = 20,
        out_features: int = 10,
        *,
        in_channels: int = 3,
        kind: Kind = "A",
        widths: Sequence[int] = (16, 32, 64),
        shortcut: Shortcut = "projection",
        branch: Multiplier = None,
        norm: Norm = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("widths has to name at least one stage's channels")
        for width in widths:
            _checks.whole("widths", width)
        per = 2 * len(widths)
        if _checks.whole("depth", depth) < per + 2 or (depth - 2) % per:
            near = max(1, round((depth - 2) / per)) * per + 2
            raise ValueError(
                f"depth has to be {per}n + 2 with n >= 1, for example {near}, not {depth}"
            )
        _checks.whole("out_features", out_features)
        n = (depth - 2) // per
        count = n * len(widths)
        made = plan(kind, branch, norm, count, device=device, dtype=dtype)
        self.plan = made
        self.first = nn.Conv2d(
            _checks.whole("in_channels", in_channels),
            widths[0],
            3,
            padding=1,
            bias=made.bias,
            device=device,
            dtype=dtype,
        )
        self.enter = nn.Sequential(OrderedDict(made.rectified(widths[0], 2) if kind == "A" else []))
        blocks: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for i in range(n):
                blocks.append(
                    ResidualConv2d(
                        before,
                        width,
                        kind=kind,
                        stride=2 if stage and not i else 1,
                        shortcut=shortcut,
                        branch=branch,
                        norm=norm,
                        depth=count,
                        device=device,
                        dtype=dtype,
                    )
                )
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.leave = nn.Sequential(OrderedDict(made.rectified(before, 2) if kind == "B" else []))
        self.head = nn.Linear(before, out_features, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every block as it starts, the other weights after He, Fixup's head at zero."""
        reset(self)
        if self.plan.fixup:
            nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.leave(self.blocks(self.enter(self.first(x))))
        return self.head(x.mean((-2, -1)))
