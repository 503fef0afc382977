"""Opening a run file for reading, wherever it lies and whoever is writing it."""

from __future__ import annotations

import sqlite3
import sys
import time
from pathlib import Path
from urllib.parse import quote

from signalprop.errors import SignalpropError
from signalprop.watching.file import schema

#: seconds a single question to a file may take; only a damaged or hostile file needs longer
LONGEST = 60.0
#: SQLite's way to files that locks no one out, and needs no index of the log beside it
_NO_LOCKS = "win32-none" if sys.platform == "win32" else "unix-none"


class Guard:
    """Ends a question that takes too long: a damaged tree may lead around in circles.

    Args:
        connection: that the questions are asked of.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.restart()
        connection.set_progress_handler(lambda: time.monotonic() > self.end, 100_000)

    def restart(self) -> None:
        """Before every question."""
        self.end = time.monotonic() + LONGEST


def connect(path: Path) -> tuple[sqlite3.Connection, Guard, str | None]:
    """Open for reading.

    Args:
        path: of the run file.

    Returns:
        The connection, its guard, and what is not as usual in one sentence (None mostly).

    Raises:
        SignalpropError: it is no run file, or cannot be read.
    """
    try:
        if not path.is_file():
            raise SignalpropError(f"{path} does not exist, or is no file")
        empty = path.stat().st_size == 0
    except OSError as error:
        raise SignalpropError(f"{path} cannot be read: {error.strerror}") from error
    if empty:
        raise SignalpropError(f"{path} is empty; no run was recorded there (yet)")
    beside = {end: path.with_name(path.name + end) for end in ("-wal", "-journal")}
    logged = beside["-wal"].exists() and beside["-wal"].stat().st_size > 0
    problem: Exception | None = None
    for options, exclusive, notice in (
        ("mode=ro", False, None),
        # a journal that was left behind by a killed process: SQLite rolls it back, if it may write
        ("mode=rw", False, None) if beside["-journal"].exists() else (None, False, None),
        # a folder that cannot be written has no room for the log's index: keep it in memory
        (f"mode=ro&vfs={_NO_LOCKS}", True, None) if logged else (None, False, None),
        (
            "mode=ro&immutable=1",
            False,
            "read as it was when it was opened"
            if not logged
            else "read without its log: the last seconds may be missing",
        ),
    ):
        if options is None:
            continue
        try:
            connection, guard = _open(path, options, exclusive=exclusive)
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            problem = problem or error
            if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
                break
        else:
            return connection, guard, notice and f"{path}: {notice}"
    assert problem is not None
    raise SignalpropError(schema.said(problem, path)) from problem


def _open(path: Path, options: str, *, exclusive: bool) -> tuple[sqlite3.Connection, Guard]:
    name = quote(str(path.absolute()).replace("\\", "/"))
    made = sqlite3.connect(
        f"file:{name}?{options}",
        uri=True,
        timeout=10.0,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        guard = Guard(made)
        if exclusive:
            made.execute("PRAGMA locking_mode=EXCLUSIVE")
        schema.harden(made)
        made.execute("PRAGMA query_only=ON")
        schema.check(made, path)
    except BaseException:
        made.close()
        raise
    return made, guard
