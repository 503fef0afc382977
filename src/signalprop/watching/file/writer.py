"""Recording a run from a training loop, which it never stops, delays or fails."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signalprop.errors import SignalpropError
from signalprop.watching.file import schema
from signalprop.watching.file.levels import exact
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.store import Store

_LOG = logging.getLogger("signalprop")
#: seconds that a locked file is waited for
PATIENCE = 60.0

Item = tuple[str, tuple[Any, ...], int]


class RunWriter:
    """Writes a run file in a thread of its own.

    No method raises in the training loop, and none waits for the disk but `flush` and `close`.
    Where the file cannot be written, recording stops, `failed` says why and the log (`signalprop`)
    says it once. What was flushed stays in the file whatever happens to the process.

    Args:
        path: the file, by convention `*.sp`; its folder must exist.
        mode: what to do with a file that exists: `new` refuses it, `overwrite` replaces it,
            `resume` goes on; the first step then recorded and all after it replace what the file
            had of them, since a training that goes on from a checkpoint does these steps again.
        meta: facts of the run, kept as JSON.
        log: names of the statistics that span decades, such as norms; where steps are joined,
            their mean is the geometric one.
        max_bytes: size the file should not exceed: the oldest samples are then thinned to bins of
            16, 64, ... steps. None keeps all.
        every: seconds between flushes.
        waiting: bytes that may wait for a slow disk; samples beyond are dropped and counted.

    Attributes:
        path: the file.
        failed: why recording stopped, in one sentence; None while it works.
        notice: what is not as usual, in one sentence; None mostly.
        dropped: samples that were not recorded: the disk was too slow, or they could not be read.

    Raises:
        SignalpropError: `mode` is unknown, or a size or time is not positive. A file that cannot
            be opened does not raise: see `failed`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        mode: str = "new",
        meta: Mapping[str, Any] | None = None,
        log: Collection[str] = (),
        max_bytes: int | None = None,
        every: float = 1.0,
        waiting: int = 64 << 20,
    ) -> None:
        if mode not in ("new", "resume", "overwrite"):
            raise SignalpropError(f"mode={mode!r} is none of 'new', 'resume', 'overwrite'")
        if not every > 0 or not waiting > 0 or (max_bytes is not None and not max_bytes > 0):
            raise SignalpropError("every, waiting and max_bytes must be positive")
        self.path = Path(path).absolute()  # a training may change its folder
        self.failed: str | None = None
        self.notice: str | None = None
        self.dropped = 0
        self._said: set[str] = set()
        self._every, self._limit = every, waiting
        self._queue: deque[Item] = deque()
        self._bytes = 0
        self._put, self._done = 0, 0  # items taken in, and items dealt with
        self._wake = threading.Condition()
        self._ended = threading.Event()
        self._urgent = self._closing = False
        self._mine = True  # not so in a process forked from this one
        self._index: dict[str, int] = {}
        self._store: Store | None = None
        try:
            self._store = Store(self.path, mode=mode, max_bytes=max_bytes, log=log)
            self.notice = self._store.notice
            rows = self._store.connection.execute("SELECT name, id FROM sites")
            self._index = dict(rows.fetchall())
        except Exception as error:
            self._fail(error)
            return
        if self.notice:
            self._say(self.notice)
        _WRITERS.add(self)
        self._thread = threading.Thread(target=self._work, name="signalprop run", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        for key, value in (meta or {}).items():
            self.set_meta(key, value)

    # ---------------------------------------------------------------- recording

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a fact of the run; anything that JSON holds, the rest as text."""
        self._json("meta", (key,), value)

    def add_sites(self, sites: Iterable[RunSite]) -> NDArray[np.int64]:
        """Make sites known, at any time; a site of a known name is that site.

        Args:
            sites: in the order in which their values will be given.

        Returns:
            Their indices in the file, for `put`.
        """
        found = []
        for site in sites:
            with self._wake:
                new = site.name not in self._index
                index = self._index.setdefault(site.name, len(self._index))
                if new:
                    self._take("site", (index, site), 0)
            found.append(index)
        return np.asarray(found, dtype=np.int64)

    def put(
        self,
        step: int,
        values: Mapping[str, NDArray[np.floating] | Sequence[float]],
        sites: NDArray[np.int64] | None = None,
    ) -> None:
        """Record statistics of a step, one value per site.

        Several calls for one step add to it. A step before the last one is not recorded.

        Args:
            step: of the training.
            values: per statistic, (sites,); nan where it does not apply. Copied.
            sites: what `add_sites` returned; None for all sites of the file.
        """
        if not self._mine or self.failed:
            return
        try:
            known = len(self._index)
            size = known if sites is None else len(sites)
            copied = {name: exact(value) for name, value in values.items()}
            wrong = [name for name, value in copied.items() if value.shape != (size,)]
            if wrong or not isinstance(step, int):
                self._drop(f"{', '.join(wrong) or 'the step'} does not fit the {size} sites")
                return
            if sites is not None and np.array_equal(sites, np.arange(known)):
                sites = None
            bytes_ = 4 * size * len(copied)
            if self._bytes + bytes_ > self._limit:
                self._drop("the disk is too slow: samples are dropped")
                return
            self._take("sample", (step, time.time(), copied, sites), bytes_)
        except Exception as error:
            self._drop(f"a sample could not be read ({error})")

    def scalar(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step, e.g. the loss or the user's own."""
        for name, value in values.items():
            try:
                self._take("scalar", (int(step), str(name), float(value)), 64)
            except Exception as error:
                self._drop(f"{name} could not be read ({error})")

    def alert(
        self, step: int, code: str, severity: str, site: str | None = None, detail: Any = None
    ) -> None:
        """Record an alert; `detail` is kept as JSON."""
        self._json("alert", (int(step), code, severity, site), detail)

    def window(
        self,
        step: int,
        reason: str,
        steps: Sequence[int],
        values: Mapping[str, NDArray[np.floating]],
    ) -> None:
        """Record every step before a spike.

        Args:
            step: of the spike.
            reason: what happened there.
            steps: the steps before it.
            values: per statistic, (steps, sites).
        """
        try:
            copied = {name: exact(value) for name, value in values.items()}
            if any(v.ndim != 2 or len(v) != len(steps) for v in copied.values()):
                self._drop("a window has not one row per step")
                return
            size = sum(v.nbytes for v in copied.values())
            self._take("window", (int(step), reason, list(steps), copied), size)
        except Exception as error:
            self._drop(f"a window could not be read ({error})")

    def replay(
        self,
        step: int,
        site: str | None,
        batch: int | None,
        states: Mapping[str, bytes],
        detail: Any = None,
    ) -> None:
        """Record what is needed to run a step again, e.g. that of the first non-finite value.

        Args:
            step: of the training.
            site: where it was seen.
            batch: index of the batch.
            states: per random generator (`cpu`, `cuda:0`, `numpy`, `python`), its state.
            detail: kept as JSON.
        """
        copied = {str(name): bytes(state) for name, state in states.items()}
        self._json("replay", (int(step), site, batch, copied), detail)

    # ---------------------------------------------------------------- ending

    def flush(self, timeout: float = PATIENCE) -> bool:
        """Wait until all that was recorded so far is on the disk.

        Args:
            timeout: seconds to wait.

        Returns:
            Whether it is.
        """
        if not self._mine or self._store is None:
            return False
        with self._wake:
            aim, self._urgent = self._put, True
            self._wake.notify_all()
            done = self._wake.wait_for(lambda: self.failed or self._done >= aim, timeout)
        return bool(done) and self.failed is None

    def close(self) -> None:
        """Write the rest and close the file; a second call does nothing."""
        if not self._mine or self._store is None:
            return
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        ended = self._ended.wait(PATIENCE)  # not join: interrupted, it takes the thread for dead
        atexit.unregister(self.close)
        if not ended:
            self._say(f"{self.path}: the disk does not answer; the last seconds may be missing")
        elif self.dropped and "end" not in self._said:
            self._said.add("end")
            self._say(f"{self.path}: {self.dropped} samples are missing")

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # ---------------------------------------------------------------- inside

    def _json(self, what: str, args: tuple[Any, ...], value: Any) -> None:
        try:
            text = schema.to_json(value)
            self._take(what, (*args, text), len(text))
        except Exception as error:
            self._drop(f"{what} could not be read ({error})")

    def _take(self, what: str, args: tuple[Any, ...], size: int) -> None:
        if not self._mine or self.failed or self._closing:
            return
        with self._wake:
            if what != "site" and self._bytes + size > 2 * self._limit:
                self.dropped += 1
                return
            self._queue.append((what, args, size))
            self._put += 1
            self._bytes += size
            if self._bytes > self._limit // 4 and not self._urgent:
                self._urgent = True
                self._wake.notify_all()

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if why not in self._said and len(self._said) < 20:
            self._said.add(why)
            self._say(f"{self.path}: {why}")

    def _say(self, sentence: str) -> None:
        _LOG.warning(sentence)  # not warnings.warn, which a filter may turn into an error

    def _fail(self, error: BaseException) -> None:
        why = schema.said(error, self.path)
        self.failed = f"{why}; nothing more is recorded, training goes on"
        self._say(self.failed)

    def _work(self) -> None:
        assert self._store is not None
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._urgent or self._closing, self._every)
                    self._urgent = False
                    batch, last = list(self._queue), self._closing
                    self._queue.clear()
                if batch:
                    self._write(self._store, batch)
                with self._wake:
                    self._done += len(batch)
                    self._bytes -= sum(size for *_, size in batch)
                    self._wake.notify_all()
                if last:
                    break
        except BaseException as error:  # whatever it is, it must not reach the training
            self._fail(error)
        finally:
            self._store.close()
            with self._wake:
                self._queue.clear()
                self._wake.notify_all()
            self._ended.set()

    def _write(self, store: Store, batch: list[Item]) -> None:
        if not self.path.exists():
            raise SignalpropError(f"{self.path} was deleted")
        _patient(store.begin)
        for what, args, _ in batch:
            if getattr(store, what)(*args) is False:
                self._drop(f"step {args[0]} comes before a step that is recorded: it is left out")
        _patient(store.commit)


def _patient(call: Any) -> None:
    """Call again while a reader holds a rollback journal's lock."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)


_WRITERS: weakref.WeakSet[RunWriter] = weakref.WeakSet()


def _forked() -> None:
    """In a child, e.g. a worker of a DataLoader: it must neither write nor close the file.

    SQLite must not be called at all with a connection that came through a fork, not even to free
    it, so these are kept from being freed.
    """
    for writer in list(_WRITERS):
        writer._mine = False
        if writer._store is not None:
            for kept in (writer._store.connection, writer._store.lock._held):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
