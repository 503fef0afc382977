"""`signalprop theory`: what mean-field theory expects of a deep network at initialisation."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from signalprop.cli import screen
from signalprop.cli.door import OK
from signalprop.cli.options import RUN, Debug, Html, Json
from signalprop.errors import TargetError

app = App(
    name="theory",
    help="Say what theory expects of a deep network at initialisation.",
    help_epilogue="""Examples:

    signalprop theory defaults
    signalprop theory phase --activation tanh --at 1.5,0.05 --depth 50
""",
)


@app.command(
    help_epilogue="""Examples:

    signalprop theory defaults
    signalprop theory defaults --json
""",
)
def defaults(
    *,
    width: Annotated[int, Parameter(group=RUN)] = 512,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """List what torch's own defaults and gains mean for a deep network.

    Args:
        width: Width of the layers, which sets the bias of nn.Linear's default.
        json: Print JSON on stdout, and nothing else.
        debug: On an error, print the traceback too.

    Returns:
        The exit status.
    """
    from signalprop.cli import session

    session.check_positive(width=width)
    from signalprop.capture.trace import plain
    from signalprop.report.theory import console
    from signalprop.theory.defaults import defaults

    with screen.progress("theory"):
        rows = defaults(width)
    if json:
        screen.write_json(plain(rows))
    else:
        screen.stdout().print(console.defaults(rows))
    return OK


@app.command(
    help_epilogue="""Examples:

    signalprop theory phase --activation tanh
    signalprop theory phase --activation erf --at 1.5,0.05 --depth 50
    signalprop theory phase --activation tanh --html tanh.html
""",
)
def phase(
    *,
    activation: Annotated[str, Parameter(group=RUN)] = "tanh",
    at: Annotated[str | None, Parameter(group=RUN)] = None,
    depth: Annotated[int | None, Parameter(group=RUN)] = None,
    json: Json = False,
    html: Html = None,
    debug: Debug = False,
) -> int:
    """Draw where a network is ordered or chaotic, and how deep it may be.

    Over the variances of weights and biases, sigma_w^2 = n Var(W) and sigma_b^2 = Var(b).

    Args:
        activation: Its name, e.g. tanh, erf, relu, gelu, selu.
        at: A point to mark, sigma_w^2 and sigma_b^2 with a comma between: 1.5,0.05.
        depth: Layers that the network is to bear.
        json: Print JSON on stdout, and nothing else.
        html: Write the figure to this file; opens offline.
        debug: On an error, print the traceback too.

    Returns:
        The exit status.
    """
    from signalprop.cli import session

    point = _point(at)
    session.check_positive(depth=1 if depth is None else depth)
    session.check_writable(html)
    from signalprop.report.theory import result

    with screen.progress(f"phase diagram of {activation}") as tell:
        found = result.around(activation, point, depth)
        session.save(found, html, tell)
    if json:
        screen.write_json(found.to_dict())
    else:
        screen.stdout().print(found)
    return OK


def _point(text: str | None) -> tuple[float, float] | None:
    """Two numbers with a comma between."""
    if text is None:
        return None
    try:
        weight, bias = (float(part) for part in text.split(","))
    except ValueError:
        raise TargetError(
            f"--at {text!r} is no point; write sigma_w^2 and sigma_b^2 with a comma between, "
            "e.g. --at 1.5,0.05"
        ) from None
    if not (0 < weight < 1e6 and 0 <= bias < 1e6):
        raise TargetError(f"--at {text!r}: sigma_w^2 has to be above 0, sigma_b^2 0 or above")
    return weight, bias
