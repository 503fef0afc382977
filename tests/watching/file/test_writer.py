"""A writer raises nothing, whatever it is given."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from signalprop.errors import SignalpropError
from signalprop.watching.file.reader import Run
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks")


def test_bad_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is put, nothing is raised, and the rest is recorded."""
    with RunWriter(tmp_path / "run.sp") as writer:
        writer.add_sites([RunSite("a"), RunSite("b")])
        writer.put(0, {"rms": [1.0]})
        writer.put(0, {"rms": "text"})  # type: ignore[dict-item]
        writer.put(0, None)  # type: ignore[arg-type]
        writer.put("0", {"rms": [1.0, 2.0]})  # type: ignore[arg-type]
        writer.scalar(0, {"loss": "text"})  # type: ignore[dict-item]
        writer.scalar(0, {"loss": float("nan")})
        writer.window(0, "spike", [1, 2], {"rms": np.zeros((3, 2))})
        writer.alert(0, "X", "issue", detail={"a": object()})
        writer.set_meta("large", "x" * 3_000_000)
        writer.put(3, {"rms": [1.0, 2.0]})
        writer.put(2, {"rms": [1.0, 2.0]})
    assert writer.failed is None
    assert writer.dropped == 8
    with Run(writer.path) as run:
        assert run.steps.tolist() == [3]
        assert np.isnan(run.scalars()["loss"][1]).tolist() == [True]
        assert len(run.alerts) == 1
    with pytest.raises(SignalpropError, match="mode"):
        RunWriter(tmp_path / "x.sp", mode="append")
