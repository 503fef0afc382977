"""`signalprop report`: a recorded run, or several compared, in the terminal or as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.text import Text

from signalprop.cli import blame, screen
from signalprop.cli.door import FOUND, OK
from signalprop.cli.options import OUTPUT, Debug, Html, Json
from signalprop.errors import TargetError

if TYPE_CHECKING:
    from signalprop.report.run.result import Recorded

EPILOGUE = """Examples:

    signalprop report run.sp
    signalprop report run.sp --html run.html
    signalprop report before.sp after.sp --html compared.html --assets directory

Exit status: 0, or 1 where --fail-on says so; 2 where something has to be changed first.
"""


def report(
    run: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    fail_on: Annotated[Literal["issue", "tip", "never"], Parameter(group=OUTPUT)] = "never",
    json: Json = False,
    html: Html = None,
    assets: Annotated[Literal["inline", "directory"], Parameter(group=OUTPUT)] = "inline",
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], group=OUTPUT)] = False,
    debug: Debug = False,
) -> int:
    """Show a recorded training run: its alerts, curves, and statistics by layer and step.

    Several runs are compared on one scale. A run that is still written is shown as it is now.

    Args:
        run: Run files, as `sp.watch(..., to="run.sp")` writes them.
        fail_on: Exit with status 1 if there is an alert of an issue, or any (tip).
        json: Print JSON on stdout, and nothing else.
        html: Write the report to this file; opens offline.
        assets: Plotly's script inside the file, or beside it.
        quiet: One line for each alert, instead of the whole report.
        debug: On an error, print the traceback too.

    Returns:
        The exit status.

    Raises:
        TargetError: a run cannot be read, or the report not be written.
    """
    from signalprop.cli import session
    from signalprop.report.run import result

    session.check_writable(html)
    if not run:
        raise TargetError("give a run file, e.g. signalprop report run.sp")
    with screen.progress("reading", wanted=not quiet) as phase, result.read(run) as found:
        if html is not None:
            phase("writing the report")
            try:
                written = found.save(html.expanduser(), assets=assets)
            except OSError as error:
                raise TargetError(f"--html {html} cannot be written: {error.strerror}") from error
            screen.say(f"report: {blame.shown(written)}")
        if json:
            screen.write_json(found.to_dict())
        elif quiet:
            _short(found)
        else:
            screen.stdout().print(found)
    failing = {"issue": ("issue",), "tip": ("issue", "tip"), "never": ()}[fail_on]
    alerts = [alert for seen in found.seen for alert in seen.alerts]
    return FOUND if any(alert.severity in failing for alert in alerts) else OK


def _short(found: Recorded) -> None:
    from signalprop.report.run import said

    console = screen.stdout()
    several = len(found.names) > 1
    for name, seen in zip(found.names, found.seen, strict=True):
        head = f"{name}: " if several else ""
        for a in seen.alerts:
            line = f"{head}{a.severity} {a.code} {said.brief(a)}: {a.explanation}"
            console.print(Text(line), soft_wrap=True)
        if not seen.alerts:
            console.print(Text(head + said.headline(seen)), soft_wrap=True)
