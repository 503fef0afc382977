r"""Residual blocks A and B, fully connected, and the network of them.

| kind | block                                | source                                           |
|------|--------------------------------------|--------------------------------------------------|
| A    | y = ReLU(x + alpha F(x))             | He et al. 2016, "Deep Residual Learning", eq. 1  |
| B    | y = x + alpha F(ReLU(x))             | He et al. 2016, "Identity Mappings", eq. 3 and 4 |

In A the error signal passes a ReLU at every addition, prod_l D_l (I + alpha F'_l); in B the skip
path is free of everything, prod_l (I + alpha F'_l). What `branch` sets alpha to:

| branch     | alpha                         | source                         |
|------------|-------------------------------|--------------------------------|
| None       | 1; F normalised               | He et al. 2016                 |
| a number   | that, fixed, as 1/sqrt(L)     | see below                      |
| "skipinit" | learnt, 0 at the start        | De & Smith 2020                |
| "rezero"   | the same; never normalised    | Bachlechner et al. 2020, eq. 1 |
| "fixup"    | learnt, 1; other rules below  | Zhang, Dauphin & Ma 2019       |

Fixup, of L branches of m weight layers: the last weights of F are 0, its others L^(-1/(2m-2)) times
He's, the head is 0, and scalar biases stand before every weight layer and ReLU. With the last three
a block B is the identity at the start, and so is A on what is not negative.

At the start F of B gives what has the variance of its input (without normalisation) or variance 1
(with it). So a stack multiplies the variance by (1 + alpha^2)^L, 2^L without a multiplier and at
most e for 1/sqrt(L); with normalisation it adds 1 per block.

While alpha = 0 no gradient reaches the weights of F: the first step moves alpha alone.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from signalprop.nets import _checks
from signalprop.nets._branch import Kind, Multiplier, Norm, plan, reset


class Residual(nn.Module):
    """Fully connected residual block of kind A or B; see the table above.

    Where `out_features` differs from `in_features` the skip is a linear projection, with BatchNorm
    where A has it, and in B of the same rectified input that the branch sees.

    Args:
        in_features: last dimension of x.
        out_features: last dimension of y; `in_features` where it is None.
        kind: "A" or "B".
        branch: None, "skipinit", "rezero", "fixup" or a number.
        norm: "batch", "layer" or None; "auto" is "batch" where `branch` is None, and None else.
        layers: weight layers m of the branch.
        depth: residual blocks L in the whole network; needed by "fixup".
        device: as for `torch.nn.Linear`.
        dtype: as for `torch.nn.Linear`.

    Shape:
        (..., in_features) to (..., out_features); (batch, in_features) with BatchNorm.

    Raises:
        ValueError: an argument is out of range, or two contradict each other.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        kind: Kind = "B",
        branch: Multiplier = None,
        norm: Norm = "auto",
        layers: int = 2,
        depth: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.whole("in_features", in_features)
        out = in_features if out_features is None else _checks.whole("out_features", out_features)
        sizes = [out] * _checks.whole("layers", layers)
        self.plan = plan(kind, branch, norm, depth, device=device, dtype=dtype)

        def linear(n: int, bias: bool) -> nn.Linear:
            return nn.Linear(n, out, bias=bias, device=device, dtype=dtype)

        # in A the ReLU is behind the sum, and what is added is x itself
        rectified = self.plan.rectified(in_features, 0) if kind == "B" else []
        self.enter = nn.Sequential(OrderedDict(rectified))
        weights = [linear(n, self.plan.bias) for n in [in_features, *sizes[:-1]]]
        self.branch = self.plan.branch(weights, sizes, 0)
        self.project: nn.Module | None = None
        if out != in_features:
            behind = self.plan.normalise(out, 0) if kind == "A" else []
            self.project = nn.Sequential(
                OrderedDict([("weight", linear(in_features, self.plan.bias)), *behind])
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the table says, on weights from N(0, 2 / fan_in) (He et al. 2015)."""
        reset(self)
        self.plan.shrink(self.branch)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of skip and branch, rectified in A."""
        entered = self.enter(x)
        skip = x if self.project is None else self.project(entered)
        y = skip + self.branch(entered)
        return torch.relu(y) if self.plan.kind == "A" else y

    def extra_repr(self) -> str:
        """Kind and multiplier."""
        return f"kind={self.plan.kind!r}, branch={self.plan.multiplier!r}"


class ResidualNet(nn.Module):
    """A first linear layer, `depth` residual blocks of equal width and a linear head.

    In A the first layer is normalised and rectified before the blocks, in B what leaves the blocks
    is, before the head.

    Args:
        in_features: last dimension of the input.
        width: units of every hidden layer.
        depth: residual blocks L, of `layers` weight layers each.
        out_features: last dimension of the output.
        kind: "A" or "B".
        branch: None, "skipinit", "rezero", "fixup" or a number such as depth ** -0.5.
        norm: "batch", "layer" or None; "auto" is "batch" where `branch` is None, and None else.
        layers: weight layers m of a branch.
        device: as for `torch.nn.Linear`.
        dtype: as for `torch.nn.Linear`.

    Shape:
        (..., in_features) to (..., out_features); (batch, in_features) with BatchNorm.

    Raises:
        ValueError: an argument is out of range, or two contradict each other.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        depth: int,
        out_features: int,
        *,
        kind: Kind = "B",
        branch: Multiplier = None,
        norm: Norm = "auto",
        layers: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_features", in_features),
            ("width", width),
            ("depth", depth),
            ("out_features", out_features),
        ):
            _checks.whole(name, value)
        made = plan(kind, branch, norm, depth, device=device, dtype=dtype)
        self.plan = made
        self.first = nn.Linear(in_features, width, bias=made.bias, device=device, dtype=dtype)
        around = made.rectified(width, 0)
        self.enter = nn.Sequential(OrderedDict(around if kind == "A" else []))
        self.blocks = nn.Sequential(
            *(
                Residual(
                    width,
                    kind=kind,
                    branch=branch,
                    norm=norm,
                    layers=layers,
                    depth=depth,
                    device=device,
                    dtype=dtype,
                )
                for _ in range(depth)
            )
        )
        self.leave = nn.Sequential(OrderedDict(around if kind == "B" else []))
        self.head = nn.Linear(width, out_features, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every block as it starts, the other weights after He, Fixup's head at zero."""
        reset(self)
        if self.plan.fixup:
            nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Output of the head."""
        return self.head(self.leave(self.blocks(self.enter(self.first(x)))))
