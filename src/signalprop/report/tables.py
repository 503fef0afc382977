"""Tables of a page, which sort, filter, and unfold; what comes from a model passes through `e`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from signalprop.report import words

#: rows of a table that are shown before one asks for all
SHOWN = 200


def table(
    title: str,
    identity: str,
    heads: Sequence[tuple[str, str]],
    rows: Sequence[tuple[str, str, Iterable[str]]],
) -> str:
    """A table with its heading, and a field to filter it where it is long.

    Args:
        title: its heading.
        identity: its id in the page.
        heads: name of every column, and `n` where it holds numbers.
        rows: id of every row, a class for it, and its cells.

    Returns:
        A section.
    """
    head = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{name}</button></th>'
        for name, kind in heads
    )
    lines = []
    for i, (anchor, mark, cells) in enumerate(rows):
        far = "far" if i >= SHOWN else ""
        classes = " ".join(c for c in (mark, far) if c)
        lines.append(
            f'<tr id="{anchor}"{f" class={classes!r}" if classes else ""}>{"".join(cells)}</tr>'
        )
    more = (
        f'<button type="button" class="more" data-table="{identity}">Show all {len(rows)}</button>'
        if len(rows) > SHOWN
        else ""
    )
    search = (
        f'<input type="search" data-table="{identity}" placeholder="Filter" '
        f'aria-label="Filter {title.lower()}">'
        if len(rows) > 8
        else ""
    )
    tools = f'<div class="tools">{search}{more}</div>' if search or more else ""
    return (
        f"<section><h2>{title} ({len(rows)})</h2>{tools}"
        f'<div class="table" tabindex="0" role="region" aria-label="{title}">'
        f'<table id="{identity}" data-shown="{SHOWN}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def cell(text: str, *, code: bool = False) -> str:
    """A cell of text."""
    text = e(words.clean(text))
    return f'<td class="code">{text}</td>' if code else f"<td>{text}</td>"


def number(value: float | None, text: str | None = None) -> str:
    """A cell that sorts by its number; `text` is shown instead of it."""
    if text is None:
        text = "" if value is None else words.number(value)
    return f'<td class="n" data-v="{_key(value)}">{text}</td>'


def share(value: float | None) -> str:
    """A cell that shows a share as a percentage."""
    return f'<td class="n" data-v="{_key(value)}">{words.share(value)}</td>'


def _key(value: float | None) -> str:
    """What the table sorts by; JavaScript reads `Infinity`."""
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return f"{value:.6g}"


def e(text: str) -> str:
    """A text as HTML may hold it, in an attribute too."""
    return escape(text, quote=True)
