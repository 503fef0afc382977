"""Where words go: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from rich.console import Console
from rich.text import Text


class _Console(Console):
    """A console that says when the reader of a pipe is gone, where rich itself would exit."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        raise BrokenPipeError


def stdout() -> Console:
    """Where results go. Made anew each time, because tests and `--json` exchange the streams."""
    return _Console(highlight=False)


def stderr() -> Console:
    """Where errors and progress go."""
    return _Console(stderr=True, highlight=False)


def say(message: str, label: str = "", style: str = "") -> None:
    """One message on stderr, as it is: no markup, no line breaks of our own."""
    text = Text.assemble((label, style), message) if label else Text(message)
    stderr().print(text, soft_wrap=True)


def write_json(value: Any) -> None:
    """Plain data on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


@contextmanager
def progress(start: str, *, wanted: bool = True) -> Iterator[Callable[[str], None]]:
    """Say on a terminal what is being done.

    Args:
        start: what is done first.
        wanted: whether anything is said at all.

    Yields:
        A function that is told what comes next.
    """
    console = stderr()
    if not (wanted and console.is_terminal):
        yield lambda phase: None
        return
    with console.status(f"{Text(start).markup} ...") as status:
        yield lambda phase: status.update(f"{Text(phase).markup} ...")


@contextmanager
def only_results(wanted: bool) -> Iterator[None]:
    """Send what anybody prints inside to stderr, so that stdout carries nothing but JSON.

    The file descriptor is moved too: child processes and native code write past `sys.stdout`.

    Args:
        wanted: whether to do so.

    Yields:
        Nothing.
    """
    if not wanted:
        yield
        return
    kept = None
    sys.stdout.flush()
    with suppress(OSError):  # closed
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def near(word: str, known: list[str], *, alike: float = 0.5) -> list[str]:
    """The known words that look like this one, best first."""
    import difflib

    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(names), n=3, cutoff=alike)
    return [names[name] for name in close]


def one_of(names: list[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""
