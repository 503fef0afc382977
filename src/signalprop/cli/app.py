"""The commands, each as thin as it can be; whatever needs torch is imported inside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.text import Text

from signalprop.cli import cure, horizon, report, screen, theory, view
from signalprop.cli.door import BAD_INPUT, FOUND, OK
from signalprop.cli.options import DEFAULTS, JACOBIAN, RUN, Debug, Html, Json, Options

if TYPE_CHECKING:
    from signalprop.cli.built import Built


def _version() -> str:
    """Versions, as a bug report needs them; read from the installed packages, torch unloaded."""
    import platform
    from importlib import metadata

    import signalprop

    try:
        torch = f"torch {metadata.version('torch')}"
    except metadata.PackageNotFoundError:
        torch = "torch not installed"
    python = f"Python {platform.python_version()}"
    return f"signalprop {signalprop.__version__} ({torch}, {python})"


def _default(value: Any) -> str | None:
    """What the help prints as a default: nothing where that only says "not given"."""
    return None if value is None or value is False or isinstance(value, list) else str(value)


app = App(
    name="signalprop",
    help="See where a deep network loses its signal, and why.",
    version=_version,
    default_parameter=Parameter(negative=(), show_default=_default),
    help_epilogue="""Examples:

    signalprop diagnose train.py:build
    signalprop diagnose models.py:Net --input 32x3x32x32 --classes 10
    signalprop cure train.py:build
    signalprop spectrum train.py:build --of layer4 --wrt layer1
    signalprop horizon train.py:build
    signalprop theory phase --activation tanh
    signalprop explain SP101
    signalprop study alexnet --quick
    signalprop view run.sp
    signalprop report run.sp --html run.html
""",
)
theory.app.sort_key = 6
app.command(theory.app)
app.command(cure.cure, sort_key=2, help_epilogue=cure.EPILOGUE)
app.command(horizon.horizon, sort_key=3, help_epilogue=horizon.EPILOGUE)
app.command(view.view, sort_key=8, help_epilogue=view.EPILOGUE)
app.command(report.report, sort_key=9, help_epilogue=report.EPILOGUE)
app.register_install_completion_command(help="Install completion for your shell.", help_epilogue="")
app["--help"].help = "Print this help, or that of a command."
app["--version"].help = "Print the versions of signalprop, torch and Python."


@app.command(
    sort_key=1,
    help_epilogue="""Examples:

    signalprop diagnose train.py:build
    signalprop diagnose train.py:build --html report.html --fail-on issue
    signalprop diagnose models.py:Net --input 32x3x32x32 --classes 10
    signalprop diagnose models.py:GPT --input 8x128:int --classes 50257 --json

Exit status: 0, or 1 where --fail-on says so; 2 where something has to be changed first.
""",
)
def diagnose(
    target: Path,  # not str: the shell then completes file names
    /,
    options: Options = DEFAULTS,
    *,
    lag: Annotated[int | None, Parameter(group=RUN)] = None,
    clip: Annotated[float | None, Parameter(group=RUN)] = None,
    ignore: Annotated[list[str] | None, Parameter(group=RUN)] = None,
    fail_on: Annotated[Literal["issue", "tip", "never"], Parameter(group=RUN)] = "never",
) -> int:
    """Say what is wrong with a network, where, and why.

    One forward and backward pass is seen, and a few more are tried on copies; the file is imported,
    so what is only to run as a program belongs under `if __name__ == "__main__":`.

    Args:
        target: FILE.py:NAME or PACKAGE.MODULE:NAME. NAME is a module, or a function without
            arguments that returns a model, (model, batch), (model, batch, loss) or (model, batch,
            loss, optimizer); a batch may be a DataLoader.
        options: shared with `trace`.
        lag: Steps over which the task needs memory; otherwise the data are asked.
        clip: The norm that training clips the gradient to, where it does.
        ignore: Rules to leave out, e.g. SP103,SP201.
        fail_on: Exit with status 1 if there is an issue, or any finding (tip).

    Returns:
        The exit status.
    """
    from signalprop.cli import rulebook, session

    left_out = rulebook.chosen(ignore or [])

    def measure(made: Built, phase: Callable[[str], None]) -> Any:
        from signalprop.diagnosis import engine

        return engine.diagnose(
            made.model,
            made.batch,
            made.loss,
            made.optimizer,
            batch_dim=options.batch_dim,
            lag=lag,
            clip=clip,
            ignore=left_out,
            progress=phase,
        )

    verdict = session.measured(str(target), options, measure)
    if options.json:
        screen.write_json({"healthy": verdict.healthy, **verdict.to_dict()})
    elif options.quiet:
        _short(verdict)
    else:
        screen.stdout().print(verdict)
    if verdict.trace.failure is not None:
        return _stopped(verdict.trace.failure)
    failing = {"issue": ("issue",), "tip": ("issue", "tip"), "never": ()}[fail_on]
    return FOUND if any(f.severity in failing for f in verdict.findings) else OK


def _short(verdict: Any) -> None:
    """One line per finding, or the verdict where there is none."""
    console = screen.stdout()
    for f in verdict.findings:
        line = Text(f"{f.severity} {f.code} {f.title}: {f.explanation}")
        console.print(line, soft_wrap=True)
    if not verdict.findings:
        console.print(Text(verdict.verdict), soft_wrap=True)


def _stopped(failure: Any) -> int:
    """A program that does not run is bad input, whatever else was found up to there."""
    where = f" in module {failure.site!r}" if failure.site else ""
    screen.say(
        f"the {failure.phase} pass stopped{where}: {failure.error}: {failure.message}",
        "error: ",
        "bold red",
    )
    return BAD_INPUT


@app.command(
    sort_key=2,
    help_epilogue="""Examples:

    signalprop trace train.py:build
    signalprop trace models.py:Net --input 32x784 --classes 10 --json > trace.json
    signalprop trace train.py:build --deltas all
""",
)
def trace(
    target: Path,
    /,
    options: Options = DEFAULTS,
    *,
    deltas: Annotated[Literal["borders", "all"], Parameter(group=RUN)] = "borders",
) -> int:
    """Show one forward and backward pass, without judging it.

    Args:
        target: FILE.py:NAME or PACKAGE.MODULE:NAME, as for `diagnose`.
        options: shared with `diagnose`.
        deltas: Of recurrent layers: where chunks of steps meet, with torch's own kernels, or at
            every step.

    Returns:
        The exit status.
    """
    from signalprop.cli import session

    def measure(made: Built, phase: Callable[[str], None]) -> Any:
        from signalprop.recurrent.observe import trace

        phase("seeing one pass")
        return trace(made.model, made.batch, made.loss, batch_dim=options.batch_dim, deltas=deltas)

    seen = session.measured(str(target), options, measure)
    if options.json:
        screen.write_json(seen.to_dict())
    elif options.quiet:
        screen.stdout().print(f"{seen.model}: {len(seen.sites)} sites, decay {seen.decay:.2f} nats")
    else:
        screen.stdout().print(seen)
    return OK


@app.command(
    sort_key=3,
    help_epilogue="""Examples:

    signalprop spectrum train.py:build --html spectrum.html
    signalprop spectrum train.py:build --of layer4 --wrt layer1 --smallest 2
    signalprop spectrum models.py:Net --input 8x3x32x32 --k 4
""",
)
def spectrum(
    target: Path,
    /,
    options: Options = DEFAULTS,
    *,
    of: Annotated[str | None, Parameter(group=JACOBIAN)] = None,
    wrt: Annotated[str | None, Parameter(group=JACOBIAN)] = None,
    k: Annotated[int, Parameter(name="--k", group=JACOBIAN)] = 8,
    smallest: Annotated[int, Parameter(group=JACOBIAN)] = 0,
    whole: Annotated[bool, Parameter(group=JACOBIAN)] = False,
    distribution: Annotated[bool, Parameter(group=JACOBIAN)] = False,
    no_blocks: Annotated[bool, Parameter(group=JACOBIAN)] = False,
    no_profile: Annotated[bool, Parameter(group=JACOBIAN)] = False,
    samples: Annotated[int, Parameter(group=JACOBIAN)] = 8,
    batch_norm: Annotated[Literal["frozen", "eval"], Parameter(group=JACOBIAN)] = "frozen",
) -> int:
    """Measure the singular values of a network's Jacobians.

    From end to end, and of every block in between: how much each direction of a signal is
    stretched or lost. Names of sites are those that `signalprop trace` prints.

    Args:
        target: FILE.py:NAME or PACKAGE.MODULE:NAME, as for `diagnose`.
        options: shared with `diagnose`.
        of: Site nearer to the output; otherwise the last of the spine.
        wrt: Site nearer to the input; otherwise the first of the spine.
        k: So many of the largest singular values, where a Jacobian is too wide for all.
        smallest: So many of the smallest, too.
        whole: All singular values, whatever it costs; otherwise up to a few hundred.
        distribution: Estimate how all are distributed, where only some are measured.
        no_blocks: Leave out the blocks in between.
        no_profile: Do not follow every direction over depth: faster where layers are wide.
        samples: So many samples of the batch.
        batch_norm: BatchNorm's statistics: the batch's own, held fixed, or the running ones.

    Returns:
        The exit status.
    """
    from signalprop.cli import session

    session.check_positive(k=k, samples=samples)
    session.check_positive(least=0, smallest=smallest)

    def measure(made: Built, phase: Callable[[str], None]) -> Any:
        from signalprop.jacobian.spectrum import spectrum

        return spectrum(
            made.model,
            made.batch,
            made.loss,
            of=of,
            wrt=wrt,
            k=k,
            smallest=smallest,
            whole=whole or None,
            blocks=not no_blocks,
            profile=not no_profile,
            distribution=distribution,
            samples=samples,
            batch_norm=batch_norm,
            batch_dim=options.batch_dim,
            seed=options.seed,
            progress=phase,
        )

    found = session.measured(str(target), options, measure, needs_loss=False)
    if options.json:
        screen.write_json(found.to_dict())
    elif options.quiet:
        from signalprop.report.spectra import said

        screen.stdout().print(Text(said.headline(found)), soft_wrap=True)
    else:
        screen.stdout().print(found)
    return OK


@app.command(
    sort_key=4,
    help_epilogue="""Examples:

    signalprop rules
    signalprop rules --json
""",
)
def rules(*, json: Json = False, debug: Debug = False) -> int:
    """List every rule with its thresholds and what it needs.

    Args:
        json: Print JSON on stdout, and nothing else.
        debug: On an error, print the traceback too.

    Returns:
        The exit status.
    """
    from signalprop.cli import rulebook

    if json:
        screen.write_json([rulebook.plain_rule(judge) for judge in rulebook.rules()])
    else:
        screen.stdout().print(rulebook.listing())
    return OK


@app.command(
    sort_key=5,
    help_epilogue="""Examples:

    signalprop explain SP101
""",
)
def explain(code: str, /, *, debug: Debug = False) -> int:
    """Print a rule's page: how it detects, why it matters, the cure.

    Args:
        code: The rule, e.g. SP101.
        debug: On an error, print the traceback too.

    Returns:
        The exit status.
    """
    from signalprop.cli import rulebook

    screen.stdout().print(rulebook.page(rulebook.find(code)))
    return OK


@app.command(
    sort_key=7,
    help_epilogue="""Examples:

    signalprop study list
    signalprop study delta-chain
    signalprop study alexnet --quick --html alexnet.html
""",
)
def study(
    name: str,
    /,
    *,
    quick: Annotated[bool, Parameter(group=RUN)] = False,
    seed: Annotated[int, Parameter(group=RUN)] = 0,
    json: Json = False,
    html: Html = None,
    debug: Debug = False,
) -> int:
    """Run and measure a statement about deep networks.

    The verdict follows from the numbers: holds, holds in part, or does not hold as printed.

    Args:
        name: The study; `list` lists them all.
        quick: Seconds instead of a minute or two.
        seed: Seed of every random number in it.
        json: Print JSON on stdout, and nothing else.
        html: Write the report to this file; opens offline.
        debug: On an error, print the traceback too.

    Returns:
        The exit status.
    """
    from signalprop.cli import session
    from signalprop.cli import study as lecture

    session.check_writable(html)
    if name == "list":
        lecture.listing(json=json)
        return OK
    with screen.only_results(json), screen.progress(f"study {name}") as phase:
        result = lecture.run(name, quick=quick, seed=seed, phase=phase)
        session.save(result, html, phase)
    if json:
        screen.write_json(result.to_dict())
    else:
        screen.stdout().print(result)
    return OK
