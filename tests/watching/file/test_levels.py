"""A run at every resolution: the coarser levels, and old samples that were thinned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.watching.file.recorded import recorded, same_columns, values_of

from signalprop.watching.file.levels import Bins, exact
from signalprop.watching.file.reader import Run
from signalprop.watching.file.writer import RunWriter


@pytest.mark.parametrize("steps", [1, 15, 16, 17, 64, 700, 1500])
def test_levels(tmp_path: Path, steps: int) -> None:
    values = values_of(steps, 6)
    with Run(recorded(tmp_path / "run.sp", values, 5)) as run:
        np.testing.assert_array_equal(run.values("rms").mean, values)
        np.testing.assert_array_equal(run.values("mean").mean, -values)
        for columns in (1, 3, 10, 40, 200, 5000):
            found = run.values("rms", columns=columns)
            assert min(steps, columns) // 5 <= len(found.first) <= columns
            assert found.first[0] == 0
            assert found.last[-1] == 5 * (steps - 1)
            assert found.samples.sum() == steps
            same_columns(found, values, 5, log=True)
            same_columns(run.values("mean", columns=columns), -values, 5, log=False)
        part = run.values("rms", sites=["s4", "s2"], start=33, stop=2000, columns=7)
        same_columns(part, values[:, [4, 2]], 5, log=True)


def test_float32_keeps_what_matters() -> None:
    found = exact([1e-60, -1e-60, 1e60, -1e60, 0.0, np.inf, np.nan, 0.1])
    assert found[0] > 0 > found[1]
    assert np.isfinite(found[2:4]).all()
    assert found[4] == 0
    assert np.isinf(found[5])
    assert np.isnan(found[6])
    assert found[7] == np.float32(0.1)


def test_thinned(tmp_path: Path) -> None:
    values = values_of(4000, 50)
    limit = 600_000
    path = recorded(tmp_path / "run.sp", values, max_bytes=limit)
    assert path.stat().st_size < 1.2 * limit
    with Run(path) as run:
        assert 32 < len(run.steps) < 3000
        whole = run.values("rms")
        assert whole.samples.sum() == 4000  # no step is missing, the old ones are coarser
        assert (np.diff(whole.samples) <= 0).all()
        assert (whole.first[1:] == whole.last[:-1] + 1).all()
        same_columns(whole, values, 1, log=True)
        few = run.values("rms", columns=30)
        assert len(few.first) <= 30
        same_columns(few, values, 1, log=True)
    again = values_of(4600, 50)
    with RunWriter(path, mode="resume", log={"rms"}, max_bytes=limit) as writer:
        for step in range(3900, 4600):
            writer.put(step, {"rms": again[step], "mean": -again[step]})
    with Run(path) as run:
        whole = run.values("rms")
        assert whole.samples.sum() > 4580  # a coarse bin that was cut loses its thinned samples
        again[:3900] = values[:3900]
        recent = run.values("rms", start=3900)
        same_columns(recent, again, 1, log=True)


def test_means_of_nothing() -> None:
    values = np.array([[0.0, np.nan, np.inf, 0.0], [0.0, np.nan, np.inf, np.inf]], np.float32)
    found = Bins.of(values, log=True).reduce([0], log=True)
    np.testing.assert_array_equal(found.mean, [[0.0, np.nan, np.inf, np.nan]])
    assert found.count.tolist() == [[0, 0, 0, 0]]
