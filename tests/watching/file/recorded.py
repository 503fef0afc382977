"""What the tests of the run file write, and what they compare it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter


def sites_of(count: int, model: str = "") -> list[RunSite]:
    return [
        RunSite(f"{model}{'.' if model else ''}s{k}", "relu", "slope", model) for k in range(count)
    ]


def values_of(steps: int, sites: int) -> np.ndarray:
    """Numbers over many decades, with everything that may turn up among them."""
    made = 10.0 ** np.random.uniform(-30, 30, (steps, sites))
    made[np.random.rand(steps, sites) < 0.05] = 0.0
    made[np.random.rand(steps, sites) < 0.05] = np.nan
    made[np.random.rand(steps, sites) < 0.02] = np.inf
    made[:, 0] = np.nan
    made[:, 1] = 0.0
    return made.astype(np.float32)


def recorded(path: Path, values: np.ndarray, every: int = 1, **options: Any) -> Path:
    with RunWriter(path, log={"rms"}, every=0.01, **options) as writer:
        writer.add_sites(sites_of(values.shape[1]))
        for k, row in enumerate(values):
            writer.put(k * every, {"rms": row, "mean": -row})
    assert writer.failed is None
    assert writer.dropped == 0
    return path


def twin(values: np.ndarray, *, log: bool) -> tuple[np.ndarray, ...]:
    """One column, value by value."""
    mean, low, high, count = (np.full(values.shape[1], np.nan) for _ in range(4))
    for k, column in enumerate(values.T.astype(np.float64)):
        seen = column[~np.isnan(column)]
        fit = seen[np.isfinite(seen) & ((seen > 0) | (not log))]
        count[k] = len(fit)
        if len(seen):
            low[k], high[k] = seen.min(), seen.max()
        if len(fit):
            mean[k] = np.exp(np.log(fit).mean()) if log else fit.mean()
        elif len(seen) and seen.min() == seen.max():
            mean[k] = seen[0]
    return mean, low, high, count


def same_columns(found: Any, values: np.ndarray, every: int, *, log: bool) -> None:
    for j, (a, b) in enumerate(zip(found.first // every, found.last // every, strict=True)):
        mean, low, high, count = twin(values[a : b + 1], log=log)
        assert found.samples[j] == b - a + 1
        np.testing.assert_allclose(found.mean[j], mean, rtol=1e-4)
        np.testing.assert_array_equal(found.low[j], low.astype(np.float32))
        np.testing.assert_array_equal(found.high[j], high.astype(np.float32))
        np.testing.assert_array_equal(found.count[j], count)


def record(writer: RunWriter, steps: range, sites: int = 3) -> None:
    """Steps whose values are their numbers."""
    writer.add_sites([RunSite(f"s{k}") for k in range(sites)])
    for step in steps:
        writer.put(step, {"rms": np.full(sites, float(step))})
