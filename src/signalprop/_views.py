"""How a result reaches the room that draws it, though that room lies above it.

Results are plain data. They know only that a report exists, by name; what it looks like is
decided in `signalprop.report`, which every view of every result goes through.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any


class Viewable:
    """A result with views: terminal, notebook, and a file."""

    def __rich_console__(self, console: Any, options: Any) -> Any:
        """Yield what rich prints at the width of the console."""
        yield import_module("signalprop.report").terminal(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return import_module("signalprop.report").notebook(self)

    def __repr__(self) -> str:
        """Return the terminal view as plain text."""
        return import_module("signalprop.report").text(self)

    def save(self, path: str | Path, *, assets: str = "inline") -> Path:
        """Write the HTML report, one file that opens offline.

        Args:
            path: where to write; the folder must exist.
            assets: `inline` puts Plotly's script into the file (about 5 MB); `directory` puts it
                beside the file, for many reports in one folder.

        Returns:
            The path written.
        """
        return import_module("signalprop.report").save(self, Path(path), assets=assets)
