"""`signalprop horizon`: how far back in time the credit of the last step reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter
from rich.text import Text

from signalprop.cli import screen
from signalprop.cli.door import OK
from signalprop.cli.options import DEFAULTS, Options
from signalprop.errors import TargetError

if TYPE_CHECKING:
    from signalprop.cli.built import Built

TIME = Group("Time", sort_key=2)
EPILOGUE = """Examples:

    signalprop horizon train.py:build
    signalprop horizon train.py:build --exponents 4 --html horizon.html
    signalprop horizon models.py:Net --input 16x500x2 --spectra --steps 2,250,500
"""


def horizon(
    target: Path,
    /,
    options: Options = DEFAULTS,
    *,
    errors: Annotated[int, Parameter(group=TIME)] = 4,
    samples: Annotated[int, Parameter(group=TIME)] = 16,
    no_gains: Annotated[bool, Parameter(group=TIME)] = False,
    spectra: Annotated[bool, Parameter(group=TIME)] = False,
    exponents: Annotated[int, Parameter(group=TIME)] = 0,
    steps: Annotated[list[str] | None, Parameter(group=TIME)] = None,
) -> int:
    """Measure over how many steps credit reaches back, in recurrent layers and attention.

    A random error is put on the last step alone, and goes back from there: the horizon is the
    number of steps until 1/e of it is left, and the number until it drowns in rounding. No labels
    are needed.

    Args:
        target: FILE.py:NAME or PACKAGE.MODULE:NAME, as for `diagnose`.
        options: shared with `diagnose`.
        errors: So many random errors for each sample.
        samples: So many samples of the batch.
        no_gains: Leave out what single steps do to an error.
        spectra: All singular values of single steps too; slow where layers are wide.
        exponents: So many of the largest Lyapunov exponents.
        steps: Steps to look at alone, from 2 up, e.g. 2,250,500; otherwise 16, spread.

    Returns:
        The exit status.
    """
    from signalprop.cli import session

    session.check_positive(errors=errors, samples=samples)
    session.check_positive(least=0, exponents=exponents)
    chosen = numbers(steps or [])

    def measure(made: Built, phase: Callable[[str], None]) -> Any:
        from signalprop.recurrent.horizon.measure import horizon

        phase("measuring the horizon")
        return horizon(
            made.model,
            made.batch,
            made.loss,
            errors=errors,
            samples=samples,
            gains=not no_gains,
            spectra=spectra,
            exponents=exponents,
            steps=chosen or None,
            batch_dim=options.batch_dim,
            seed=options.seed,
        )

    found = session.measured(str(target), options, measure, needs_loss=False)
    if options.json:
        screen.write_json(found.to_dict())
    elif options.quiet:
        from signalprop.report.time.horizon import said

        screen.stdout().print(Text(said.headline(found)), soft_wrap=True)
    else:
        screen.stdout().print(found)
    return OK


def numbers(steps: Iterable[str]) -> list[int]:
    """Steps as a user writes them.

    Args:
        steps: numbers, also several in one string with commas between.

    Returns:
        They, in order, each once.

    Raises:
        TargetError: one is no number from 2 up.
    """
    parts = [part.strip() for text in steps for part in text.split(",") if part.strip()]
    for part in parts:
        if not part.isdecimal() or int(part) < 2:
            raise TargetError(
                f"--steps {part}: give steps from 2 up with commas between, e.g. --steps 2,50,100; "
                "step 2 leads from the first state to the second"
            )
    return sorted({int(part) for part in parts})
