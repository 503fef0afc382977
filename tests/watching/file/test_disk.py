"""Disks that are full or slow, folders that are read-only or gone, network drives."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from tests.watching.file.recorded import record

from signalprop.watching.file.reader import Run
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks")


def test_full(tmp_path: Path) -> None:
    code = """
import resource, signal, sys, numpy as np
from signalprop.watching.file.reader import Run
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
writer = RunWriter(sys.argv[1], every=0.001)
writer.add_sites([RunSite(f"s{k}") for k in range(500)])
sure = -1
for step in range(2000):
    writer.put(step, {"rms": np.full(500, float(step))})
    if step % 20 == 0 and writer.flush():
        sure = step
writer.close()
print(writer.failed)
assert writer.failed and sure > 20
with Run(sys.argv[1]) as run:
    values = run.values("rms").mean
    assert len(values) > sure
    assert np.array_equal(values[:, 7], np.arange(len(values)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run.sp")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "disk" in done.stdout
    assert done.stderr.count("nothing more is recorded") == 1


def test_full_for_sqlite(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.sp", every=0.001)
    assert writer._store is not None
    writer._store.connection.execute("PRAGMA max_page_count=30")
    writer.add_sites([RunSite(f"s{k}") for k in range(500)])
    for step in range(200):
        writer.put(step, {"rms": np.full(500, float(step))})
    assert not writer.flush()
    assert writer.failed is not None
    assert "no space is left" in writer.failed
    writer.close()


UNPRIVILEGED = """
import os, sys, numpy as np
from pathlib import Path
from signalprop.watching.file.reader import Run
from signalprop.watching.file.writer import RunWriter
import signalprop.watching.file.export, signalprop.watching.file.pieces
folder = Path(sys.argv[1])
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
with Run(folder / "run.sp") as run:
    print(len(run.steps), run.values("rms").mean.sum(), run.notice)
writer = RunWriter(folder / "other.sp")
print(writer.failed)
writer = RunWriter(folder / "run.sp", mode="resume")
print(writer.failed)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_read_only_folder(tmp_path: Path, killed: bool) -> None:
    """Its log, which a killed writer leaves, is read as well."""
    folder = tmp_path / "runs"
    folder.mkdir()
    if killed:
        code = (
            "import os, sys\nfrom signalprop.watching.file.writer import RunWriter\n"
            "from signalprop.watching.file.schema import RunSite\n"
            "w = RunWriter(sys.argv[1])\nw.add_sites([RunSite('a')])\n"
            "for k in range(40): w.put(k, {'rms': [1.0]})\n"
            "w.flush(); os.kill(os.getpid(), 9)"
        )
        subprocess.run([sys.executable, "-c", code, str(folder / "run.sp")], check=False)
        (folder / "run.sp-shm").unlink()
        assert (folder / "run.sp-wal").stat().st_size > 0
    else:
        with RunWriter(folder / "run.sp") as writer:
            record(writer, range(40), 1)
        assert [p.name for p in folder.iterdir()] == ["run.sp"]
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    temporary = Path(tempfile.gettempdir()).resolve()
    for above in (tmp_path, *tmp_path.parents):
        if os.getuid() == 0 and temporary in above.resolve().parents:
            above.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    read, other, resumed = done.stdout.splitlines()
    assert read.startswith("40 " + ("40.0" if killed else "780.0"))
    assert "training goes on" in other
    assert "training goes on" in resumed


def test_deleted(tmp_path: Path) -> None:
    path = tmp_path / "run.sp"
    writer = RunWriter(path)
    record(writer, range(5))
    assert writer.flush()
    path.unlink()
    writer.put(7, {"rms": np.zeros(3)})
    assert not writer.flush()
    assert writer.failed is not None
    assert "was deleted" in writer.failed
    writer.close()


def test_no_folder(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "none" / "run.sp")
    assert writer.failed is not None
    assert "folder" in writer.failed
    record(writer, range(3))
    writer.close()


def test_network_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No write-ahead log there: it says so, and readers and writer share the file."""
    monkeypatch.setattr("signalprop.watching.file.schema.networked", lambda path: True)
    path = tmp_path / "run.sp"
    with RunWriter(path, every=0.005) as writer:
        assert writer.notice is not None
        assert "network drive" in writer.notice
        writer.add_sites([RunSite("a")])
        for step in range(50):
            writer.put(step, {"rms": [float(step)]})
            assert writer.flush()
            with Run(path) as run:
                assert len(run.steps) == step + 1
    assert writer.failed is None


def test_slow_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training is not delayed: samples are dropped, counted, and it is said."""
    writer = RunWriter(tmp_path / "run.sp", waiting=100_000)
    assert writer._store is not None
    commit = writer._store.commit
    writer._store.commit = lambda: (time.sleep(0.3), commit())  # type: ignore[method-assign]
    writer.add_sites([RunSite(f"s{k}") for k in range(1000)])
    start = time.perf_counter()
    for step in range(200):
        writer.put(step, {"rms": np.zeros(1000)})
    assert time.perf_counter() - start < 0.25
    writer.close()
    with Run(writer.path) as run:
        kept = len(run.steps)
    assert kept >= 20
    assert writer.dropped == 200 - kept
    assert len(caplog.records) == 2  # when it begins, and how many at the end
