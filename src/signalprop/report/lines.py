"""What a terminal view is made of: sentences that wrap, and lines that are laid out already.

Every line fits the width that the console reports, and is ASCII where the console knows no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.text import Text

#: prose wider than this is hard to read; a ladder profits from a little more
PROSE, WIDEST = 96, 132


@dataclass(frozen=True)
class Lines:
    """Lines that are laid out already."""

    lines: list[Text]


@dataclass(frozen=True)
class Prose:
    """A sentence that wraps."""

    text: Text
    indent: int = 0


class View:
    """Sentences and lines as rich prints them.

    Attributes:
        blocks: given the width, and whether the console knows ASCII only, yields them.
    """

    def __init__(self, blocks: Callable[[int, bool], Iterator[Prose | Lines]]) -> None:
        self.blocks = blocks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines, top to bottom."""
        width, plain = options.max_width, options.ascii_only
        for block in self.blocks(width, plain):
            if isinstance(block, Prose):
                text = _plain_signs(block.text) if plain else block.text
                yield Padding(text, (0, max(0, width - PROSE), 0, block.indent))
                continue
            for line in block.lines:
                shown = _plain_signs(line) if plain else line
                shown.truncate(width, overflow="crop")
                yield shown


def pad(text: str, width: int) -> str:
    """A text with blanks behind it, so that columns stay."""
    return text + " " * max(0, width - cell_len(text))


def _plain_signs(text: Text) -> Text:
    """For terminals that know ASCII only; one sign becomes one, so that columns stay."""
    plain = text.copy()
    plain.plain = text.plain.translate({ord("…"): "~", ord("×"): "x", ord("→"): ">"})
    return plain
