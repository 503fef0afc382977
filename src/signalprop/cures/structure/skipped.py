"""Modules with a skip around them: what `residual` and `highway` put into a network.

Nothing is wrapped, so no name in the network changes. A plain `nn.Sequential` becomes a subclass
that adds skips between its own children; any other module gets a forward hook. The parameters of
the skips lie beside those of the module that they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.cures.structure.hooked import Hook


def added(x: Tensor, y: Tensor, alpha: Tensor) -> Tensor:
    """The sum x + alpha y."""
    return x + alpha * y


def gated(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """T y + (1 - T) x, T = sigmoid(W x + b): a dense or 1x1 convolutional gate."""
    dims = weight.ndim - 2
    inner = (F.linear, F.conv1d, F.conv2d, F.conv3d)[dims](x, weight, bias)
    t = torch.sigmoid(inner)
    return t * y + (1.0 - t) * x


class SkipSequential(nn.Sequential):
    """A Sequential with skips around runs of its children, which keep their names.

    `skips` maps the name of the last child of a run to that of its first. Runs do not overlap.
    """

    skips: Mapping[str, str] = {}
    #: names of the parameters of one skip
    own: tuple[str, ...] = ()

    def joined(self, run: str, x: Tensor, y: Tensor) -> Tensor:
        """The sum of skip and branch of the run that begins with a child."""
        raise NotImplementedError

    def forward(self, input: Any) -> Any:
        """As in Sequential, with the skips."""
        x = skip = input
        firsts = set(self.skips.values())
        for name, module in self._modules.items():
            assert module is not None
            if name in firsts:
                skip = x
            x = module(x)
            if name in self.skips:
                x = self.joined(self.skips[name], skip, x)
        return x

    def __getitem__(self, idx: slice | int) -> nn.Module:
        """A child; of a slice a Sequential with the skips that lie wholly inside it."""
        if not isinstance(idx, slice):
            return super().__getitem__(idx)
        inside = list(self._modules.items())[idx]
        part = type(self)()
        for name, module in inside:
            part.add_module(name, module)
        names = {name for name, _ in inside}
        part.skips = {b: a for b, a in self.skips.items() if a in names and b in names}
        for run in part.skips.values():
            for own in self.own:
                part.register_parameter(f"{own}_{run}", self._parameters[f"{own}_{run}"])
        return part

    def extra_repr(self) -> str:
        """Where the skips are."""
        return "skips=" + ", ".join(f"{a}..{b}" for b, a in self.skips.items())


class ResidualSequential(SkipSequential):
    """Makes x + alpha F(x) around every run F, alpha a learnt scalar of each."""

    own = ("alpha",)

    def joined(self, run: str, x: Tensor, y: Tensor) -> Tensor:
        """The sum x + alpha y."""
        return added(x, y, getattr(self, f"alpha_{run}"))


class HighwaySequential(SkipSequential):
    """Makes T F(x) + (1 - T) x around every run F, T = sigmoid(W x + b) a learnt gate of each."""

    own = ("gate_weight", "gate_bias")

    def joined(self, run: str, x: Tensor, y: Tensor) -> Tensor:
        """The gated sum T y + (1 - T) x."""
        return gated(x, y, getattr(self, f"gate_weight_{run}"), getattr(self, f"gate_bias_{run}"))


class ResidualHook(Hook):
    """Makes x + alpha F(x), alpha the parameter `skip_alpha` of the module."""

    def changed(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The sum x + alpha y."""
        alpha = module.skip_alpha
        assert isinstance(alpha, Tensor)
        return added(x, y, alpha)


class HighwayHook(Hook):
    """Makes T F(x) + (1 - T) x, the gate from the module's `skip_gate_weight`, `skip_gate_bias`."""

    def changed(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The gated sum T y + (1 - T) x."""
        weight, bias = module.skip_gate_weight, module.skip_gate_bias
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        return gated(x, y, weight, bias)
