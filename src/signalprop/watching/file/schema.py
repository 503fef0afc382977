"""What a run file is: the tables, how it is known, and how its failures are said.

It is an SQLite file. Values over all sites are blobs of little-endian float32, in the order of
`sites.id`; a blob that is shorter than the table of sites was written before the last ones were
added. Nothing in the file is ever executed: blobs are numbers, all else is text or JSON.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signalprop.errors import SignalpropError

#: what `PRAGMA application_id` says of a run file
APPLICATION = int.from_bytes(b"sigp", "big")
#: what `PRAGMA user_version` says: raised with every change of the tables
VERSION = 1
#: bytes of the largest blob or text
LARGEST_VALUE = 1 << 27
#: characters of the largest JSON
LARGEST_JSON = 1 << 20
#: rows of the tables that are read as a whole (sites, statistics, alerts, ...)
MOST_ROWS = 1 << 20

TABLES = {
    name: f"CREATE TABLE {name}({columns})"
    for name, columns in {
        # facts of the run as JSON
        "meta": "key TEXT PRIMARY KEY, value TEXT NOT NULL",
        "sites": "id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, op TEXT NOT NULL, "
        "kind TEXT NOT NULL, model TEXT NOT NULL",
        # log: whether a mean of this statistic is the geometric one
        "statistics": "id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, log INTEGER NOT NULL",
        # the sampled steps, numbered from 0 without gaps; time: seconds since 1970
        "steps": "number INTEGER PRIMARY KEY, step INTEGER NOT NULL UNIQUE, time REAL NOT NULL",
        # full resolution
        "samples": "id INTEGER PRIMARY KEY, step INTEGER NOT NULL, statistic INTEGER NOT NULL, "
        "value BLOB NOT NULL, UNIQUE(statistic, step)",
        # the coarser levels: which samples a bin holds, and its values per statistic
        "bins": "id INTEGER PRIMARY KEY, level INTEGER NOT NULL, bin INTEGER NOT NULL, "
        "first INTEGER NOT NULL, last INTEGER NOT NULL, samples INTEGER NOT NULL, "
        "UNIQUE(level, bin), UNIQUE(level, first)",
        # count is null where every value of the bin counts
        "levels": "id INTEGER PRIMARY KEY, level INTEGER NOT NULL, bin INTEGER NOT NULL, "
        "statistic INTEGER NOT NULL, mean BLOB NOT NULL, low BLOB NOT NULL, high BLOB NOT NULL, "
        "count BLOB, UNIQUE(statistic, level, bin)",
        "scalars": "id INTEGER PRIMARY KEY, step INTEGER NOT NULL, name TEXT NOT NULL, value REAL",
        "alerts": "id INTEGER PRIMARY KEY, step INTEGER NOT NULL, code TEXT NOT NULL, "
        "severity TEXT NOT NULL, site TEXT, detail TEXT NOT NULL",
        # the steps before a spike; steps: int64, value: (steps, sites)
        "windows": "id INTEGER PRIMARY KEY, step INTEGER NOT NULL, reason TEXT NOT NULL, "
        "steps BLOB NOT NULL",
        "window_values": "id INTEGER PRIMARY KEY, window INTEGER NOT NULL, "
        "statistic TEXT NOT NULL, value BLOB NOT NULL, UNIQUE(window, statistic)",
        # what is needed to run the step of the first non-finite value again
        "replays": "id INTEGER PRIMARY KEY, step INTEGER NOT NULL, site TEXT, batch INTEGER, "
        "detail TEXT NOT NULL",
        "replay_states": "id INTEGER PRIMARY KEY, replay INTEGER NOT NULL, "
        "generator TEXT NOT NULL, state BLOB NOT NULL, UNIQUE(replay, generator)",
    }.items()
}
#: tables whose rows belong to a step
STEPPED = ("steps", "samples", "scalars", "alerts", "windows", "replays")


@dataclass(frozen=True)
class RunSite:
    """A site of a recorded run.

    Attributes:
        name: its name, under the name of its model where that has one: `generator.block1.relu`.
        op: operation, e.g. `linear`.
        kind: what the operation is to the error signal.
        model: name of its model; `""` where there is only one.
    """

    name: str
    op: str = ""
    kind: str = ""
    model: str = ""


def create(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty file, in the transaction that is open."""
    for statement in TABLES.values():
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION}")
    connection.execute(f"PRAGMA user_version={VERSION}")


def blank(connection: sqlite3.Connection) -> bool:
    """Whether a file has no tables at all: its writer ended before it had made them."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    return application == 0 and tables == 0


def check(connection: sqlite3.Connection, path: Path) -> None:
    """See that an open file is a run file of this version, with these tables and nothing else.

    Views, triggers and expressions of a hostile file would be code; there are none in a run file.

    Args:
        connection: to the file.
        path: its name, for the message.

    Raises:
        SignalpropError: it is something else.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if blank(connection):
        raise SignalpropError(f"{path} is empty; no run was recorded there (yet)")
    if application != APPLICATION:
        raise SignalpropError(f"{path} is no run file, but another program's database")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        age = "a newer" if version > VERSION else "an older"
        raise SignalpropError(
            f"{path} was written by {age} signalprop (run file version {version}, this one "
            f"knows {VERSION}); use that one, or record to another file"
        )
    rows = connection.execute("SELECT type, name, sql FROM sqlite_schema LIMIT 100").fetchall()
    tables = {name: sql for kind, name, sql in rows if kind == "table"}
    others = [row for row in rows if row[0] != "table" and not (row[0] == "index" and not row[2])]
    if tables != TABLES or others:
        raise SignalpropError(f"{path} is no run file of version {VERSION}: its tables differ")


def harden(connection: sqlite3.Connection) -> None:
    """Bound what a damaged or hostile file can make SQLite do."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    connection.execute("PRAGMA mmap_size=0")  # a file that shrinks would be a bus error
    connection.execute("PRAGMA temp_store=MEMORY")


def said(error: BaseException, path: Path) -> str:
    """One sentence for what SQLite or the system raised."""
    if isinstance(error, SignalpropError):
        return str(error)
    if isinstance(error, ValueError | TypeError):
        return f"{path} is damaged"
    text = str(error).lower()
    for key, sentence in (
        ("full", f"no space is left on the disk for {path}"),
        ("not a database", f"{path} is no run file"),
        ("malformed", f"{path} is damaged"),
        ("readonly", f"{path} cannot be written: the file or its folder is read-only"),
        ("unable to open", f"{path} cannot be opened: see that its folder exists and its rights"),
        ("interrupted", f"{path} is damaged: reading it takes too long"),
        ("locked", f"{path} is locked by another process"),
        ("disk i/o", f"the disk cannot write or read {path} ({error})"),
    ):
        if key in text:
            return sentence
    return f"{path}: {error}"


def to_json(value: Any) -> str:
    """JSON of a value; what JSON does not know becomes text."""
    text = json.dumps(value, default=str)
    if len(text) > LARGEST_JSON:
        raise SignalpropError(f"a value of {len(text)} characters is too large to be recorded")
    return text


def from_json(text: Any) -> Any:
    """Read JSON out of a file that is not trusted."""
    if not isinstance(text, str) or len(text) > LARGEST_JSON:
        raise SignalpropError("a JSON value has a wrong size")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SignalpropError("a JSON value cannot be read") from error


#: file systems of this machine, where a write-ahead log's shared memory works
_LOCAL = (
    "ext2 ext3 ext4 xfs btrfs zfs tmpfs ramfs overlay f2fs bcachefs vfat exfat ntfs ntfs3 fuseblk "
    "rootfs reiserfs jfs squashfs"
).split()


def networked(path: Path) -> bool:
    """Whether a path lies on a network drive (or one that is not known to be local).

    SQLite's write-ahead log needs memory shared by all processes, which machines do not share.

    Args:
        path: of a file; need not exist.

    Returns:
        The answer on Linux, and for a server's path on Windows; elsewhere False.
    """
    where = str(path.resolve())
    if sys.platform == "win32":
        return where.startswith("\\\\")
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    best, kind = "", "ext4"
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, types = before.split(), after.split()
        if len(fields) < 5 or not types:
            continue
        point = fields[4].replace("\\040", " ")
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, types[0]
    return kind not in _LOCAL
