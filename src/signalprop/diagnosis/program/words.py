"""Names and shapes as they stand in the sentences of the program rules."""

from __future__ import annotations

from collections.abc import Iterable


def quoted(name: str) -> str:
    """A site or module in a sentence: a name that is only a number would read as one."""
    return f"{name!r}" if name else "the model"


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    shown = ", ".join(map(quoted, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def shape_text(shape: tuple[int, ...]) -> str:
    """`(32, 1)`."""
    return f"({', '.join(map(str, shape))})"
