"""What a study is: a statement, what was measured, and a verdict that follows from the numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from signalprop._views import Viewable
from signalprop.capture.trace import plain

Verdict = Literal["holds", "holds in part", "does not hold as printed"]
VERDICTS: tuple[Verdict, ...] = ("holds", "holds in part", "does not hold as printed")

#: told how far a study is (0 to 1) and what it is doing
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Measurement:
    """One measured number.

    Attributes:
        name: short and unique in its study, e.g. `layer error, float64`.
        value: the number.
        unit: its unit; `""` for a plain number.
        expected: what the statement or theory says it is (or its limit); None where nothing does.
        note: how it was measured, or how to read it.
        tabled: whether a table of the study shows it too, so that views need not list it.
    """

    name: str
    value: float
    unit: str = ""
    expected: float | None = None
    note: str = ""
    tabled: bool = False


@dataclass(frozen=True)
class Claim:
    """One part of a statement, judged.

    Attributes:
        text: the part, in the lecture's terms.
        verdict: whether it holds.
        because: one or two plain sentences with the numbers.
        correct: what holds instead; `""` where it holds as printed.
    """

    text: str
    verdict: Verdict
    because: str
    correct: str = ""


@dataclass(frozen=True)
class Series:
    """One curve. Curves with the same `figure` are drawn together.

    Attributes:
        figure: title of the figure.
        name: name of the curve.
        x: abscissae.
        y: ordinates, as many.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
        log_y: whether y is to be drawn on a logarithmic axis.
    """

    figure: str
    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    x_label: str
    y_label: str
    log_y: bool = False


@dataclass(frozen=True)
class Table:
    """A table as plain data.

    Attributes:
        title: what it shows.
        columns: heads of the columns.
        rows: one tuple per row, as long as `columns`.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int, ...], ...]


@dataclass(frozen=True)
class Setup:
    """How a study is to be run.

    Attributes:
        quick: seconds instead of a minute or two: fewer depths, samples and steps.
        seed: seed of every random number of the study.
        progress: told how far the study is.
    """

    quick: bool = False
    seed: int = 0
    progress: Progress | None = None

    def at(self, share: float, doing: str) -> None:
        """Say how far the study is (0 to 1), and what it does next."""
        if self.progress is not None:
            self.progress(share, doing)


@dataclass(frozen=True)
class Measured:
    """What the run of a study hands back; the verdict is not part of it.

    Attributes:
        measurements: the numbers, which the verdict is computed from.
        data: name of the real input used; `""` where the study needs none.
        settings: what the run was made with: depths, widths, steps, learning rates.
        series: curves.
        tables: tables.
    """

    measurements: tuple[Measurement, ...]
    data: str
    settings: Mapping[str, Any]
    series: tuple[Series, ...] = ()
    tables: tuple[Table, ...] = ()


Values = Mapping[str, float]


@dataclass(frozen=True)
class Study:
    """One statement of the lecture, and how it is run.

    Attributes:
        name: as on the command line, e.g. `delta-chain`.
        title: a few words.
        statement: the statement as the lecture prints or says it.
        source: where it is from: the lecture, and the papers behind it.
        function: runs it.
        judge: the verdicts on its parts, from the measured values keyed by name and nothing else.
    """

    name: str
    title: str
    statement: str
    source: str
    function: Callable[[Setup], Measured]
    judge: Callable[[Values], tuple[Claim, ...]]


def verdict_of(claims: tuple[Claim, ...]) -> Verdict:
    """The verdict on the whole: that of the parts where they agree, else `holds in part`."""
    found = {claim.verdict for claim in claims}
    return found.pop() if len(found) == 1 else "holds in part"


@dataclass(frozen=True, repr=False)
class StudyResult(Viewable):
    """One run of a study: numbers, and the verdict that follows from them.

    Attributes:
        study: name of the study.
        title: its title.
        statement: as the lecture has it.
        source: where it is from.
        verdict: whether the statement holds as printed.
        reason: why, in plain sentences with the numbers.
        correct_form: what holds instead; `""` where the statement holds as printed.
        claims: the parts of the statement, each with its verdict.
        measurements: every number.
        series: curves, as plain data.
        tables: tables, as plain data.
        seed: seed of the run.
        quick: whether it was the quick run.
        settings: depths, widths, steps, learning rates.
        data: the real input used.
        seconds: how long it took; no part of a comparison of two results.
    """

    study: str
    title: str
    statement: str
    source: str
    verdict: Verdict
    reason: str
    correct_form: str
    claims: tuple[Claim, ...]
    measurements: tuple[Measurement, ...]
    series: tuple[Series, ...]
    tables: tuple[Table, ...]
    seed: int
    quick: bool
    settings: Mapping[str, Any]
    data: str
    seconds: float = field(compare=False)

    def __getitem__(self, name: str) -> float:
        """The value of the measurement of that name."""
        return {m.name: m.value for m in self.measurements}[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that json can write; values that are not finite become strings."""
        return plain(self)

    def frame(self) -> Any:
        """One row per measurement, as a pandas DataFrame."""
        import pandas as pd

        rows = [dataclasses.asdict(m) for m in self.measurements]
        return pd.DataFrame(rows).set_index("name")

    def __rich_console__(self, console: Any, options: Any) -> Any:
        """Yield what rich prints at the width of the console."""
        from signalprop.studies import view

        yield view.terminal(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from signalprop.studies import view

        return view.notebook(self)

    def __repr__(self) -> str:
        """Return the terminal view as plain text."""
        from signalprop.studies import view

        return view.text(self)

    def save(self, path: str | Path, *, assets: str = "inline") -> Path:
        """Write the HTML report, one file that opens offline.

        Args:
            path: where to write; the folder must exist.
            assets: `inline` or `directory`, see `Trace.save`.

        Returns:
            The path written.
        """
        from signalprop.studies import view

        return view.save(self, Path(path), assets=assets)
