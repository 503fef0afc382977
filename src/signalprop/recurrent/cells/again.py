"""Gradients that can be derived again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def again(
    twin: Callable[..., tuple[Tensor, ...]],
    given: Iterable[Tensor | None],
    mask: Tensor | None,
    gradients: Sequence[Tensor],
) -> list[Tensor | None]:
    """The gradients of a cell by autograd through its unrolled twin.

    Args:
        twin: the cell step by step, of what was given and the mask.
        given: tensors that it was given; None for those that it was not.
        mask: of steps that count.
        gradients: of its outputs.

    Returns:
        One for each that was given, None where none is needed.
    """
    given = list(given)
    wanted = [x for x in given if x is not None and x.requires_grad]
    made = torch.autograd.grad(
        twin(*given, mask), wanted, gradients, create_graph=True, allow_unused=True
    )
    found = iter(made)
    return [next(found) if x is not None and x.requires_grad else None for x in given]


def as_forward(like: Tensor) -> torch.autocast:
    """Autocast off, as it is while the cells run forward, wherever the backward pass is started."""
    return torch.autocast(like.device.type, enabled=False)
