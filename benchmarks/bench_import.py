"""What importing costs: asked are 150 ms on top of torch, and 0.4 s for `signalprop --help`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

import pytest
from benchmarks.timing import keep

FIGURES: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def _kept() -> Any:
    yield
    keep("import", FIGURES)


def _seconds(code: list[str], rounds: int = 7) -> float:
    def once() -> float:
        start = time.perf_counter()
        subprocess.run(code, check=True, capture_output=True)
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(rounds))


def test_import() -> None:
    """The package alone, and with everything that a first `diagnose` loads."""
    python = [sys.executable, "-c"]
    torch = _seconds([*python, "import torch"])
    package = _seconds([*python, "import torch, signalprop"])
    working = _seconds([*python, "import torch, signalprop as sp; sp.diagnose, sp.trace"])
    FIGURES["import signalprop on top of torch, ms"] = round(1e3 * (package - torch), 1)
    FIGURES["and sp.trace, sp.diagnose, ms"] = round(1e3 * (working - torch), 1)


def test_help() -> None:
    """The command line's first answer."""
    FIGURES["signalprop --help, s"] = round(
        _seconds([sys.executable, "-m", "signalprop", "--help"]), 3
    )
