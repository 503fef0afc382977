"""What `trace` and `diagnose` cost, as ratios to a plain training step.

Run with `make bench`, or `pytest benchmarks/bench_cost.py`. Asked: `trace` at most 1.5 plain steps
and 1.15 of its peak memory, `diagnose` at most 12; 1000 layers scale linearly. The figures go to
benchmarks/results/; nothing is asserted, since a busy machine is not a defect.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from benchmarks.networks import NETWORKS, Built, mlp
from benchmarks.timing import keep, ratio

import signalprop as sp

FIGURES: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def _kept() -> Any:
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "1")))
    yield
    keep("cost", FIGURES)


def _built(name: str) -> Built:
    torch.manual_seed(0)
    model, (x, y), loss, _ = NETWORKS[name]()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return model, (x.to(device), y.to(device)), loss, optimizer


def _step(built: Built) -> None:
    model, (x, y), loss, optimizer = built
    optimizer.zero_grad()
    loss(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("name", NETWORKS)
def test_trace(name: str, benchmark: Any) -> None:
    built = _built(name)
    model, batch, loss, _ = built
    measured = ratio(lambda: _step(built), lambda: sp.trace(model, batch, loss), rounds=21)
    FIGURES[f"trace / step, {name}"] = measured
    benchmark.extra_info |= measured
    benchmark.pedantic(lambda: sp.trace(model, batch, loss), rounds=5)


@pytest.mark.parametrize("name", NETWORKS)
def test_diagnose(name: str, benchmark: Any) -> None:
    built = _built(name)
    model, batch, loss, optimizer = built
    measured = ratio(
        lambda: _step(built), lambda: sp.diagnose(model, batch, loss, optimizer), rounds=9
    )
    FIGURES[f"diagnose / step, {name}"] = measured
    benchmark.extra_info |= measured
    benchmark.pedantic(lambda: sp.diagnose(model, batch, loss, optimizer), rounds=2)


@pytest.mark.parametrize("depth", [125, 250, 500, 1000])
def test_depth(depth: int, benchmark: Any) -> None:
    torch.manual_seed(0)
    built = mlp(depth=depth, width=64, batch=32)
    model, batch, loss, _ = built
    start = time.process_time()
    sp.trace(model, batch, loss)
    FIGURES[f"trace, {depth} layers, ms per layer"] = round(
        1e3 * (time.process_time() - start) / depth, 4
    )
    benchmark.pedantic(lambda: sp.trace(model, batch, loss), rounds=2)


_MEMORY = """
import sys, torch
from benchmarks.networks import NETWORKS
import signalprop as sp
torch.set_num_threads(1)
name, what = sys.argv[1:]
big = {{"mlp-20x256": dict(batch=8192), "resnet-20": dict(batch=128),
       "transformer-6": dict(batch=96)}}[name]
torch.manual_seed(0)
model, batch, loss, optimizer = NETWORKS[name](**big)
def step():
    optimizer.zero_grad()
    loss(model(batch[0]), batch[1]).backward()
    optimizer.step()
def resident(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith(key))
small = [t[:4] for t in batch]
def warm():
    optimizer.zero_grad(); loss(model(small[0]), small[1]).backward(); optimizer.step()
    sp.trace(model, small, loss)
warm()
optimizer.zero_grad()
base = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
step() if what == "step" else sp.trace(model, batch, loss)
print(resident("VmHWM") - base)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", NETWORKS)
def test_memory(name: str) -> None:
    """Peak resident memory above the model, each in a fresh process, large batches."""
    if torch.cuda.is_available():
        figure = _cuda_memory(name)
    else:
        peaks = []
        for what in ("trace", "step"):
            out = subprocess.run(
                [sys.executable, "-c", _MEMORY.replace("{{", "{").replace("}}", "}"), name, what],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            peaks.append(int(out.stdout))
        figure = peaks[0] / peaks[1]
    FIGURES[f"peak memory of trace / step, {name}"] = round(figure, 3)


def _cuda_memory(name: str) -> float:
    built = _built(name)
    model, batch, loss, optimizer = built
    _step(built)
    peaks = []
    for call in (lambda: sp.trace(model, batch, loss), lambda: _step(built)):
        optimizer.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        call()
        peaks.append(torch.cuda.max_memory_allocated())
    return peaks[0] / peaks[1]
