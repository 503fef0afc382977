"""A call that is one node of autograd's graph, however it runs inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from signalprop.recurrent.call import Call, Run


class Whole(torch.autograd.Function):
    """(call, run, its tensors) -> what torch's function returns.

    What looks at the graph from outside, a trace, finds one layer there and not its steps.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, run: Run, *tensors: Tensor) -> Any:  # pyrefly: ignore[bad-override]
        """Run it in a graph of its own."""
        with torch.enable_grad():
            ctx.own = [x.detach().requires_grad_(x.requires_grad) for x in tensors]
            ids = (id(x) for x in call.tensors())
            ctx.made = call.replaced(dict(zip(ids, ctx.own, strict=True))).run(run)
        return tuple(x.detach() for x in ctx.made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyrefly: ignore[bad-override]
        """Through the graph of its own."""
        wanted = [x for x in ctx.own if x.requires_grad]
        found = iter(
            torch.autograd.grad(ctx.made, wanted, gradients, allow_unused=True, retain_graph=True)
        )
        return (None, None, *(next(found) if x.requires_grad else None for x in ctx.own))
