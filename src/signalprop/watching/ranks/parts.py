"""What of a tensor lies on this rank, and how the ranks' parts make the whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def placements(x: Tensor) -> tuple[Any, ...] | None:
    """How a tensor is spread over the dimensions of a mesh; None for one that is not."""
    return getattr(x, "placements", None)


def part(x: Tensor) -> Tensor | None:
    """What of an activation or of delta lies on this rank.

    Args:
        x: plain, or spread over ranks (DTensor).

    Returns:
        A plain tensor; None where the ranks hold terms of a sum that has not been made, which tell
        nothing of it.
    """
    spread = placements(x)
    if spread is not None:
        if any(place.is_partial() for place in spread):
            return None
        x = x.to_local()  # type: ignore[attr-defined]
    waits = getattr(x, "trigger_wait", None)  # the result of a collective that may be under way
    return x if waits is None else waits()


def counted(parameter: Tensor, world: int) -> float:
    """The weight of a rank's sums over its part, so that every element counts once over all ranks.

    Args:
        parameter: plain: the same on every rank; or a DTensor.
        world: number of ranks.

    Returns:
        1 where it is split over all ranks, 1 / world where every rank has all of it.
    """
    spread = placements(parameter)
    if spread is None:
        return 1 / world
    mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
    copies = math.prod(mesh.size(dim) for dim, place in enumerate(spread) if place.is_replicate())
    return mesh.size() / world / copies


def unlike(parameter: Tensor) -> bool:
    """Whether a gradient is spread otherwise than its parameter: as terms of a sum, say."""
    gradient = parameter.grad
    if gradient is None:
        return False
    return placements(gradient) != placements(parameter)


def like(parameter: Tensor) -> Tensor:
    """The gradient spread as its parameter is; a collective of the parameter's own ranks."""
    gradient: Any = parameter.grad
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return gradient.full_tensor()
    return gradient.redistribute(mesh, placements(parameter))


def shards(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, Any]]:
    """Modules that `fully_shard` was called on, and their groups of parameters."""
    for module in model.modules():
        state_of: Any = getattr(module, "_get_fsdp_state", None)
        if state_of is None:
            continue
        state = state_of()
        groups = getattr(state, "_fsdp_param_groups", None)  # one group before torch 2.10
        if groups is None:
            group = getattr(state, "_fsdp_param_group", None)
            groups = [group] if group is not None else list[Any]()
        for group in groups:
            yield module, group


def parameters_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters by name: of a sharded model those that the optimizer holds.

    Between the forward passes of an evaluation `fully_shard` leaves the gathered ones in the
    modules.

    Args:
        model: without wrappers.

    Returns:
        By name, in the model's order.
    """
    found: dict[str, Tensor] = dict(model.named_parameters())
    groups = [group for _, group in shards(model)]
    if not groups:
        return found
    held = {}
    for one in (one for group in groups for one in group.fsdp_params):
        info = one._module_info
        held[id(info.module), info.param_name] = one.sharded_param
    names = {id(module): name for name, module in model.named_modules()}
    for (module, name), parameter in held.items():
        path = names.get(module)
        full = f"{path}.{name}" if path else name
        if full in found:
            found[full] = parameter
    return found
