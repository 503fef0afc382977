"""`signalprop view`: a live page of a run, while a training writes it or afterwards."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from signalprop.cli import blame, screen
from signalprop.cli.door import OK
from signalprop.cli.options import Debug
from signalprop.errors import SignalpropError, TargetError

SERVER = Group("Server", sort_key=3)
EPILOGUE = """Examples:

    signalprop view run.sp
    signalprop view before.sp after.sp
    signalprop view run.sp --port 8800 --no-open

Ctrl-C ends it; the training does not notice. From another machine, rather than --host:
ssh -L 8000:127.0.0.1:8000 MACHINE
"""
#: runs on one page
MOST = 16


def view(
    run: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    host: Annotated[str, Parameter(group=SERVER)] = "127.0.0.1",
    port: Annotated[int | None, Parameter(group=SERVER)] = None,
    no_open: Annotated[bool, Parameter(group=SERVER)] = False,
    debug: Debug = False,
) -> int:
    """Show a training run on a page that follows it.

    The file may be written just now, be complete, or not exist yet. Several runs are shown side by
    side, on one scale.

    Args:
        run: Run files, as `sp.watch(..., to="run.sp")` writes them.
        host: Address to listen at; any other than 127.0.0.1 shows the run to the network.
        port: Port; 0 for any that is free. Otherwise 8000, or the next one that is free.
        no_open: Do not open a browser.
        debug: On an error, print the traceback too.

    Returns:
        The exit status.

    Raises:
        TargetError: a run is a folder, there are too many, or the port is taken.
    """
    from signalprop.report.live import guard, serve

    paths = [path.expanduser() for path in run]
    if not paths:
        raise TargetError("give a run file, e.g. signalprop view run.sp")
    if len(paths) > MOST:
        raise TargetError(f"{len(paths)} runs are more than a page can hold; give {MOST}")
    for path in paths:
        if path.is_dir():
            raise TargetError(f"{path} is a folder; give a run file in it, e.g. {path / 'run.sp'}")
    if port is not None and not 0 <= port <= 65535:
        raise TargetError(f"--port {port} must be between 0 and 65535")
    listening = serve.listen(host, port)
    url = serve.address(listening)
    for path in paths:
        _say_state(path)
    if not guard.loopback(host):
        screen.say(
            f"everybody who can reach {host} on the network can see these runs; there is no "
            "password",
            "warning: ",
            "bold yellow",
        )
    screen.stdout().print(f"{url}  (Ctrl-C ends)", soft_wrap=True, markup=False)
    sys.stdout.flush()
    with listening:
        serve.serve(paths, listening, host=host, ready=None if no_open else lambda: _open(url))
    return OK


def _say_state(path: Path) -> None:
    """What is not as usual; the page says it too."""
    from signalprop.watching.file.reader import Run

    if not path.exists():
        screen.say(f"{blame.shown(path)} does not exist yet; the page waits for it")
        return
    try:
        Run(path).close()
    except SignalpropError as error:
        screen.say(str(error))


def _open(url: str) -> None:
    """Open a browser, where there is a screen to open it on."""
    import webbrowser

    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return
    webbrowser.open(url)
