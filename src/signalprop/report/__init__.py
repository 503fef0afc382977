"""Views of a result: terminal, plain text, notebook, and one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def terminal(result: Any) -> Any:
    """What rich prints for a result, at the width of its console.

    Args:
        result: a `Diagnosis`, a `Trace`, `Spectra`, `Horizons`, a `PhaseDiagram` or
            `Trials`.

    Returns:
        A rich renderable.
    """
    from signalprop.report.shown import shown

    return shown(result).view()


def text(result: Any, *, width: int | None = None) -> str:
    """The terminal view as plain text, without colour.

    Args:
        result: a `Diagnosis`, a `Trace`, `Spectra`, `Horizons`, a `PhaseDiagram` or
            `Trials`.
        width: columns; the terminal's own, or 80, where it is not given.

    Returns:
        Lines that fit the width.
    """
    import io
    import shutil

    from rich.console import Console

    columns = width or shutil.get_terminal_size((80, 24)).columns
    out = io.StringIO()
    console = Console(file=out, width=columns, color_system=None, force_terminal=False)
    console.print(terminal(result), soft_wrap=False)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def page(result: Any, *, assets: str = "inline") -> str:
    """The HTML report of a result as text.

    Args:
        result: a `Diagnosis`, a `Trace`, `Spectra`, `Horizons`, a `PhaseDiagram` or
            `Trials`.
        assets: `inline`, or `directory` where Plotly's script lies beside the file.

    Returns:
        A complete page.
    """
    from signalprop.report import html
    from signalprop.report.shown import shown

    views = shown(result)
    return html.page(views.heading(), views.blocks(), assets=assets)


def save(result: Any, path: Path | str, *, assets: str = "inline") -> Path:
    """Write the HTML report of a result.

    Args:
        result: a `Diagnosis`, a `Trace`, `Spectra`, `Horizons`, a `PhaseDiagram` or
            `Trials`.
        path: where to write; the folder must exist.
        assets: `inline` puts Plotly's script into the file, `directory` beside it.

    Returns:
        The path written.
    """
    from signalprop.report import html

    return html.write(page(result, assets=assets), Path(path), assets=assets)


def notebook(result: Any) -> str:
    """What a notebook shows of a result: a small piece of HTML without a script.

    Args:
        result: a `Diagnosis`, a `Trace`, `Spectra`, `Horizons`, a `PhaseDiagram` or
            `Trials`.

    Returns:
        A `div` that reads on light and on dark.
    """
    from signalprop.report.shown import shown

    return shown(result).fragment()
