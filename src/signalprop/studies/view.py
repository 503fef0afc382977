"""How a study is shown: in a terminal, in a notebook, and as a page."""

from __future__ import annotations

import io
import math
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from signalprop.studies.frame import Measurement, Series, StudyResult, Table, Verdict

#: least width of a column of prose
NARROW = 14
_STYLES: dict[Verdict, str] = {
    "holds": "bold green",
    "holds in part": "bold yellow",
    "does not hold as printed": "bold red",
}
#: as the report's style sheet calls them
_CLASSES: dict[Verdict, str] = {
    "holds": "healthy",
    "holds in part": "tip",
    "does not hold as printed": "issue",
}


def number(value: float | int | str) -> str:
    """A cell as people read it: whole numbers with separators, others in a few digits."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "no number" if math.isnan(value) else ("infinite" if value > 0 else "-infinite")
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


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
    yield _prose(Text.assemble((r.title, "bold"), f" ({r.study})"))
    yield _prose(Text.assemble("Statement: ", (r.statement, "italic")))
    yield _prose(Text(r.source, style="dim"))
    yield Text("")
    yield Text(r.verdict.upper(), style=_STYLES[r.verdict])
    for claim in r.claims:
        yield _prose(Text.assemble((claim.verdict, _STYLES[claim.verdict]), ": ", claim.text))
        yield _prose(Text(claim.because), indent=2)
        if claim.correct:
            yield _prose(Text.assemble(("Correct: ", "bold"), claim.correct), indent=2)
    for table in r.tables:
        yield Text("")
        yield Text(table.title, style="bold")
        yield _Grid(table.columns, [[number(v) for v in row] for row in table.rows])
    listed = _listed(r)
    if listed.rows:
        yield Text("")
        yield Text(listed.title, style="bold")
        yield _Grid(listed.columns, [[number(v) for v in row] for row in listed.rows])
    yield Text("")
    yield _prose(Text(facts(r), style="dim"))


def _listed(r: StudyResult) -> Table:
    """The measurements that no other table shows."""
    rows = tuple(
        (m.name, measured(m), "" if m.expected is None else number(m.expected), m.note)
        for m in r.measurements
        if not m.tabled
    )
    return Table("Measured", ("", "value", "expected", "note"), rows)


def _prose(line: Text, *, indent: int = 0) -> Padding:
    return Padding(line, (0, 0, 0, indent), expand=False)


def _numeric(column: Sequence[str]) -> bool:
    """Whether a column of cells is numbers, which stand right."""
    filled = [cell for cell in column if cell]
    starts = all(cell[0].isdigit() or (cell[0] == "-" and len(cell) > 1) for cell in filled)
    return bool(filled) and starts


def _needed(widths: Sequence[int], whole: Sequence[bool]) -> int:
    """Columns of the terminal that a table takes at least."""
    return sum(
        width + 2 if keep else min(width + 2, NARROW)
        for width, keep in zip(widths, whole, strict=True)
    )


class _Grid:
    """A table that never breaks a number: where it does not fit, every row becomes a paragraph."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.columns, self.rows = columns, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, or the paragraphs."""
        cells = [[row[i] for row in self.rows] for i in range(len(self.columns))]
        whole = [_numeric(column) or i == 0 for i, column in enumerate(cells)]
        widths = [
            max(map(len, (*column, *name.split())))
            for name, column in zip(self.columns, cells, strict=True)
        ]
        if _needed(widths, whole) > options.max_width and not _numeric(cells[0]):
            whole[0] = widths[0] > 2 * NARROW  # names of some words may wrap, too
        if _needed(widths, whole) > options.max_width:
            for row in self.rows:
                pairs = zip(self.columns[1:], row[1:], strict=True)
                facts = "; ".join(f"{name} {cell}".strip() for name, cell in pairs if cell)
                yield _prose(Text.assemble((row[0], "bold"), f": {facts}"))
            return
        grid = RichTable(box=None, padding=(0, 2, 0, 0), header_style="underline", pad_edge=False)
        for i, (name, column) in enumerate(zip(self.columns, cells, strict=True)):
            justify = "right" if _numeric(column) else "left"
            # a column that may not wrap still has a head that does
            head = textwrap.fill(name, widths[i], break_on_hyphens=False) if whole[i] else name
            grid.add_column(head, justify=justify, overflow="fold", no_wrap=whole[i])
        for row in self.rows:
            grid.add_row(*(Text(cell) for cell in row))
        yield grid


def text(r: StudyResult, *, width: int | None = None) -> str:
    """The terminal view as plain text, without colour."""
    columns = width or shutil.get_terminal_size((80, 24)).columns
    out = io.StringIO()
    console = Console(file=out, width=columns, color_system=None, force_terminal=False)
    console.print(terminal(r))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


# ---- HTML ------------------------------------------------------------------------------------


def notebook(r: StudyResult) -> str:
    """What a notebook shows: verdict and tables; the figures are in the saved page."""
    return "\n".join(_head(r)) + "\n" + "\n".join(_tables(r))


def save(r: StudyResult, path: Path, *, assets: str = "inline") -> Path:
    """Write the page: verdict, its parts, figures, tables."""
    from signalprop.report.html import page, write

    blocks = [*_head(r), *figures(r), *_tables(r)]
    return write(page(r.title, blocks, assets=assets), path, assets=assets)


def _head(r: StudyResult) -> Iterator[str]:
    state = _CLASSES[r.verdict]
    yield (
        f'<section class="verdict {state}" aria-label="Verdict">'
        f'<span class="word {state}">{escape(r.verdict)}</span><p>{escape(r.statement)}</p>'
        f'</section><p class="soft">{escape(r.source)}</p>'
    )
    for claim in r.claims:
        state = _CLASSES[claim.verdict]
        correct = f"<dt>correct</dt><dd>{escape(claim.correct)}</dd>" if claim.correct else ""
        yield (
            f'<article class="card finding {state}"><header><span class="word {state}">'
            f"{escape(claim.verdict)}</span><h3>{escape(claim.text)}</h3></header>"
            f"<p>{escape(claim.because)}</p>"
            + (f"<dl>{correct}</dl>" if correct else "")
            + "</article>"
        )


def _tables(r: StudyResult) -> Iterator[str]:
    for table in (*r.tables, _listed(r)):
        if table.rows:
            yield _table(table)
    settings = "; ".join(f"{k}: {_words(v)}" for k, v in r.settings.items())
    yield f'<p class="soft">{escape(facts(r))}. {escape(settings)}.</p>'


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _table(table: Table) -> str:
    right = [_numeric([number(row[i]) for row in table.rows]) for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{_right(n)}><button type="button">{escape(c) or "measured"}</button></th>'
        for c, n in zip(table.columns, right, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(_cell(v, n) for v, n in zip(row, right, strict=True)) + "</tr>"
        for row in table.rows
    )
    title = escape(table.title)
    return (
        f'<section><h2>{title}</h2><div class="table" tabindex="0" role="region" '
        f'aria-label="{title}"><table data-shown="{len(table.rows)}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _right(numeric: bool) -> str:
    """The style sheet's class for numbers."""
    return ' class="n"' if numeric else ""


def _cell(value: float | int | str, numeric: bool) -> str:
    # what the page sorts by
    key = f' data-v="{value!r}"' if numeric and not isinstance(value, str) else ""
    kind = _right(numeric) or ' class="wrap"'
    return f"<td{kind}{key}>{escape(number(value))}</td>"


#: told apart with any common colour blindness, on light and on dark
COLOURS = ("#2f7fd1", "#d9541e", "#0e9f76", "#c05fa5", "#b98000", "#3c9ec0")
_MARKERS = ("circle", "square", "diamond", "cross", "triangle-up", "x")


def figures(r: StudyResult) -> list[Any]:
    """One Plotly figure for all curves of the same title."""
    by_title: dict[str, list[Series]] = {}
    for series in r.series:
        by_title.setdefault(series.figure, []).append(series)
    return [_figure(title, curves) for title, curves in by_title.items()]


def _figure(title: str, curves: list[Series]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    first = curves[0]
    missing = False
    for i, curve in enumerate(curves):
        # a logarithmic axis has no place for zero and below
        y = [v if math.isfinite(v) and (v > 0 or not curve.log_y) else None for v in curve.y]
        missing |= None in y
        colour, marker = COLOURS[i % len(COLOURS)], _MARKERS[i % len(_MARKERS)]
        figure.add_trace(
            go.Scatter(
                x=list(curve.x),
                y=y,
                name=curve.name,
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"symbol": marker, "size": 8},
                hovertemplate=f"{curve.name}: %{{y:.4g}} at %{{x}}<extra></extra>",
            )
        )
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        xaxis_title=first.x_label,
        yaxis_title=first.y_label,
        height=420,
        showlegend=len(curves) > 1,
        legend={"orientation": "h", "y": -0.22},
        margin={"l": 70, "r": 20, "t": 50, "b": 60},
        meta={
            "about": f"{title}: {first.y_label} over {first.x_label}, "
            f"{', '.join(curve.name for curve in curves)}."
        }
        | ({"caption": "Values of zero or below have no place on a log axis."} if missing else {}),
    )
    if first.log_y:
        figure.update_yaxes(type="log", exponentformat="power", nticks=6)
    return figure
