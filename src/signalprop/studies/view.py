"""How a study is shown: in a terminal, in a notebook, and as a page."""

from __future__ import annotations

import html
import io
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from signalprop.studies.frame import Claim, Measurement, Series, StudyResult, Table, Verdict

#: prose wider than this is hard to read
PROSE = 96
_STYLES: dict[Verdict, str] = {
    "holds": "bold green",
    "holds in part": "bold yellow",
    "does not hold as printed": "bold red",
}
_CLASSES: dict[Verdict, str] = {
    "holds": "ok",
    "holds in part": "tip",
    "does not hold as printed": "issue",
}


def number(value: float | int | str) -> str:
    """A cell as people read it: whole numbers with separators, others in four digits."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "no number" if math.isnan(value) else ("infinite" if value > 0 else "-infinite")
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.2e}"


def measured(m: Measurement) -> str:
    """A measurement's value with its unit."""
    return f"{number(m.value)} {m.unit}".strip()


def facts(r: StudyResult) -> str:
    """How the run was made."""
    kind = "quick run" if r.quick else "full run"
    data = f", on {r.data}" if r.data else ""
    return f"{kind}, seed {r.seed}, {r.seconds:.1f} s{data}"


# ---- terminal --------------------------------------------------------------------------------


def terminal(r: StudyResult) -> Group:
    """What rich prints: statement, verdict, its parts, tables, numbers."""
    return Group(*_terminal(r))


def _terminal(r: StudyResult) -> Iterator[Any]:
    yield Text.assemble((r.title, "bold"), f"  ({r.study})")
    yield _prose(Text.assemble("Statement: ", (r.statement, "italic")))
    yield _prose(Text(r.source, style="dim"))
    yield Text("")
    yield Text(r.verdict.upper(), style=_STYLES[r.verdict])
    for claim in r.claims:
        yield from _claim(claim)
    for table in r.tables:
        yield Text("")
        yield Text(table.title, style="bold")
        yield _grid(table.columns, [tuple(map(number, row)) for row in table.rows])
    yield Text("")
    yield Text("Measured", style="bold")
    rows = [
        (m.name, measured(m), "" if m.expected is None else number(m.expected), m.note)
        for m in r.measurements
    ]
    yield _grid(("", "value", "expected", ""), rows)
    yield Text("")
    yield _prose(Text(facts(r), style="dim"))


def _claim(claim: Claim) -> Iterator[Any]:
    yield _prose(Text.assemble((claim.verdict, _STYLES[claim.verdict]), ": ", claim.text))
    yield Padding(Text(claim.because), (0, 0, 0, 2))
    if claim.correct:
        yield Padding(Text.assemble(("Correct: ", "bold"), claim.correct), (0, 0, 0, 2))


def _prose(text: Text) -> Text:
    text.overflow = "fold"
    return text


def _grid(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> RichTable:
    grid = RichTable(box=None, padding=(0, 2, 0, 0), header_style="underline", pad_edge=False)
    for i, name in enumerate(columns):
        numeric = any(row[i][:1].isdigit() or row[i][:1] == "-" for row in rows)
        grid.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid


def text(r: StudyResult, *, width: int | None = None) -> str:
    """The terminal view as plain text, without colour."""
    columns = width or min(shutil.get_terminal_size((80, 24)).columns, 132)
    out = io.StringIO()
    console = Console(file=out, width=columns, color_system=None, force_terminal=False)
    console.print(terminal(r))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


# ---- HTML ------------------------------------------------------------------------------------


def notebook(r: StudyResult) -> str:
    """What a notebook shows: the blocks of the page that need no script."""
    return "\n".join(_head(r)) + "\n".join(_tables(r))


def save(r: StudyResult, path: Path, *, assets: str = "inline") -> Path:
    """Write the page."""
    from signalprop.report.html import page

    blocks: list[Any] = [*_head(r), *figures(r), *_tables(r)]
    path.write_text(page(r.title, blocks, assets=assets), encoding="utf-8")
    return path


def _head(r: StudyResult) -> Iterator[str]:
    e = html.escape
    yield f"<p><em>{e(r.statement)}</em></p><p class='dim'>{e(r.source)}</p>"
    yield f"<p class='{_CLASSES[r.verdict]}'><strong>{e(r.verdict)}</strong></p>"
    items = "".join(
        f"<li><strong class='{_CLASSES[c.verdict]}'>{e(c.verdict)}</strong>: {e(c.text)}<br>"
        f"{e(c.because)}"
        + (f"<br><strong>Correct:</strong> {e(c.correct)}" if c.correct else "")
        + "</li>"
        for c in r.claims
    )
    yield f"<ul>{items}</ul>"


def _tables(r: StudyResult) -> Iterator[str]:
    rows = tuple(
        (m.name, measured(m), "" if m.expected is None else number(m.expected), m.note)
        for m in r.measurements
    )
    for table in (*r.tables, Table("Measured", ("", "value", "expected", "note"), rows)):
        head = "".join(f"<th>{html.escape(c)}</th>" for c in table.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(number(v))}</td>" for v in row) + "</tr>"
            for row in table.rows
        )
        yield (
            f"<h2>{html.escape(table.title)}</h2><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>"
        )
    settings = ", ".join(f"{k}: {v}" for k, v in r.settings.items())
    yield f"<p class='dim'>{html.escape(facts(r))}. {html.escape(settings)}</p>"


def figures(r: StudyResult) -> list[Any]:
    """One Plotly figure for all curves of the same title."""
    by_title: dict[str, list[Series]] = {}
    for series in r.series:
        by_title.setdefault(series.figure, []).append(series)
    return [_figure(title, curves) for title, curves in by_title.items()]


def _figure(title: str, curves: list[Series]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for curve in curves:
        # a logarithmic axis has no place for zero: the curve ends there
        y = [v if v > 0 or not curve.log_y else None for v in curve.y]
        figure.add_scatter(x=list(curve.x), y=y, name=curve.name, mode="lines+markers")
    first = curves[0]
    figure.update_layout(title=title, xaxis_title=first.x_label, yaxis_title=first.y_label)
    if first.log_y:
        figure.update_yaxes(type="log", exponentformat="power")
    return figure
