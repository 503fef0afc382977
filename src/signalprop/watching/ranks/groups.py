"""Which processes train a model together, and which of them see other samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from signalprop.capture.observe import unwrapped
from signalprop.watching.ranks.parts import parameters_of, placements, shards


@dataclass(frozen=True, eq=False)
class Groups:
    """Processes that train together.

    Attributes:
        ranks: all of them, as numbers of the default group, sorted.
        data: groups over which the samples are spread; adding over one after the other adds over
            all ranks that hold the same part of the model.
        device: where the model is.
        signature: what all of them must have in common.
        sharded: whether some parameter is spread over ranks.
        modules: those that `fully_shard` was called on, with their groups.
    """

    ranks: tuple[int, ...]
    data: tuple[Any, ...]
    device: torch.device
    signature: str
    sharded: bool
    modules: tuple[Any, ...] = field(default=())

    @property
    def samples(self) -> int:
        """Ranks with other samples and the same part of the model."""
        return math.prod(dist.get_world_size(group) for group in self.data)

    @property
    def averaged(self) -> float:
        """What the gradients' sum over the ranks is divided by.

        DistributedDataParallel and `fully_shard` average, so a rank's own loss enters the global
        one by 1 / ranks, and so does its delta; `set_gradient_divide_factor` says otherwise.
        """
        for group in self.modules:
            factor = getattr(group, "gradient_divide_factor", None)
            if factor is not None:
                return float(factor)
        return float(self.samples)


def groups_of(models: Sequence[torch.nn.Module], settings: str) -> Groups | None:
    """Who trains these models together.

    Args:
        models: as given to `watch`, wrapped or sharded.
        settings: what else all must have in common.

    Returns:
        None for a process that trains alone.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    plain = [unwrapped(model) for model in models]
    named = [item for model in plain for item in parameters_of(model).items()]
    meshes = [p.device_mesh for _, p in named if placements(p) is not None]  # type: ignore[attr-defined]
    modules = [group for model in plain for _, group in shards(model)]
    data = _data(models, modules, replicas=not meshes)
    ranks = _together(meshes, data)
    if len(ranks) < 2:
        return None
    by_hand = not data or (not meshes and not any(map(_is_replicated, models)))
    lines = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in named]
    if by_hand and not meshes:  # replicas that nobody vouches for: they must be the same
        lines += [_fingerprint(p) for _, p in named]
    signature = hashlib.blake2b("\n".join([settings, *lines]).encode(), digest_size=16)
    return Groups(
        ranks,
        tuple(data),
        _device(named, meshes),
        signature.hexdigest(),
        bool(meshes),
        tuple(modules),
    )


def _is_replicated(model: torch.nn.Module) -> bool:
    return isinstance(model, torch.nn.parallel.DistributedDataParallel) or any(
        isinstance(inner, torch.nn.parallel.DistributedDataParallel) for inner in model.modules()
    )


def _data(
    models: Sequence[torch.nn.Module], modules: Sequence[Any], *, replicas: bool
) -> list[Any]:
    for group in modules:
        info = group.mesh_info
        found = [
            getattr(info, name, None) for name in ("shard_process_group", "replicate_process_group")
        ]
        return [one for one in found if one is not None and dist.get_world_size(one) > 1]
    for model in models:
        for inner in model.modules():
            if isinstance(inner, torch.nn.parallel.DistributedDataParallel):
                return [inner.process_group]
    return [dist.group.WORLD] if replicas else []


def _together(meshes: Sequence[Any], data: Sequence[Any]) -> tuple[int, ...]:
    everyone = set(range(dist.get_world_size()))
    sets = [set(mesh.mesh.flatten().tolist()) for mesh in meshes]
    sets += [set(dist.get_process_group_ranks(group)) for group in data]
    largest = max(sets, key=len, default=everyone)
    if any(not one <= largest for one in sets):
        largest = everyone
    return tuple(sorted(largest))


def _device(named: Sequence[tuple[str, Tensor]], meshes: Sequence[Any]) -> torch.device:
    kind = meshes[0].device_type if meshes else next((p.device.type for _, p in named), "cpu")
    if kind == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(kind)


def _fingerprint(p: Tensor) -> str:
    wide = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
    return float(wide.double().sum()).hex()
