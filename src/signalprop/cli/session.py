"""From the words of a command line to a result that is shown: load, build, complete, measure."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signalprop.cli import blame, screen
from signalprop.cli import target as targets
from signalprop.cli.options import Options
from signalprop.errors import TargetError

if TYPE_CHECKING:
    from signalprop.cli.built import Built

Phase = Callable[[str], None]


def measured(
    text: str,
    asked: Options,
    measure: Callable[[Built, Phase], Any],
    *,
    needs_loss: bool = True,
) -> Any:
    """Load a target, measure it, and show the result.

    Args:
        text: the target as written.
        asked: the options.
        measure: makes the result from what was built; is given a function to tell phases to.
        needs_loss: whether it needs a loss.

    Returns:
        The result, already printed and saved as asked for.

    Raises:
        TargetError: the target, the data or a path has to be changed.
    """
    check_writable(asked.html)
    target = targets.parse(text)
    with (
        screen.only_results(asked.json),
        screen.progress(f"loading {target.place}", wanted=not asked.quiet) as phase,
    ):
        from signalprop.cli import built, inputs

        built.seed_all(asked.seed)
        with targets.loaded(target) as found:
            phase(f"building {target.name}")
            built.seed_all(asked.seed)  # once more: importing has used up random numbers
            made = built.build(found)
            made = inputs.complete(
                made,
                asked.input,
                classes=asked.classes,
                vocab=asked.vocab,
                batch_dim=asked.batch_dim,
                seed=asked.seed,
                needs_loss=needs_loss,
            )
            inputs.check_finite(made)
            if asked.device is not None:
                built.to_device(made, asked.device)
            result = measure(made, phase)
        save(result, asked.html, phase)
    return result


def check_positive(*, least: int = 1, **counts: int) -> None:
    """See that counts are counts.

    Args:
        least: the smallest that is one.
        counts: options with what was given.

    Raises:
        TargetError: one is smaller.
    """
    for name, count in counts.items():
        if count < least:
            raise TargetError(f"--{name} {count} must be at least {least}")


def check_writable(path: Path | None) -> None:
    """See that a report can be written, before minutes are spent on it.

    Args:
        path: where to; None for no report.

    Raises:
        TargetError: it is a folder, or in no folder, or may not be written.
    """
    if path is None:
        return
    path = path.expanduser()
    if path.is_dir():
        raise TargetError(f"--html {path} is a folder; name a file, e.g. {path / 'report.html'}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise TargetError(
            f"--html {path}: the folder {blame.shown(folder)} does not exist; make it first: "
            f"mkdir -p {blame.shown(folder)}"
        )
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise TargetError(f"--html {path} may not be written; choose another place")


def save(result: Any, path: Path | None, phase: Phase) -> None:
    """Write the report, and say where it is.

    Args:
        result: what has views.
        path: where to; None for no report.
        phase: told what is being done.

    Raises:
        TargetError: the disk refuses.
    """
    if path is None:
        return
    phase("writing the report")
    try:
        written = result.save(path.expanduser())
    except OSError as error:
        raise TargetError(f"--html {path} could not be written: {error.strerror}") from error
    screen.say(f"report: {blame.shown(written)}")
