"""Recorded runs as a result with views: terminal, page, plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from signalprop.errors import SignalpropError
from signalprop.report.lines import View
from signalprop.report.run import said
from signalprop.report.run.curves import Curves, curves
from signalprop.report.run.overview import Overview, overview
from signalprop.watching.file.reader import Run

#: runs that are compared
MOST = 16


@dataclass(frozen=True)
class Recorded:
    """Runs as they were when they were read.

    Attributes:
        runs: the open files.
        names: how they are called, each another way.
        seen: each at a glance.
        scalars: the scalars of each.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    seen: tuple[Overview, ...]
    scalars: tuple[Curves, ...]

    @property
    def heading(self) -> str:
        """What it is, in a few words."""
        return f"Run {self.names[0]}" if len(self.names) == 1 else f"{len(self.names)} runs"

    def save(self, path: Path | str, *, assets: str = "inline") -> Path:
        """Write the page.

        Args:
            path: where to write; the folder must exist.
            assets: `inline` puts Plotly's script into the file, `directory` beside it.

        Returns:
            The path written.
        """
        from signalprop.report import html
        from signalprop.report.run import sections

        text = html.page(self.heading, sections.blocks(self), assets=assets)
        return html.write(text, Path(path), assets=assets)

    def to_dict(self) -> dict[str, Any]:
        """Plain data.

        Returns:
            What JSON can hold; a value that was not measured is None, infinity is `inf`.
        """
        return {"runs": [self._plain(k) for k in range(len(self.runs))]}

    def _plain(self, k: int) -> dict[str, Any]:
        seen, run = self.seen[k], self.runs[k]
        plain: dict[str, Any] = dataclasses.asdict(seen)
        del plain["cursor"]
        plain |= {"name": self.names[k], "state": seen.state, "headline": said.headline(seen)}
        plain["windows"] = [
            {"step": w.step, "reason": w.reason, "steps": len(w.steps)} for w in run.windows
        ]
        plain["scalars"] = {
            name: {"first": _number(v[0]), "last": _number(v[-1]), "lowest": _number(np.min(v)),
                   "highest": _number(np.max(v))}
            for name, (_, v) in self.scalars[k].scalars.items() if len(v)
        }  # fmt: skip
        plain["last_values"] = {
            name: {s: _number(v) for s, v in zip(found.sites, found.mean[-1], strict=True)}
            for name in seen.statistics
            if len((found := run.values(name, columns=64)).first)
        }
        return plain

    def close(self) -> None:
        """Close the files."""
        for run in self.runs:
            run.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __rich__(self) -> View:
        """What rich prints."""
        from signalprop.report.run import console

        return console.view(self)


def read(paths: Sequence[Path | str]) -> Recorded:
    """Open runs, and look at them.

    Args:
        paths: of the run files.

    Returns:
        They; to be closed.

    Raises:
        SignalpropError: one is no run, holds nothing, or there are too many.
    """
    if len(paths) > MOST:
        raise SignalpropError(f"{len(paths)} runs are more than a page can hold; give {MOST}")
    with ExitStack() as opened:
        runs = tuple(opened.enter_context(Run(path)) for path in paths)
        seen = tuple(overview(run) for run in runs)
        for run, one in zip(runs, seen, strict=True):
            if one.last is None and not one.alerts and not run.scalars(columns=1):
                raise SignalpropError(f"{run.path} is a run of which nothing was recorded yet")
        names = tuple(apart([run.path for run in runs]))
        scalars = tuple(
            Curves(name, curves(run).scalars) for name, run in zip(names, runs, strict=True)
        )
        opened.pop_all()
    return Recorded(runs, names, seen, scalars)


def apart(paths: Sequence[Path]) -> list[str]:
    """Names of files; with the folder, or a number, where several have the same.

    Args:
        paths: of the files.

    Returns:
        One each, no two alike.
    """
    from signalprop.report.words import clean

    names = [clean(path.name) for path in paths]
    made: list[str] = []
    for k, name in enumerate(names):
        if names.count(name) > 1:
            name = f"{clean(paths[k].absolute().parent.name)}/{name}"
        made.append(name if name not in made else f"{name} ({k + 1})")
    return made


def _number(value: Any) -> float | str | None:
    value = float(value)
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)
