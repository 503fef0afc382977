"""The side of the run file that is written: tables, coarser levels, and room for them."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signalprop.errors import SignalpropError
from signalprop.watching.file import schema
from signalprop.watching.file.levels import FIRST, Bins, Floats
from signalprop.watching.file.pyramid import Child, Pyramid, packed


class Lock:
    """Held by the one writer of a run file; the system lets go of it when the process dies.

    It is an empty SQLite file beside the run, since SQLite knows how to lock on every system, and
    a lock on the run file itself would keep the readers out.

    Args:
        path: of the run file.

    Raises:
        SignalpropError: another writer holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + "-lock")
        self._held = sqlite3.connect(
            self.path, timeout=0.0, isolation_level=None, check_same_thread=False
        )
        try:
            self._held.execute("PRAGMA journal_mode=MEMORY")
            self._held.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._held.close()
            if "locked" not in str(error):
                raise
            raise SignalpropError(
                f"{path} is being written by another training; record to another file"
            ) from error

    def release(self) -> None:
        """Let the next writer in."""
        self.path.unlink(missing_ok=True)
        self._held.close()


class Store:
    """An open run file, and what of the run is not yet in its coarser levels.

    Its methods are called from one thread at a time, between `begin` and `commit`.

    Args:
        path: of the file.
        mode: `new`, `resume` or `overwrite`.
        max_bytes: size above which the oldest samples are thinned; None for no limit.
        log: names of the statistics whose mean over steps is the geometric one.

    Raises:
        SignalpropError: the file cannot be written, as its message says.
    """

    def __init__(
        self, path: Path, *, mode: str, max_bytes: int | None, log: Collection[str]
    ) -> None:
        self.path, self.max_bytes, self.log = path, max_bytes, frozenset(log)
        if mode == "new" and path.exists() and path.stat().st_size:
            raise SignalpropError(
                f"{path} exists; record to another file, or say mode='resume' or mode='overwrite'"
            )
        self.lock = Lock(path)
        self.notice: str | None = None
        self._sites = 0
        self._statistics: dict[str, int] = {}
        self._number = -1  # of the sample that is still open
        self._step: int | None = None
        self._open: dict[int, Floats] = {}
        self._changed: set[int] = set()
        self._written = 0  # bytes since it was last seen to that there is room
        self._resumed = False
        try:
            if mode == "overwrite":
                _remove(path)
            self._connect()
        except BaseException:
            self.lock.release()
            raise

    def _connect(self) -> None:
        there = self.path.exists() and self.path.stat().st_size > 0
        made = sqlite3.connect(
            self.path, timeout=5.0, isolation_level=None, check_same_thread=False
        )
        try:
            schema.harden(made)
            there = there and not schema.blank(made)
            if there:
                schema.check(made, self.path)
            else:
                made.execute("PRAGMA page_size=8192")
            wanted = "truncate" if schema.networked(self.path) else "wal"
            got = self._journal(made, wanted)
            if got != "wal":
                self.notice = (
                    f"{self.path} lies where SQLite's write-ahead log does not work (a network "
                    "drive?); it is written with a rollback journal, which readers may delay"
                )
            made.execute("PRAGMA synchronous=NORMAL")
            self.connection = made
            made.execute("BEGIN IMMEDIATE")
            if not there:
                schema.create(made)
                self._renew()
            self._resume()
            self._resumed = there
            made.execute("COMMIT")
        except BaseException:
            made.close()
            raise

    def _journal(self, connection: sqlite3.Connection, wanted: str) -> str:
        try:
            got = connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()[0]
            if got == "wal":  # some drives say yes and fail at the first lock
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            if wanted != "wal":
                raise
            got = ""
        if got == wanted:
            return got
        return connection.execute("PRAGMA journal_mode=truncate").fetchone()[0]

    def _resume(self) -> None:
        """Take up counters, and the bins that were not complete."""
        run = self.connection.execute
        ask = "SELECT count(*), coalesce(max(id), -1) + 1 FROM sites"
        self._sites, end = run(ask).fetchone()
        if self._sites != end:
            raise SignalpropError(f"{self.path} is damaged: its sites have gaps")
        rows = run("SELECT name, id, log FROM statistics").fetchall()
        self._statistics = {name: key for name, key, _ in rows}
        self.pyramid = Pyramid(self.connection, {key for _, key, log in rows if log})
        after = self.pyramid.resume()
        self._number, self._step = after - 1, None
        self._open.clear()
        self._changed.clear()
        if after:
            self._step = run("SELECT max(last) FROM bins").fetchone()[0]
        left = run("SELECT number, step FROM steps WHERE number>=? ORDER BY number", (after,))
        steps = left.fetchmany(3 * FIRST)
        if len(steps) > 2 * FIRST:
            raise SignalpropError(f"{self.path} is damaged: its coarser levels are missing")
        for number, step in steps:
            self._close_sample()
            self._number, self._step = number, step
            found = run("SELECT statistic, value FROM samples WHERE step=?", (step,))
            self._open = {key: self._wide(np.frombuffer(v, "<f4")) for key, v in found}

    def _wide(self, values: Floats) -> Floats:
        full = np.full(self._sites, np.nan, np.float32)
        full[: len(values)] = values
        return full

    # ---------------------------------------------------------------- what is recorded

    def begin(self) -> None:
        """Open a transaction."""
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Write what changed of the open sample, thin where room is short, and end it."""
        self._write_open()
        self._thin()
        self.connection.execute("COMMIT")

    def meta(self, key: str, value: str) -> None:
        """Set a fact."""
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))

    def site(self, index: int, site: schema.RunSite) -> None:
        """Add a site; the same index twice is the same site."""
        self.connection.execute(
            "INSERT OR IGNORE INTO sites VALUES(?, ?, ?, ?, ?)",
            (index, site.name, site.op, site.kind, site.model),
        )
        self._sites = max(self._sites, index + 1)

    def sample(
        self, step: int, time: float, values: Mapping[str, Floats], sites: NDArray[np.int64] | None
    ) -> bool:
        """Add statistics of a step; False where the step lies before the last one."""
        self._cut(step)
        if self._step is not None and step < self._step:
            return False
        if step != self._step:
            self._write_open()
            self._close_sample()
            if self.max_bytes is not None and self._written > self.max_bytes // 32:
                self._thin()
            self._number, self._step = self._number + 1, step
            self.connection.execute(
                "INSERT OR REPLACE INTO steps VALUES(?, ?, ?)", (self._number, step, time)
            )
        for name, new in values.items():
            key = self._statistic(name)
            if sites is None and key not in self._open:
                self._open[key] = self._wide(new) if len(new) < self._sites else new
            else:
                old = self._open.get(key)
                full = self._wide(new[:0] if old is None else old)
                full[slice(len(new)) if sites is None else sites] = new
                self._open[key] = full
            self._changed.add(key)
        return True

    def scalar(self, step: int, name: str, value: float) -> None:
        """Add a scalar."""
        self._cut(step)
        self._insert("scalars", step, name, value)

    def alert(self, step: int, code: str, severity: str, site: str | None, detail: str) -> None:
        """Add an alert."""
        self._cut(step)
        self._insert("alerts", step, code, severity, site, detail)

    def window(
        self, step: int, reason: str, steps: Sequence[int], values: Mapping[str, Floats]
    ) -> None:
        """Add the steps before a spike."""
        self._cut(step)
        key = self._insert("windows", step, reason, np.asarray(steps, "<i8").tobytes())
        for name, value in values.items():
            self._insert("window_values", key, name, packed(value))

    def replay(
        self,
        step: int,
        site: str | None,
        batch: int | None,
        states: Mapping[str, bytes],
        detail: str,
    ) -> None:
        """Add what is needed to run a step again."""
        self._cut(step)
        key = self._insert("replays", step, site, batch, detail)
        for name, state in states.items():
            self._insert("replay_states", key, name, state)

    def close(self) -> None:
        """Leave one file, with no log beside it unless a reader is at work."""
        try:
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.connection.execute("PRAGMA busy_timeout=0")
            self.connection.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.Error:
            pass  # a reader is at work, or the disk is full: the log stays, and is part of the run
        finally:
            self.connection.close()
            self.lock.release()

    # ---------------------------------------------------------------- inside

    def _insert(self, table: str, *values: Any) -> int | None:
        marks = ", ?" * len(values)
        return self.connection.execute(f"INSERT INTO {table} VALUES(NULL{marks})", values).lastrowid

    def _statistic(self, name: str) -> int:
        key = self._statistics.get(name)
        if key is None:
            key = self._statistics[name] = len(self._statistics)
            if name in self.log:
                self.pyramid.log.add(key)
            self.connection.execute(
                "INSERT INTO statistics VALUES(?, ?, ?)", (key, name, int(name in self.log))
            )
        return key

    def _thin(self) -> None:
        self._written = 0
        if self.max_bytes is not None:
            self.pyramid.thin(self.max_bytes)

    def _close_sample(self) -> None:
        """The step is over: its sample enters the coarser levels."""
        if self._step is not None and self._open:
            log = self.pyramid.log
            values = {k: Bins.of(v[None], log=k in log) for k, v in self._open.items()}
            self.pyramid.push(0, Child(self._number, self._step, self._step, 1, values))
        self._open = {}

    def _write_open(self) -> None:
        if self._changed:
            self.connection.executemany(
                "INSERT OR REPLACE INTO samples VALUES(NULL, ?, ?, ?)",
                [(self._step, k, packed(self._open[k])) for k in sorted(self._changed)],
            )
            self._written += 4 * self._sites * len(self._changed)
            self._changed.clear()

    def _cut(self, step: int) -> None:
        """A resumed training goes on at its first step: what was recorded from there on, goes."""
        if not self._resumed:
            return
        self._resumed = False
        run = self.connection.execute
        for table in schema.STEPPED:
            run(f"DELETE FROM {table} WHERE step>=?", (step,))
        run("DELETE FROM window_values WHERE window NOT IN (SELECT id FROM windows)")
        run("DELETE FROM replay_states WHERE replay NOT IN (SELECT id FROM replays)")
        run(
            "DELETE FROM levels WHERE (level, bin) IN (SELECT level, bin FROM bins WHERE last>=?)",
            (step,),
        )
        run("DELETE FROM bins WHERE last>=?", (step,))
        self._renew()
        self._resume()

    def _renew(self) -> None:
        """Tell readers that what they know of the run does not hold any more."""
        self.meta("_generation", uuid.uuid4().hex)


def _remove(path: Path) -> None:
    """Delete a run file and what SQLite left beside it; nothing else is ever deleted."""
    if path.exists() and path.stat().st_size:
        old = sqlite3.connect(path, timeout=0.0, isolation_level=None)
        try:
            application = old.execute("PRAGMA application_id").fetchone()[0]
            if application != schema.APPLICATION and not schema.blank(old):
                raise SignalpropError(f"{path} is no run file; it is not overwritten")
        except sqlite3.DatabaseError as error:
            if "not a database" not in str(error):
                raise
            raise SignalpropError(f"{path} is no run file; it is not overwritten") from error
        finally:
            old.close()
    for end in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + end).unlink(missing_ok=True)
