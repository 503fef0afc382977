"""The command `signalprop`: thin commands over what the other rooms do.

Nothing here imports torch before a command needs it, so that `--help` and mistakes in the command
line answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(tokens: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        tokens: the words after `signalprop`; None takes them from `sys.argv`.

    Returns:
        The exit status: 0, or 1 where `--fail-on` says so or `cure` finds that nothing helps; 2 for
        bad input, with one sentence on stderr; 130 after Ctrl-C; 141 where the reader of a pipe
        went away.
    """
    from signalprop.cli.app import app
    from signalprop.cli.door import run

    return run(app, sys.argv[1:] if tokens is None else list(tokens))
