"""A run as a table elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tests.watching.file.recorded import recorded, values_of

from signalprop.errors import MissingPackageError, SignalpropError
from signalprop.watching.file.reader import Run


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.abs(values_of(20, 3))
    with Run(recorded(tmp_path / "run.sp", values)) as run:
        table = run.frame()
        assert list(table.columns) == ["step", "site", "op", "kind", "model", "rms", "mean"]
        assert len(table) == 60
        one = table[(table.site == "s2") & (table.step == 7)]
        assert float(one.rms.iloc[0]) == values[7, 2] or np.isnan(values[7, 2])
        assert len(run.frame(["rms"], columns=4)) <= 12
        with pytest.raises(SignalpropError, match="neither"):
            run.frame(package="numpy")
        for name in ("polars", "pyarrow"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingPackageError, match="pip install polars"):
            run.frame(package="polars")
        with pytest.raises(MissingPackageError, match="pip install pyarrow"):
            run.to_parquet(tmp_path / "x.parquet")


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    values = values_of(100, 3)
    with Run(recorded(tmp_path / "run.sp", values)) as run:
        table = parquet.read_table(run.to_parquet(tmp_path / "x.parquet"))
        found = np.asarray(table["rms"]).reshape(100, 3)
        np.testing.assert_array_equal(found, values)
        assert table["site"].to_pylist()[:3] == ["s0", "s1", "s2"]


def test_polars(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    with Run(recorded(tmp_path / "run.sp", values_of(20, 3))) as run:
        table = run.frame(package="polars")
        assert table.shape == (60, 7)
        assert table["site"].to_list()[:3] == ["s0", "s1", "s2"]
