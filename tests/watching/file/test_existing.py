"""Files that are there already: another writer's, another program's, another version's."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest
from tests.watching.file.recorded import record

from signalprop.errors import SignalpropError
from signalprop.watching.file.reader import Run
from signalprop.watching.file.writer import RunWriter

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks")


def test_two_writers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run.sp"
    with RunWriter(path) as first:
        record(first, range(5))
        for mode in ("resume", "overwrite"):
            second = RunWriter(path, mode=mode)
            assert second.failed is not None
            assert "another training" in second.failed
            record(second, range(100, 200))
            assert not second.flush()
            second.close()
        assert first.flush()
    with Run(path) as run:
        assert run.steps.tolist() == [0, 1, 2, 3, 4]
    assert len(caplog.records) == 2
    with RunWriter(path, mode="resume") as third:  # the lock is gone
        assert third.failed is None


def test_existing(tmp_path: Path) -> None:
    path = tmp_path / "run.sp"
    with RunWriter(path) as writer:
        record(writer, range(5))
    refused = RunWriter(path)
    assert refused.failed is not None
    assert "exists" in refused.failed
    with RunWriter(path, mode="overwrite") as writer:
        record(writer, range(2))
    with Run(path) as run:
        assert run.steps.tolist() == [0, 1]
    foreign = tmp_path / "thesis.txt"
    foreign.write_text("years of work " * 100)
    for mode in ("resume", "overwrite"):
        writer = RunWriter(foreign, mode=mode)
        assert writer.failed is not None
        assert "no run file" in writer.failed
    assert foreign.read_text() == "years of work " * 100


def test_version(tmp_path: Path) -> None:
    path = tmp_path / "run.sp"
    with RunWriter(path) as writer:
        record(writer, range(5))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=2")
    connection.close()
    with pytest.raises(SignalpropError, match="newer signalprop"):
        Run(path)
    later = RunWriter(path, mode="resume")
    assert later.failed is not None
    assert "newer signalprop" in later.failed
