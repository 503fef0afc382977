"""What the run file costs a training, and how quickly a long run opens.

Asked, for 1000 sites x 20 statistics x 100,000 sampled steps: constant memory in the trainer,
writes below 1 % of the time, a page that opens in under 2 s. That run is 10 GB; here it is measured
with fewer steps, and with as many steps of fewer sites.
"""

from __future__ import annotations

import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.timing import keep

from signalprop.watching.file.reader import Run
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter

FIGURES: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def _kept() -> Any:
    yield
    keep("runfile", FIGURES)


@pytest.mark.parametrize(("steps", "sites", "kinds"), [(5_000, 1000, 20), (100_000, 50, 4)])
def test_run(tmp_path: Path, steps: int, sites: int, kinds: int) -> None:
    values = {f"statistic{k}": np.random.rand(sites).astype(np.float32) for k in range(kinds)}
    raw = 4 * sites * kinds
    puts: list[float] = []
    memory: list[int] = []
    cpu = time.process_time()
    with RunWriter(tmp_path / "run.sp", log=values) as writer:
        writer.add_sites(RunSite(f"layer{k}") for k in range(sites))
        for step in range(steps):
            start = time.perf_counter()
            writer.put(50 * step, values)
            puts.append(time.perf_counter() - start)
            if step % max(1, (16 << 20) // raw) == 0:
                writer.flush()
            if step % (steps // 5) == steps // 10:
                memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        start = time.perf_counter()
        writer.flush()
        flush = time.perf_counter() - start
    cpu = time.process_time() - cpu
    assert writer.failed is None
    assert writer.dropped == 0
    size = writer.path.stat().st_size

    def seconds(columns: int, every: bool) -> float:
        start = time.perf_counter()
        with Run(writer.path) as run:
            names = run.statistics if every else run.statistics[:1]
            for name in names:
                run.values(name, columns=columns)
            assert run.cursor
        return time.perf_counter() - start

    FIGURES[f"{steps} x {sites} x {kinds}"] = {
        "put, median us": round(1e6 * statistics.median(puts), 1),
        "put, 99 % us": round(1e6 * sorted(puts)[int(0.99 * len(puts))], 1),
        "all CPU per sample, ms": round(1e3 * cpu / steps, 3),
        "last flush, ms": round(1e3 * flush, 1),
        "peak memory over the run, MB": memory,
        "bytes per value": round(size / steps / sites / kinds, 2),
        "open and one statistic at 300 columns, s": round(seconds(300, False), 3),
        "open and all statistics at 300 columns, s": round(seconds(300, True), 3),
        "open and all statistics at 1000 columns, s": round(seconds(1000, True), 3),
    }
