"""Ratios of two callables, measured in turn in one process."""

from __future__ import annotations

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call.

    On a CPU the process's own time is taken, which other load disturbs least; on a GPU wall time
    with the device waited for.
    """
    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    start = clock()
    call()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def ratio(
    plain: Callable[[], Any], subject: Callable[[], Any], *, rounds: int = 15
) -> dict[str, float]:
    """Median and quartiles of time(subject) / time(plain), the two run in turn."""
    for _ in range(3):
        plain()
        subject()
    gc.collect()
    pairs = [(timed(plain), timed(subject)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in pairs)
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "median": round(middle, 3),
        "lower_quartile": round(low, 3),
        "upper_quartile": round(high, 3),
        "plain_ms": round(1e3 * statistics.median(a for a, _ in pairs), 3),
        "rounds": rounds,
    }


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def keep(name: str, figures: dict[str, Any]) -> None:
    """Write figures beside the benchmarks, one file per benchmark and kind of device.

    Figures of the same machine that this run has not measured again stay.
    """
    RESULTS.mkdir(exist_ok=True)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    path = RESULTS / f"{name}-{kind}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = before.get("figures", {}) if before.get("machine") == machine() else {}
    path.write_text(json.dumps({"machine": machine(), "figures": kept | figures}, indent=2) + "\n")
