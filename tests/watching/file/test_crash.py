"""Writers that end without a word: kill -9, forks, exits, ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.watching.file.recorded import record

from signalprop.watching.file.reader import Run
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


def test_interrupted_close(tmp_path: Path) -> None:
    """ctrl-C while the rest is written: it is written all the same, by the second close."""
    writer = RunWriter(tmp_path / "run.sp", every=60)
    assert writer._store is not None
    commit = writer._store.commit
    writer._store.commit = lambda: (time.sleep(0.4), commit())  # type: ignore[method-assign]
    record(writer, range(3))
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
