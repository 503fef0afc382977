"""The studies on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table
from rich.text import Text

from signalprop.cli import screen


def listing(*, json: bool) -> None:
    """Print every study with its statement."""
    from signalprop.studies import STUDIES

    if json:
        facts = ("name", "title", "statement", "source")
        screen.write_json([{key: getattr(s, key) for key in facts} for s in STUDIES])
        return
    table = Table(box=None, padding=(0, 2, 1, 0), header_style="bold")
    table.add_column("study", no_wrap=True)
    table.add_column("statement")
    for s in STUDIES:
        table.add_row(s.name, Text.assemble(s.statement, "\n", (s.source, "dim")))
    screen.stdout().print(table)


def run(name: str, *, quick: bool, seed: int, phase: Callable[[str], None]) -> Any:
    """Run one study, and say how far it is.

    Args:
        name: name of the study.
        quick: the variant that ends in seconds.
        seed: seed of its random numbers.
        phase: told how far it is and what comes next.

    Returns:
        The study's result.
    """
    from signalprop import studies

    def tell(share: float, doing: str) -> None:
        phase(f"{name}: {share:.0%}, {doing}")

    return studies.run(name, quick=quick, seed=seed, progress=tell)
