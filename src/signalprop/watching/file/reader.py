"""Reading a run file: also while it is written, after a crash, and from a read-only folder."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signalprop.errors import SignalpropError
from signalprop.watching.file import schema
from signalprop.watching.file.opening import connect
from signalprop.watching.file.pieces import Source
from signalprop.watching.file.result import Alert, News, Replay, Values, Window
from signalprop.watching.file.scalars import Curve, Scalars
from signalprop.watching.file.schema import RunSite
from signalprop.watching.file.stretch import limits


class Run:
    """A recorded run, opened for reading; every question sees what is in the file by then.

    Args:
        path: of the run file.

    Attributes:
        path: the file.
        notice: what is not as usual, in one sentence; None mostly.

    Raises:
        SignalpropError: it does not exist, is no run file, or of another version. All methods
            raise it for a file that turns out to be damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._one = threading.RLock()  # a connection answers one question at a time
        self._connection, self._guard, self.notice = connect(self.path)
        self._scalars = Scalars()

    # ---------------------------------------------------------------- what is there

    @property
    def meta(self) -> dict[str, Any]:
        """Facts of the run."""
        with self._reading() as source:
            rows = source.rows("SELECT key, value FROM meta WHERE key NOT LIKE '\\_%' ESCAPE '\\'")
            return {str(key): schema.from_json(value) for key, value in rows}

    @property
    def sites(self) -> tuple[RunSite, ...]:
        """All sites, in the order of their values."""
        with self._reading() as source:
            return source.sites()

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of all statistics."""
        with self._reading() as source:
            return tuple(source.statistics())

    @property
    def steps(self) -> NDArray[np.int64]:
        """The sampled steps that are kept in full, increasing."""
        with self._reading() as source:
            rows = source.rows("SELECT step FROM steps ORDER BY number", most=1 << 26)
            return np.asarray([row[0] for row in rows], dtype=np.int64)

    @property
    def times(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The sampled steps that are kept in full, and when each was recorded.

        Times are seconds since 1970, by the clock of the machine that trained. Both are of one
        look at the file, so that they belong together while it is written.
        """
        with self._reading() as source:
            rows = source.rows("SELECT step, time FROM steps ORDER BY number", most=1 << 26)
            steps = np.asarray([row[0] for row in rows], dtype=np.int64)
            return steps, np.asarray([row[1] for row in rows], dtype=np.float64)

    @property
    def seconds(self) -> float | None:
        """Seconds from the first of `times` to the last; None where nothing was sampled yet.

        The time between two parts of a run that was resumed counts.
        """
        with self._reading() as source:
            ends = [
                source.rows(f"SELECT time FROM steps ORDER BY number {order} LIMIT 1")
                for order in ("ASC", "DESC")
            ]
            if not ends[0]:
                return None
            first, last = (float(rows[0][0]) for rows in ends)
            return last - first

    # ---------------------------------------------------------------- values

    def values(
        self,
        statistic: str,
        sites: Sequence[str] | str | None = None,
        start: int | None = None,
        stop: int | None = None,
        columns: int | None = None,
    ) -> Values:
        """Values of a statistic over steps and sites.

        Args:
            statistic: its name.
            sites: names of the sites; None for all.
            start: the first step; None for the beginning.
            stop: the step to end before; None for the end.
            columns: join neighbouring steps so that there are at most so many columns, which is
                quick for a run of any length; None for all that is kept.

        Returns:
            Values, (columns, sites). Where old samples were thinned, a column holds several. A
            joined column at the border may hold steps beyond it.

        Raises:
            SignalpropError: an unknown statistic or site, a step that is no number, or more values
                than memory should hold.
        """
        ends = limits(start, stop)
        _check(columns)
        with self._reading() as source:
            known = source.statistics()
            if statistic not in known:
                raise SignalpropError(
                    f"{self.path} has no statistic {statistic!r}; it has {', '.join(known)}"
                )
            key, log = known[statistic]
            names = [site.name for site in source.sites()]
            count = len(names)
            wanted = [sites] if isinstance(sites, str) else sites
            picked: list[int] | None = None
            if wanted is not None:
                places = {name: k for k, name in enumerate(names)}
                unknown = [name for name in wanted if name not in places]
                if unknown:
                    raise SignalpropError(f"{self.path} has no site {unknown[0]!r}")
                picked = [places[name] for name in wanted]
                names = list(wanted)
            spans, bins = source.stretch(key, count, picked, ends, columns, log=log)
        first, last, samples = (np.asarray(v, np.int64) for v in spans)
        if columns is not None and len(first) > columns:
            starts = np.arange(0, len(first), -(-len(first) // columns))
            bins = bins.reduce(starts, log=log)
            last = last[np.append(starts[1:], len(last)) - 1]
            samples = np.add.reduceat(samples, starts)
            first = first[starts]
        return Values(
            statistic,
            tuple(names),
            first,
            last,
            samples,
            bins.mean,
            bins.low,
            bins.high,
            bins.count,
            log,
        )

    def scalars(
        self, start: int | None = None, stop: int | None = None, columns: int | None = None
    ) -> dict[str, Curve]:
        """Scalars by name: numbers of the steps, such as the loss, in the order of their steps.

        The first time that a stretch is asked for, all of the file's scalars are glanced at; from
        then on only those around a stretch, and those that are new.

        Args:
            start: the first step; None for the beginning.
            stop: the step to end before; None for the end.
            columns: join neighbouring values by their means so that there are at most so many of
                each name; None for all.

        Returns:
            Steps and values of each name that has some there; where values were joined, the first
            step of them. A step that was logged twice is there twice.

        Raises:
            SignalpropError: a step is no number, or columns is not positive.
        """
        ends = limits(start, stop)
        _check(columns)
        with self._reading() as source:
            return self._scalars.read(source, ends, columns)

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """All alerts, in the order in which they were raised."""
        with self._reading() as source:
            return source.alerts(0)

    @property
    def windows(self) -> tuple[Window, ...]:
        """The steps before every spike."""
        with self._reading() as source:
            return source.windows()

    @property
    def replays(self) -> tuple[Replay, ...]:
        """What is needed to run steps again."""
        with self._reading() as source:
            return source.replays()

    # ---------------------------------------------------------------- following a run

    @property
    def cursor(self) -> str:
        """The present end of the run, for `since`."""
        with self._reading() as source:
            return source.cursor()

    def since(self, cursor: str | None = None, limit: int = 100) -> News:
        """What was recorded after a cursor.

        Args:
            cursor: of an earlier answer, or `Run.cursor`; None for the beginning. It is text that
                a page may send back; one that is not understood counts as the beginning.
            limit: samples in an answer; `more` says that there are others.

        Returns:
            The news. The last sample may come twice, when more statistics of its step were
            recorded since; the later answer holds.
        """
        with self._reading() as source:
            return source.news(cursor, max(1, limit))

    # ---------------------------------------------------------------- elsewhere

    def frame(
        self,
        statistics: Sequence[str] | None = None,
        columns: int | None = None,
        package: str = "pandas",
    ) -> Any:
        """One row per step and site, one column per statistic.

        Args:
            statistics: names; None for all.
            columns: at most so many steps, as for `values`.
            package: `pandas` or `polars`.

        Returns:
            The table, with the columns `step`, `site`, `op`, `kind`, `model`, and the statistics.
        """
        from signalprop.watching.file import export

        return export.frame(self, statistics, columns, package)

    def to_parquet(self, path: str | Path) -> Path:
        """Write the table of `frame`, all steps, to a Parquet file.

        Args:
            path: the file to write.

        Returns:
            The path written.
        """
        from signalprop.watching.file import export

        return export.to_parquet(self, Path(path))

    def close(self) -> None:
        """Close the file."""
        with self._one:
            self._connection.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Source]:
        """One consistent view of the file, and one sentence for whatever is wrong with it."""
        with self._one:
            try:
                self._guard.restart()
                self._connection.execute("BEGIN")
                yield Source(self._connection, self.path)
            except (sqlite3.Error, ValueError, TypeError, OverflowError, MemoryError) as error:
                sentence = (
                    schema.said(error, self.path)
                    if isinstance(error, sqlite3.OperationalError | sqlite3.ProgrammingError)
                    else f"{self.path} is damaged"
                )
                raise SignalpropError(sentence) from error
            finally:
                with contextlib.suppress(sqlite3.Error):
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")


def _check(columns: int | None) -> None:
    if columns is not None and columns < 1:
        raise SignalpropError("columns must be at least 1")
