"""What goes wrong among ranks, and what DistributedDataParallel can be told; two processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tests.watching.ranks.nets import BATCH, Listener, Plain, batches, make, parts_of, plain, train
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from signalprop.watching.file.reader import Run
from signalprop.watching.ranks import control
from signalprop.watching.watch import watch


class Normed(nn.Module):
    """Buffers that are broadcast, random numbers, a branch that is never used."""

    def __init__(self, *, unused: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
        )
        if unused:
            self.idle = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Forks(nn.Module):
    """Another way on rank 1."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(F.relu(x) if self.rank == 0 else F.gelu(F.relu(x)))


def _loop(
    model: nn.Module,
    rank: int,
    *,
    watched: bool = True,
    steps: int = 6,
    prepare: Callable[[Any], None] | None = None,
    each: Callable[[int, Any], None] | None = None,
    accumulate: bool = False,
    **options: Any,
) -> tuple[list[Tensor], Any, Listener]:
    """A loop that may accumulate; losses, weights, buffers and random state at its end."""
    torch.manual_seed(10 + rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = batches(Plain, torch.float32, steps)
    listener, losses = Listener(), []
    options = {"every": 2, "to": None} | options
    run = watch(model, optimizer, listeners=[listener], **options) if watched else None
    if run is not None and prepare is not None:
        prepare(run)
    with run or contextlib.nullcontext():
        for step, batch in enumerate(data):
            x, y = parts_of(batch, rank, 2)
            optimizer.zero_grad()
            if accumulate:
                with model.no_sync():
                    F.mse_loss(model(x[:2]), y[:2]).backward()
                x, y = x[2:], y[2:]
            loss = F.mse_loss(model(x), y)
            loss.backward()
            if each is not None:
                each(step, run)
            optimizer.step()
            losses.append(loss.detach())
            if run is not None:
                run.log(loss=loss)
    local = [getattr(p, "_local_tensor", p).detach().clone() for p in model.parameters()]
    return [*losses, *local, *model.buffers(), torch.get_rng_state()], run, listener


def _equal(make_model: Callable[[], nn.Module], rank: int, **more: Any) -> bool:
    with_watch, run, _ = _loop(make_model(), rank, **more)
    assert run.failed is None, run.failed
    without, _, _ = _loop(make_model(), rank, watched=False, **more)
    return len(with_watch) == len(without) and all(
        torch.equal(a, b) for a, b in zip(with_watch, without, strict=True)
    )


def _normed(unused: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Normed(unused=unused)


def _forks(rank: int) -> nn.Module:
    torch.manual_seed(0)
    return Forks(rank)


def by_hand(rank: int) -> Any:
    """Replicas without a wrapper, whose gradients the loop averages itself."""
    model = make(Plain)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    listener = Listener()
    with watch(model, optimizer, every=2, to=None, listeners=[listener]) as run:
        for batch in batches(Plain):
            x, y = parts_of(batch, rank, 2)
            loss = F.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            for p in model.parameters():
                dist.all_reduce(p.grad)
                p.grad /= 2
            optimizer.step()
    assert run.failed is None, run.failed
    return {str(torch.float64): [plain(s) for s in listener.samples]}


def checks(
    rank: int, folder: Path, lines: list[str], mesh: Any
) -> dict[str, Callable[[], dict[str, Any]]]:
    """By name."""
    ddp = DistributedDataParallel

    def shard() -> nn.Module:
        return fully_shard(make(Plain, torch.float32), mesh=mesh)

    def bits() -> dict[str, Any]:
        return {
            "buffers": _equal(lambda: ddp(_normed()), rank),
            "unused": _equal(lambda: ddp(_normed(True), find_unused_parameters=True), rank),
            "static": _equal(lambda: ddp(_normed(), static_graph=True), rank),
            "accumulation": _equal(lambda: ddp(_normed()), rank, accumulate=True),
            "views": _equal(lambda: ddp(_normed(), gradient_as_bucket_view=True), rank, every=1),
            "sharded": _equal(shard, rank, every=1),
        }

    def views() -> dict[str, Any]:
        model = ddp(make(Plain), gradient_as_bucket_view=True)
        return {"samples": train(model, batches(Plain), share=(rank, 2), every=1)[0]}

    def writes() -> dict[str, Any]:
        path = folder / "run.sp"
        _loop(ddp(make(Plain, torch.float32)), rank, to=path)
        dist.barrier()
        with Run(path) as run:
            steps = [int(s) for s in run.steps]
            ranks = run.meta.get("ranks")
        # goes on where rank 0's file ends, of which rank 1 may know nothing
        other = path if rank == 0 else folder / "elsewhere.sp"
        _, run, listener = _loop(
            ddp(make(Plain, torch.float32)), rank, to=other, mode="resume", steps=3
        )
        first = run._stepper.step - 3
        return {
            "files": sorted(p.name for p in folder.glob("*.sp")),
            "steps": steps,
            "ranks": ranks,
            "samples": len(listener.samples),
            "first": first,
            "failed": run.failed,
        }

    def stops() -> dict[str, Any]:
        last = []

        def each(step: int, run: Any) -> None:
            last.append(step)

        def prepare(run: Any) -> None:
            if rank == 0:  # an alert at step 3
                real = run._recording.judge.step

                def step(number: int, *args: Any) -> Any:
                    found = real(number, *args)
                    return (*found, _alarm(number)) if number == 3 else found

                run._recording.judge.step = step

        _, run, _ = _loop(
            ddp(make(Plain, torch.float32)),
            rank,
            on="stop",
            steps=12,
            every=4,
            each=each,
            prepare=prepare,
        )
        return {"last": last[-1], "alarm": str(asdict(run.stopped)), "failed": run.failed}

    def differ() -> dict[str, Any]:
        _, run, listener = _loop(ddp(_forks(rank)), rank)
        values = [plain(s)["values"] for s in listener.samples]
        return {"values": values, "failed": run.failed, "said": list(lines)}

    def fails() -> dict[str, Any]:
        def prepare(run: Any) -> None:
            def broken(*args: Any) -> None:
                raise ValueError("a fault of ours")

            if rank == 1:
                run._stepper._see_passes = broken

        found, run, _ = _loop(ddp(make(Plain, torch.float32)), rank, prepare=prepare)
        plainly, _, _ = _loop(ddp(make(Plain, torch.float32)), rank, watched=False)
        equal = all(torch.equal(a, b) for a, b in zip(found, plainly, strict=True))
        return {"failed": run.failed, "equal": equal}

    def ends_early() -> dict[str, Any]:
        def each(step: int, run: Any) -> None:
            if step == 3 and rank == 1:
                run.close()

        _, run, listener = _loop(ddp(make(Plain, torch.float32)), rank, each=each)
        return {"failed": run.failed, "steps": [s.step for s in listener.samples]}

    def only_one() -> dict[str, Any]:
        patience, control.ATTACH = control.ATTACH, 0.5
        try:
            _, run, listener = _loop(shard(), rank, watched=rank == 0)
        finally:
            control.ATTACH = patience
        if rank:
            return {}
        values = [plain(s)["values"] for s in listener.samples]
        return {"failed": run.failed, "values": values, "said": list(lines)}

    def otherwise() -> dict[str, Any]:
        _, run, listener = _loop(ddp(make(Plain, torch.float32)), rank, every=2 + rank)
        return {"failed": run.failed, "said": list(lines), "samples": len(listener.samples)}

    def closer() -> dict[str, Any]:
        def each(step: int, run: Any) -> None:
            if step == 1 and rank == 0:
                assert not run._ranks.closer()

        _, run, listener = _loop(
            ddp(make(Plain, torch.float32)), rank, every=5, steps=18, each=each
        )
        return {"failed": run.failed, "steps": [s.step for s in listener.samples]}

    def elsewhere() -> dict[str, Any]:
        """What is not finite on another rank."""
        model = shard()

        def each(step: int, run: Any) -> None:
            if step == 3 and rank == 1:
                p = next(model.parameters())
                p.grad._local_tensor[0, 0] = np.inf

        _, run, listener = _loop(model, rank, each=each)
        found = [s.scalars.get("gradient_norm", 0.0) for s in listener.samples]
        return {
            "failed": run.failed,
            "norms": [float(v) for v in found],
            "codes": [alarm.code for alarm in run.alarms],
        }

    def checkpoint() -> dict[str, Any]:
        def prepare(run: Any) -> None:
            run._recording.judge.step = lambda number, *args: (_alarm(number),)

        _loop(shard(), rank, on="checkpoint", to=folder / "c.sp", prepare=prepare)
        return {"said": list(lines), "files": [p.name for p in folder.glob("c.step*")]}

    return {
        name: check
        for name, check in locals().items()
        if callable(check) and name not in ("ddp", "shard")
    }


def _alarm(step: int) -> Any:
    from signalprop.watching.sample import Alarm

    text = "It leapt – twice."
    return Alarm(step, "SP405", "Leap", "issue", ("a", "b"), 3.0, "x", 1.0, step, text, ("lr",))


assert BATCH % 4 == 0
