"""One run that may not exist yet, be written, be replaced, or be damaged."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from signalprop.errors import SignalpropError
from signalprop.report.run.overview import Overview, overview
from signalprop.watching.file.reader import Run
from signalprop.watching.file.result import Window

#: a file that was written so many seconds ago is taken for one that is being written
RECENT = 20.0


@dataclass(frozen=True)
class State:
    """How a run is.

    Attributes:
        name: of its file.
        state: `waiting`, `open` or `damaged`.
        sentence: why it is not open; empty where it is.
        generation: another one where what was known of the run does not hold any more.
        cursor: its end; empty where it is not open.
        written: seconds since 1970 when it was last written; 0 where that is not known.
    """

    name: str
    state: str
    sentence: str
    generation: str
    cursor: str
    written: float

    @property
    def recent(self) -> bool:
        """Whether it seems to be written just now."""
        return time.time() - self.written < RECENT


class Followed:
    """A run file that is looked at again and again, from any thread.

    Args:
        path: of the file; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._one = threading.RLock()
        self._run: Run | None = None
        self._identity: tuple[int, ...] | None = None
        self._opened = 0
        self._overview: Overview | None = None
        self._windows: tuple[str, tuple[Window, ...]] = ("", ())
        self.state = State(self.name, "waiting", self._absent(), "", "", 0.0)

    def look(self) -> State:
        """See how it is now; opens it, or opens it anew, where that is called for."""
        with self._one:
            written = self._written()
            try:
                self._reopen()
                if self._run is None:
                    return self._set("waiting", self._absent(), "", written)
                cursor = self._run.cursor
            except SignalpropError as error:
                self._close()
                word = "waiting" if "is empty" in str(error) else "damaged"
                return self._set(word, self._named(str(error)), "", written)
            return self._set("open", "", cursor, written)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Run]:
        """The open run, for one question.

        Yields:
            The run.

        Raises:
            SignalpropError: it is not open; the sentence says why.
        """
        with self._one:
            if self._run is None:
                self.look()
            if self._run is None:
                raise SignalpropError(self.state.sentence)
            try:
                yield self._run
            except SignalpropError as error:
                raise SignalpropError(self._named(str(error))) from error

    def overview(self) -> Overview:
        """The run at a glance.

        Returns:
            As it was at its present cursor.

        Raises:
            SignalpropError: it is not open, or damaged.
        """
        with self.reading() as run:
            cursor = run.cursor
            if self._overview is None or self._overview.cursor != cursor:
                self._overview = overview(run)
            return self._overview

    def windows(self) -> tuple[Window, ...]:
        """The windows around spikes.

        Returns:
            As many as the run has.

        Raises:
            SignalpropError: it is not open, or damaged.
        """
        with self.reading() as run:
            key = f"{self.state.generation}:{self.overview().windows}"
            if self._windows[0] != key:
                self._windows = (key, run.windows)
            return self._windows[1]

    def close(self) -> None:
        """Close the file."""
        with self._one:
            self._close()

    # ---------------------------------------------------------------- inside

    def _reopen(self) -> None:
        identity = self._identify()
        if identity is None:
            self._close()
            return
        changed = identity[:2] != (self._identity or ())[:2]
        # a file that was read without its log does not show what comes later
        stale = self._run is not None and self._run.notice is not None
        if self._run is None or changed or (stale and identity != self._identity):
            self._close()
            self._run = Run(self.path)
            self._opened += changed
            self._identity = identity

    def _identify(self) -> tuple[int, ...] | None:
        try:
            at = os.stat(self.path)
        except OSError:
            return None
        return at.st_dev, at.st_ino, at.st_mtime_ns, at.st_size

    def _written(self) -> float:
        """The log is written long before the file itself."""
        last = 0.0
        for end in ("", "-wal"):
            with contextlib.suppress(OSError):
                last = max(last, os.stat(self.path.with_name(self.path.name + end)).st_mtime)
        return last

    def _set(self, word: str, sentence: str, cursor: str, written: float) -> State:
        generation = f"{self._opened}-{cursor.partition(':')[0]}"
        self.state = State(self.name, word, sentence, generation, cursor, written)
        return self.state

    def _absent(self) -> str:
        return f"{self.name} does not exist yet; this page waits for it."

    def _named(self, sentence: str) -> str:
        """Pages need not know where on this machine a file lies."""
        return sentence.replace(str(self.path), self.name)

    def _close(self) -> None:
        if self._run is not None:
            self._run.close()
        self._run = self._overview = self._identity = None
        self._windows = ("", ())
