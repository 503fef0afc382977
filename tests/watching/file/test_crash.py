"""What a run file stands: kill -9, forks, full disks, wrong folders and files."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from signalprop.errors import SignalpropError
from signalprop.watching.file.reader import Run
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks")

SITES = 7
# forks a writer, lets it write for a random time, kills it, and sees what is in the file
KILLER = """
import json, os, random, signal, sys, time
import numpy as np
from signalprop.watching.file.reader import Run
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter

folder, rounds, SITES = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random.seed(0)

def write(path, begin, pipe):
    writer = RunWriter(path, mode="resume", every=0.003)
    writer.add_sites([RunSite(f"s{k}") for k in range(SITES)])
    step = begin
    while True:
        for _ in range(random.randrange(1, 30)):
            writer.put(step, {"rms": np.arange(SITES) + float(step), "two": np.full(SITES, 2.0)})
            writer.scalar(step, {"loss": float(step)})
            step += 1
        if writer.flush():
            os.write(pipe, b"%d\\n" % (step - 1))
        if writer.failed:
            os.write(pipe, b"failed\\n")

flushed, last, seen, steps = 0, -1, 0, 0
for k in range(rounds):
    path = f"{folder}/run{k // 20}.sp"  # every file is killed twenty times, and goes on
    if k % 20 == 0:
        last = -1
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write(path, last + 1, theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    time.sleep(random.uniform(0.0, 0.05))
    os.kill(child, 9)
    os.waitpid(child, 0)
    said = os.read(ours, 1 << 16).split()
    os.close(ours)
    assert b"failed" not in said, said
    sure = int(said[-1]) if said else last
    flushed += len(said)
    try:
        run = Run(path)
    except Exception as error:
        assert sure == -1 and ("empty" in str(error) or "not exist" in str(error)), error
        continue
    with run:
        found = run.steps
        assert len(found) - 1 >= sure, (len(found), sure)
        assert np.array_equal(found, np.arange(len(found)))
        if len(found):
            got = run.values("rms").mean
            assert np.array_equal(got, np.arange(SITES) + found[:, None].astype(float))
            few = run.values("rms", columns=9)
            assert few.samples.sum() == len(found) and len(few.first) <= 9
            for a, b, mean, low, high in zip(few.first, few.last, few.mean, few.low, few.high):
                assert np.array_equal(low, got[a]) and np.array_equal(high, got[b])
                assert np.allclose(mean, got[a:b + 1].mean(0))
            losses = run.scalars()["loss"][1]
            assert np.array_equal(losses, np.arange(len(losses))) and len(losses) > sure
        last = max(sure, len(found) - 1)
        seen += 1
        steps += len(found)
print(json.dumps({"flushed": flushed, "seen": seen, "steps": steps}))
"""


def _record(writer: RunWriter, steps: range, sites: int = 3) -> None:
    writer.add_sites([RunSite(f"s{k}") for k in range(sites)])
    for step in steps:
        writer.put(step, {"rms": np.full(sites, float(step))})


def test_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), "200", str(SITES)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["seen"] > 100
    assert found["flushed"] > 100


def test_forked(tmp_path: Path) -> None:
    """A DataLoader's worker neither writes, nor closes the file, nor hangs."""
    code = """
import os, sys, numpy as np
from signalprop.watching.file.reader import Run
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter
path = sys.argv[1]
writer = RunWriter(path, every=0.001)
sites = writer.add_sites([RunSite("a")])
for step in range(300):
    writer.put(step, {"rms": [1.0]}, sites)
    if step % 30 == 0:
        child = os.fork()
        if child == 0:
            writer.put(10**6, {"rms": [2.0]}, sites)
            writer.alert(1, "X", "issue")
            assert not writer.flush()
            writer.close()
            sys.exit(0)  # with all of Python's cleaning up
        assert os.waitpid(child, 0)[1] == 0
writer.close()
assert writer.failed is None
with Run(path) as run:
    assert run.steps.tolist() == list(range(300)), run.steps
    assert not run.alerts
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.sp")], check=True, timeout=60)


@pytest.mark.parametrize("end", ["pass", "raise KeyboardInterrupt", "sys.exit(3)"])
def test_not_closed(tmp_path: Path, end: str) -> None:
    code = f"""
import sys
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.writer import RunWriter
writer = RunWriter(sys.argv[1], every=100)
writer.add_sites([RunSite("a")])
writer.put(5, {{"rms": [1.0]}})
{end}
"""
    path = tmp_path / "run.sp"
    subprocess.run(
        [sys.executable, "-c", code, str(path)], check=False, timeout=60, capture_output=True
    )
    with Run(path) as run:
        assert run.steps.tolist() == [5]
    assert [p.name for p in tmp_path.iterdir()] == ["run.sp"]


def test_two_writers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run.sp"
    with RunWriter(path) as first:
        _record(first, range(5))
        for mode in ("resume", "overwrite"):
            second = RunWriter(path, mode=mode)
            assert second.failed is not None
            assert "another training" in second.failed
            _record(second, range(100, 200))
            assert not second.flush()
            second.close()
        assert first.flush()
    with Run(path) as run:
        assert run.steps.tolist() == [0, 1, 2, 3, 4]
    assert len(caplog.records) == 2
    with RunWriter(path, mode="resume") as third:  # the lock is gone
        assert third.failed is None


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
            _record(writer, range(40), 1)
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
    _record(writer, range(5))
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
    _record(writer, range(3))
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


def test_existing(tmp_path: Path) -> None:
    path = tmp_path / "run.sp"
    with RunWriter(path) as writer:
        _record(writer, range(5))
    refused = RunWriter(path)
    assert refused.failed is not None
    assert "exists" in refused.failed
    with RunWriter(path, mode="overwrite") as writer:
        _record(writer, range(2))
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
        _record(writer, range(5))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=2")
    connection.close()
    with pytest.raises(SignalpropError, match="newer signalprop"):
        Run(path)
    later = RunWriter(path, mode="resume")
    assert later.failed is not None
    assert "newer signalprop" in later.failed


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


def test_interrupted_close(tmp_path: Path) -> None:
    """ctrl-C while the rest is written: it is written all the same, by the second close."""
    writer = RunWriter(tmp_path / "run.sp", every=60)
    assert writer._store is not None
    commit = writer._store.commit
    writer._store.commit = lambda: (time.sleep(0.4), commit())  # type: ignore[method-assign]
    _record(writer, range(3))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            writer.close()
    finally:
        signal.signal(signal.SIGALRM, before)
    writer.close()
    with Run(writer.path) as run:
        assert len(run.steps) == 3


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="signalprop")
