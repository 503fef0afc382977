"""Damaged, foreign and hostile files: one kind of error, no crash, and little memory."""

from __future__ import annotations

import random
import sqlite3
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.watching.file.recorded import sites_of

from signalprop.errors import SignalpropError
from signalprop.watching.file.reader import Run
from signalprop.watching.file.writer import RunWriter


def _look(path: Path) -> None:
    """Everything a reader may ask; only one kind of error may come of it."""
    asks: list[Any] = [
        lambda run: run.meta,
        lambda run: run.sites,
        lambda run: [run.values(name) for name in run.statistics],
        lambda run: [run.values(name, columns=3) for name in run.statistics],
        lambda run: run.steps,
        lambda run: (run.alerts, run.windows, run.replays),
        lambda run: (run.scalars(), run.scalars(columns=3)),
        lambda run: run.scalars(3, 50),
        lambda run: run.times,
        lambda run: run.seconds,
        lambda run: run.since(None),
    ]
    try:
        run = Run(path)
    except SignalpropError:
        return
    with run:
        for ask in asks:
            with suppress(SignalpropError):
                ask(run)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "run.sp"
    with RunWriter(path, meta={"a": 1}) as writer:
        writer.add_sites(sites_of(20))
        for step in range(100):
            writer.put(step, {"rms": np.full(20, 1.0)})
            writer.scalar(step, {"loss": 1.0})
        writer.alert(1, "X", "tip")
        writer.window(1, "x", [1], {"rms": np.zeros((1, 20))})
        writer.replay(1, "s1", 1, {"cpu": b"1"})
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(cut=st.floats(0, 1), noise=st.integers(0, 200), seed=st.integers(0, 1000))
def test_damaged(sample: Path, tmp_path: Path, cut: float, noise: int, seed: int) -> None:
    """Truncated, and with random bytes in it."""
    chosen = random.Random(seed)
    whole = sample.read_bytes()
    data = bytearray(whole[: int(len(whole) * cut)] if seed % 2 else whole)
    for _ in range(noise if data else 0):
        data[chosen.randrange(100 if seed % 3 == 0 else 0, max(len(data), 101)) % len(data)] = (
            chosen.randrange(256)
        )
    path = tmp_path / "run.sp"
    path.write_bytes(data)
    for end in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    _look(path)
    writer = RunWriter(path, mode="resume")
    writer.put(1000, {"rms": np.ones(20)})
    writer.close()  # failed or not, nothing was raised


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300))
def test_noise(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "noise.sp"
    path.write_bytes(data)
    with pytest.raises(SignalpropError, match=r"no run file|empty"):
        Run(path)


HOSTILE = {
    "a view that never ends": "DROP TABLE sites; CREATE VIEW sites AS WITH RECURSIVE t(id) AS "
    "(SELECT 0 UNION ALL SELECT id + 1 FROM t) SELECT id, 'a' AS name, '' op, '' kind, '' model FROM t",  # noqa: E501
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM sites; END",
    "another table": "CREATE TABLE more(a)",
    "no table": "DROP TABLE sites",
    "long blobs": "UPDATE samples SET value = zeroblob(10000000) WHERE id < 4",
    "odd blobs": "UPDATE samples SET value = zeroblob(79)",
    "text for a blob": "UPDATE samples SET value = 'a'",
    "odd levels": "UPDATE levels SET mean = zeroblob(4), count = zeroblob(7)",
    "high levels": "UPDATE bins SET level = level + 1000000000",
    "texts for steps": "UPDATE steps SET time = 'now'; UPDATE bins SET first = 'a' || first",
    "large counts": "UPDATE bins SET samples = 9223372036854775807",
    "a gap in the sites": "UPDATE sites SET id = 1000000000 WHERE id = 19",
    "many sites": "WITH RECURSIVE t(k) AS (SELECT 20 UNION ALL SELECT k + 1 FROM t WHERE k < 20000) "  # noqa: E501
    "INSERT INTO sites SELECT k, 's' || k, '', '', '' FROM t",
    "many steps": "WITH RECURSIVE t(k) AS (SELECT 100 UNION ALL SELECT k + 1 FROM t WHERE k < 20000) "  # noqa: E501
    "INSERT INTO steps SELECT k, k, 0 FROM t",
    "deep JSON": "UPDATE meta SET value = replace(hex(zeroblob(400000)), '00', '[')",
    "long JSON": "UPDATE alerts SET detail = '\"' || hex(zeroblob(2000000)) || '\"'",
    "a huge number": "UPDATE meta SET value = hex(zeroblob(10000))",
    "odd windows": "UPDATE windows SET steps = zeroblob(9); UPDATE window_values SET value = 'a'",
    "no generation": "DELETE FROM meta",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile(sample: Path, tmp_path: Path, what: str) -> None:
    """No crash, no endless loop, and no memory beyond some multiple of the file."""
    path = tmp_path / "run.sp"
    path.write_bytes(sample.read_bytes())
    connection = sqlite3.connect(path)
    connection.executescript(HOSTILE[what])
    connection.close()
    tracemalloc.start()
    _look(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600e6
    writer = RunWriter(path, mode="resume", every=0.01)
    for step in range(1000, 1020):
        writer.put(step, {"rms": np.ones(len(writer._index))})
    writer.close()
