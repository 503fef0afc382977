"""One of several processes: runs every check of its world size, and writes what it found."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.watching.ranks.nets import Former, Plain, batches, make, train
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from signalprop.watching.ranks import control

FOLDER = Path(sys.argv[1])
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Lines(logging.Handler):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


LINES = Lines()


def sharded(model: nn.Module, mesh: Any) -> nn.Module:
    for part in getattr(model, "blocks", [getattr(model, "layers", None)]):
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def by_layers(model: Plain, mesh: Any) -> nn.Module:
    """Every layer for itself: torch's own layers get classes of `fully_shard`."""
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def parallel(model: Former, mesh: Any) -> Former:
    plan: dict[str, Any] = {
        **dict.fromkeys(["q", "k", "v", "up"], ColwiseParallel()),
        **dict.fromkeys(["o", "down"], RowwiseParallel()),
    }
    for block in model.blocks:
        parallelize_module(block, mesh, plan)
    return model


def by_tokens(model: Former, mesh: Any) -> Former:
    """Normalisations in sequence parallel: their gradients are terms of a sum."""
    plan: dict[str, Any] = {
        "before": SequenceParallel(),
        "between": SequenceParallel(),
        "q": ColwiseParallel(input_layouts=Shard(1)),
        "k": ColwiseParallel(input_layouts=Shard(1)),
        "v": ColwiseParallel(input_layouts=Shard(1)),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "o": RowwiseParallel(output_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1)),
    }
    parallelize_module(
        model,
        mesh,
        {
            "into": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
            "out": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        },
    )
    for block in model.blocks:
        parallelize_module(block, mesh, plan)
    return model


def trained(wrap: Callable[[nn.Module], nn.Module], kind: Any, share: Any, **more: Any) -> Any:
    """Samples, and whether losses, weights and random states are those of the unwatched loop."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        data = batches(kind, dtype)
        runs = []
        for watched in (True, False):
            model = wrap(make(kind, dtype))
            torch.manual_seed(RANK)
            samples, losses = train(model, data, share=share, watched=watched, **more)
            weights = [getattr(p, "_local_tensor", p).detach() for p in model.parameters()]
            runs.append([*losses, *weights, *model.buffers(), torch.get_rng_state()])
            if watched:
                found[str(dtype)] = samples
        found[f"{dtype} equal"] = all(
            torch.equal(a, b) for a, b in zip(*runs, strict=True)
        ) and len(runs[0]) == len(runs[1])
    return found


def world_1() -> dict[str, Callable[[], Any]]:
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("all",))
    return {
        "ddp": lambda: trained(DistributedDataParallel, Plain, (0, 1)),
        "fsdp layers": lambda: trained(lambda m: by_layers(m, mesh), Plain, (0, 1)),
    }


def world_2() -> dict[str, Callable[[], Any]]:
    from tests.watching.ranks import troubles

    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("all",))
    return {
        "ddp": lambda: trained(DistributedDataParallel, Plain, (RANK, 2)),
        "ddp former": lambda: trained(DistributedDataParallel, Former, (RANK, 2)),
        "by_hand": lambda: troubles.by_hand(RANK),
        "fsdp": lambda: trained(lambda m: sharded(m, mesh), Plain, (RANK, 2)),
        "fsdp layers": lambda: trained(lambda m: by_layers(m, mesh), Plain, (RANK, 2)),
        "fsdp former": lambda: trained(lambda m: sharded(m, mesh), Former, (RANK, 2)),
        "tp": lambda: trained(lambda m: parallel(m, mesh), Former, (0, 1)),
        "by tokens": lambda: trained(lambda m: by_tokens(m, mesh), Former, (0, 1)),
        **troubles.checks(RANK, FOLDER, LINES.lines, mesh),
    }


def world_4() -> dict[str, Callable[[], Any]]:
    one = init_device_mesh("cpu", (4,), mesh_dim_names=("all",))
    two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    outer = two["outer"].get_local_rank()
    return {
        "ddp": lambda: trained(DistributedDataParallel, Plain, (RANK, 4)),
        "fsdp": lambda: trained(lambda m: sharded(m, one), Plain, (RANK, 4)),
        "hsdp": lambda: trained(lambda m: sharded(m, two), Plain, (RANK, 4)),
        "fsdp tp": lambda: trained(
            lambda m: sharded(parallel(m, two["inner"]), two["outer"]),
            Former,
            (outer, 2),
        ),
    }


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("signalprop").addHandler(LINES)
    dist.init_process_group("gloo", rank=RANK, world_size=WORLD)
    control.ATTACH, control.PATIENCE = 60.0, 60.0
    found: dict[str, Any] = {}
    for name, check in {1: world_1, 2: world_2, 4: world_4}[WORLD]().items():
        LINES.lines.clear()
        begun = time.monotonic()
        try:
            found[name] = check()
        except Exception:
            found[name] = traceback.format_exc()
        sys.stdout.write(f"{name} {time.monotonic() - begun:.2f} s {LINES.lines}\n")
        sys.stdout.flush()
        dist.barrier()
    torch.save(found, FOLDER / f"found-{RANK}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
