"""A training step with the time axis recorded, against torch's own LSTM recording nothing.

    python -m benchmarks.bench_recurrent [--quick] [--threads 1 2] [--json FILE]

Asked, at 1 / 2 threads and for the three sizes: every delta by the compiled loops at most 1.12 /
1.2, 1.10 / 1.15, 1.00 / 1.03 times nn.LSTM's step; by pure torch 1.33 / 1.67, 1.32 / 1.59, 1.06 /
1.22; borders 1.06 / 1.08 everywhere; memory 1.2.

A step is forward and backward with a gradient at every h_t, of input, weights and biases. All ways
run in turn in one process, each pair a ratio; the figures are medians of ratios. Both sides have
the same allocator: glibc that keeps its memory (`signalprop.keep_memory`), and once the usual one.
With one thread the process's own time is taken, which other load disturbs least, with two the wall
clock. Peaks of memory are measured in processes of their own, above what is there before the first
step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.timing import RESULTS, machine
from torch import Tensor, nn

from signalprop.config import show_config
from signalprop.memory import keep_memory, page_faults
from signalprop.recurrent import record

#: steps, batch, hidden units, input features
SIZES = {
    "T=100 B=32 H=128": (100, 32, 128, 128),
    "T=784 B=64 H=128, one input": (784, 64, 128, 1),
    "T=200 B=16 H=512": (200, 16, 512, 512),
}
#: whether the compiled loops are on, and how `record` is called
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "all, compiled": ("1", {"deltas": "all"}),
    "all, pure torch": ("0", {"deltas": "all"}),
    "borders": ("1", {}),
    "borders, torch's kernels": ("0", {}),
    "borders, torch's kernels, chunks of 50": ("0", {"chunk": 50}),
}
PLAIN, SLICES, CELL = "nn.LSTM", "nn.LSTM on slices of 50, nothing read", "loop of LSTMCell"


class Steps:
    """Training steps of one size."""

    def __init__(self, size: tuple[int, int, int, int]) -> None:
        steps, batch, hidden, features = size
        torch.manual_seed(0)
        self.net, self.cell = nn.LSTM(features, hidden), nn.LSTMCell(features, hidden)
        self.x = torch.randn(steps, batch, features, requires_grad=True)
        self.arriving = torch.randn(steps, batch, hidden)

    def of(self, way: str) -> Callable[[], None]:
        forward = {PLAIN: lambda: self.net(self.x)[0], SLICES: self._slices, CELL: self._loop}

        def step() -> None:
            self.net.zero_grad()
            self.cell.zero_grad()
            self.x.grad = None
            if way in forward:
                forward[way]().backward(self.arriving)
                return
            os.environ["SIGNALPROP_COMPILED"], options = WAYS[way]
            with record(self.net, **options):
                output, _ = self.net(self.x)
            output.backward(self.arriving)

        return step

    def _slices(self) -> Tensor:
        made, states = [], None
        for part in self.x.split(50):
            output, states = self.net(part, states)
            made.append(output)
        return torch.cat(made)

    def _loop(self) -> Tensor:
        made, states = [], None
        for part in self.x:
            states = self.cell(part, states)
            made.append(states[0])
        return torch.stack(made)


def ratios(size: tuple[int, int, int, int], ways: list[str], rounds: int) -> dict[str, Any]:
    """Median and quartiles of each way's time over nn.LSTM's, all run in turn."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    steps = Steps(size)
    calls = {way: steps.of(way) for way in [PLAIN, *ways]}
    for call in calls.values():
        call()
        call()
    taken: dict[str, list[float]] = {way: [] for way in calls}
    for _ in range(rounds):
        for way, call in calls.items():
            start = clock()
            call()
            taken[way].append(clock() - start)
    before = page_faults()
    calls[PLAIN]()
    found: dict[str, Any] = {
        PLAIN: {
            "ms": round(1e3 * statistics.median(taken[PLAIN]), 2),
            "page faults": page_faults() - before,
        }
    }
    for way in ways:
        parts = [a / b for a, b in zip(taken[way], taken[PLAIN], strict=True)]
        low, middle, high = statistics.quantiles(parts, n=4)
        found[way] = {
            "median": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
            "ms": round(1e3 * statistics.median(taken[way]), 2),
        }
    return found


def _peak(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak(name: str, way: str) -> int:
    """KB above what is there before the first step; run in a process of its own."""
    torch.set_num_threads(1)
    keep_memory()
    Steps((5, 16, 32, 3)).of(way)()
    steps = Steps(SIZES[name])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, call = _peak("VmHWM"), steps.of(way)
    for _ in range(3):
        call()
    return _peak("VmHWM") - before


def memory(name: str, ways: list[str]) -> dict[str, Any]:
    """Peak of each way over nn.LSTM's."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    here = [sys.executable, "-m", "benchmarks.bench_recurrent", "--peak", name]
    found = {
        way: int(subprocess.run([*here, way], capture_output=True, text=True, check=True).stdout)
        for way in [PLAIN, *ways]
    }
    least = found[PLAIN]
    return {way: {"MB": kb // 1024, "ratio": round(kb / least, 3)} for way, kb in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, the first size")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, default=RESULTS / "recurrent-cpu.json")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        print(peak(*given.peak))
        return
    sizes = given.sizes[:1] if given.quick else given.sizes
    rounds = 3 if given.quick else given.rounds
    every = [*WAYS, SLICES, CELL]
    figures: dict[str, Any] = {}

    def note(what: str, found: dict[str, Any]) -> None:
        load = round(os.getloadavg()[0], 1)
        figures[what] = {"load": load, **found}
        print(what, *(f"  {way}: {value}" for way, value in found.items()), sep="\n", flush=True)
        write(given.json, figures)

    for threads in given.threads:
        torch.set_num_threads(threads)
        with keep_memory():
            for name in sizes:
                few = rounds if name == next(iter(SIZES)) else max(3, rounds // 2)
                note(f"time, {name}, {threads} threads", ratios(SIZES[name], every, few))
        name = sizes[min(1, len(sizes) - 1)]
        note(
            f"time, {name}, {threads} threads, memory given back",
            ratios(SIZES[name], list(WAYS)[:4], max(3, rounds // 2)),
        )
    for name in sizes:
        note(f"memory, {name}", memory(name, list(WAYS)[:4]))


def write(path: Path, figures: dict[str, Any]) -> None:
    """Keep what there is; figures that this run has not measured again stay."""
    os.environ["SIGNALPROP_COMPILED"] = "1"
    settings = show_config().settings
    about = {k: v for k, v in machine().items() if k != "threads"}
    for name in ("CPU kernels", "compiled recurrent loops"):
        about[name] = settings[name].split(" (")[0]
    about["model"] = processor()
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = before.get("figures", {}) if before.get("machine") == about else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": about, "figures": kept | figures}, indent=2) + "\n")


def processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")


if __name__ == "__main__":
    main()
