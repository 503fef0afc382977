"""A watched run in TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from signalprop.errors import SignalpropError
from signalprop.watching.actions import line
from signalprop.watching.adapters import exporting
from signalprop.watching.adapters.adapter import Adapter
from signalprop.watching.adapters.packages import needed
from signalprop.watching.adapters.summary import Sites, Told
from signalprop.watching.sample import Alarm


class TensorBoard(Adapter):
    """Tells TensorBoard what a watched run shows: `sp.watch(..., listeners=[TensorBoard("logs")])`.

    Of every statistic three curves (smallest, median and largest over the sites), alerts as texts,
    and in the text `signalprop/where` the names of the sites behind smallest and largest, whenever
    they change.

    Args:
        to: folder of the event files, or a SummaryWriter, which is then flushed, not closed.
        prefix: of all names.
        sites: True for a curve of every site and statistic too, or patterns of names of sites.
        statistics: names of those that are told; None for all.
        scalars: numbers that the loop logs: those of sampled steps (`sampled`), `all`, `none`.

    Raises:
        SignalpropError: an argument is not what it should be.
        MissingPackageError: `tensorboard` is not installed.

    Note:
        Cost: about 20 microseconds per number, in the training's thread, on sampled steps; a
        thread of TensorBoard's own writes.
    """

    def __init__(
        self,
        to: str | Path | Any,
        *,
        prefix: str = "signalprop",
        sites: Sites = False,
        statistics: Iterable[str] | None = None,
        scalars: str = "sampled",
    ) -> None:
        super().__init__(prefix=prefix, sites=sites, statistics=statistics, scalars=scalars)
        package = needed("torch.utils.tensorboard", "tensorboard", "TensorBoard")
        self._own = isinstance(to, (str, Path))
        if not self._own and not hasattr(to, "add_scalar"):
            raise SignalpropError(
                f"TensorBoard({type(to).__name__}): give a folder or a SummaryWriter"
            )
        self._writer: Any = None if self._own else to
        self._to, self._package = to, package
        self._where: dict[str, str] = {}

    def put(self, told: Told) -> None:
        """Hand numbers of a step on."""
        writer = self._open()
        for name, value in told.numbers.items():
            writer.add_scalar(name, value, told.step, new_style=True)
        if told.where and told.where != self._where:
            self._where = told.where
            rows = "\n".join(f"| {name} | `{site}` |" for name, site in told.where.items())
            text = f"| | site |\n| --- | --- |\n{rows}"
            writer.add_text(f"{self.summary.prefix}/where", text, told.step)

    def say(self, alarm: Alarm) -> None:
        """Hand an alert on."""
        writer = self._open()
        writer.add_text(f"{self.summary.prefix}/alerts", line(alarm), alarm.step)
        writer.flush()

    def close(self) -> None:
        """Write the rest; a writer that was given stays open."""
        if self._writer is not None:
            self._writer.flush()
            if self._own:
                self._writer.close()

    def _open(self) -> Any:
        """The writer; made late, as each makes an event file, in every process."""
        if self._writer is None:
            self._writer = self._package.SummaryWriter(str(self._to))
        return self._writer


def export(
    run: str | Path,
    to: str | Path | Any,
    *,
    prefix: str = "signalprop",
    sites: Sites = False,
    statistics: Iterable[str] | None = None,
) -> int:
    """Write a recorded run for TensorBoard.

    Args:
        run: the run file.
        to: folder of the event files, or a SummaryWriter.
        prefix: see `TensorBoard`.
        sites: see `TensorBoard`.
        statistics: see `TensorBoard`.

    Returns:
        How many sampled steps were written.

    Raises:
        SignalpropError: the file cannot be read.
        MissingPackageError: `tensorboard` is not installed.
    """
    adapter = TensorBoard(to, prefix=prefix, sites=sites, statistics=statistics, scalars="all")
    return exporting.export(run, adapter)
