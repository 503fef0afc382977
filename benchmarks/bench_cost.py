"""What `trace` and `diagnose` cost, as ratios to a plain training step.

Run with `make bench`, or `pytest benchmarks/bench_cost.py`. Asked: `trace` at most 1.5 plain steps
and 1.15 of its peak memory, `diagnose` at most 12; 1000 layers scale linearly. The figures go to
benchmarks/results/; nothing is asserted, since a busy machine is not a defect.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
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


def _built(name: str, **size: int) -> Built:
    torch.manual_seed(0)
    model, (x, y), loss, _ = NETWORKS[name](**size)
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


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
@pytest.mark.parametrize("name", NETWORKS)
def test_diagnose(name: str, optimizer: str, benchmark: Any) -> None:
    model, batch, loss, adam = _built(name)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    built = (model, batch, loss, adam if optimizer == "Adam" else sgd)
    used = built[3]
    measured = ratio(lambda: _step(built), lambda: sp.diagnose(model, batch, loss, used), rounds=9)
    FIGURES[f"diagnose / step, {name}, {optimizer}"] = measured
    benchmark.extra_info |= measured
    benchmark.pedantic(lambda: sp.diagnose(model, batch, loss, used), rounds=2)


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


LARGE = {"mlp-20x256": 8192, "resnet-20": 128, "transformer-6": 96}


@pytest.mark.parametrize("name", NETWORKS)
def test_memory(name: str) -> None:
    """Peak of what torch allocates above the model, at batches where activations dominate."""
    built = _built(name, batch=LARGE[name])
    model, batch, loss, optimizer = built
    _step(built)
    peaks = []
    for call in (lambda: sp.trace(model, batch, loss), lambda: _step(built)):
        optimizer.zero_grad()
        peaks.append(_cuda_peak(call) if torch.cuda.is_available() else _cpu_peak(call))
    FIGURES[f"peak memory of trace / step, {name}"] = round(peaks[0] / peaks[1], 3)


def _cuda_peak(call: Callable[[], Any]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(call: Callable[[], Any]) -> int:
    """From the profiler's allocation events: resident memory depends on the C library's moods."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
