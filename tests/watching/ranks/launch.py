"""Starts processes as torchrun does, and ends them all when one hangs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def launch(world: int, folder: Path, timeout: float = 240.0) -> list[dict[str, Any]]:
    """Run `tests.watching.ranks.worker` in some processes.

    Args:
        world: how many.
        folder: empty, for what they write.
        timeout: seconds after which they are ended.

    Returns:
        What each rank has found, by the name of the check.
    """
    root = Path(__file__).parents[3]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(world):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": str(root),
            "PYTHONHASHSEED": str(rank),
        }
        with open(folder / f"log-{rank}", "w") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.watching.ranks.worker", str(folder)],
                    cwd=root,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        for process in running:
            process.wait(timeout)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    logs = [(folder / f"log-{rank}").read_text() for rank in range(world)]
    told = "\n".join(f"--- rank {rank}\n{text[-3000:]}" for rank, text in enumerate(logs))
    codes = [process.returncode for process in running]
    assert codes == [0] * world, f"{codes}\n{told}"
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(world)]
