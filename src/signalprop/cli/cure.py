"""`signalprop cure`: try cures on the user's own program, and say what helps."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from rich.text import Text

from signalprop.cli import screen, session
from signalprop.cli import target as targets
from signalprop.cli.door import FOUND, INTERRUPTED, OK
from signalprop.cli.options import DEFAULTS, Options
from signalprop.errors import TargetError

if TYPE_CHECKING:
    from signalprop.cli.built import Built
    from signalprop.cures.cure import Cure
    from signalprop.cures.trials.result import Trials

TRIALS = Group("Trials", sort_key=2)
EPILOGUE = """Examples:

    signalprop cure train.py:build
    signalprop cure train.py:build --budget 10min --html cures.html
    signalprop cure train.py:build --budget 500 --seeds 5 --resume trials
    signalprop cure train.py:build --only he-init,rate

Exit status: 0 where something helps or there is no issue to treat, 1 where there is one and nothing
helps; 2 where something has to be changed first; 130 after Ctrl-C, with what had finished.
"""

Phase = Callable[[str], None]
Tell = Callable[[int, int, str], None]


def cure(
    target: Path,
    /,
    options: Options = DEFAULTS,
    *,
    budget: Annotated[str, Parameter(group=TRIALS)] = "2min",
    seeds: Annotated[int, Parameter(group=TRIALS)] = 3,
    most: Annotated[int, Parameter(group=TRIALS)] = 8,
    rounds: Annotated[int, Parameter(group=TRIALS)] = 2,
    only: Annotated[list[str] | None, Parameter(group=TRIALS)] = None,
    batch_size: Annotated[int | None, Parameter(group=TRIALS)] = None,
    engine: Annotated[Literal["auto", "serial", "loky", "ray"], Parameter(group=TRIALS)] = "auto",
    workers: Annotated[int | None, Parameter(group=TRIALS)] = None,
    resume: Annotated[Path | None, Parameter(group=TRIALS)] = None,
) -> int:
    """Try cures for what is wrong with a network, and say which one helps.

    Every candidate, and the network as it is, is trained with the same seeds on the same batches.
    A function that builds the network is called once for every seed, so that each has weights of
    its own; data, loss and optimizer are those of the first call.

    Args:
        target: FILE.py:NAME or PACKAGE.MODULE:NAME, as for `diagnose`. NAME may return a
            DataLoader, which is read whole, or one batch.
        options: shared with `diagnose`; `--seed` is the first of the seeds.
        budget: Time for everything, e.g. 90s, 2min or 1h; or a number: updates of each training.
        seeds: So many seeds; fewer than 3 prove nothing.
        most: So many candidates in the first round.
        rounds: How often what helps is diagnosed and treated again.
        only: Cures to try instead of what the findings name, e.g. he-init,rate.
        batch_size: Samples of an update, where there is one batch only; otherwise all.
        engine: Where trainings run: in this process, in local ones (loky), or by Ray.
        workers: So many trainings at a time; otherwise as many as there are cores.
        resume: Folder to keep everything in; called again, what is finished is not run again.

    Returns:
        The exit status.
    """
    again = functools.partial(_again, target, options, locals())
    session.check_writable(options.html)
    counts = {"seeds": seeds, "most": most, "rounds": rounds, "workers": workers}
    counts["batch-size"] = batch_size
    session.check_positive(**{name: n for name, n in counts.items() if n is not None})
    parsed = targets.parse(str(target))
    updates = int(budget) if budget.strip().isdecimal() else budget
    from signalprop.cures.trials import budget as budgets

    budgets.seconds_of(updates)
    asked: dict[str, Any] = {
        "budget": updates,
        "cures": chosen(only),
        "most": most,
        "rounds": rounds,
        "batch_size": batch_size,
        "engine": engine,
        "workers": workers,
        "resume": None if resume is None else resume.expanduser(),
    }
    chain = tuple(range(options.seed, options.seed + seeds))
    try:
        with (
            screen.only_results(options.json),
            bar(f"loading {parsed.place}", wanted=not options.quiet) as (phase, tell),
        ):
            found = _tried(parsed, options, chain, asked, phase, tell)
            session.save(found, options.html, phase)
    except KeyboardInterrupt:
        _say_interrupted(resume, again)
        return INTERRUPTED
    _show(found, options)
    if not found.complete:
        _say_interrupted(resume, again)
        return INTERRUPTED
    return OK if found.best is not None or found.before.healthy else FOUND


def _tried(
    parsed: targets.Target,
    options: Options,
    seeds: tuple[int, ...],
    asked: dict[str, Any],
    phase: Phase,
    tell: Tell,
) -> Trials:
    """Load, build for every seed, and try."""
    from signalprop.cli import built, inputs
    from signalprop.cures.trials import prove

    built.seed_all(seeds[0])
    with targets.loaded(parsed) as found, _by_value(parsed):
        phase(f"building {parsed.name}")
        built.seed_all(seeds[0])  # once more: importing has used up random numbers
        made = _whole(found)
        random = made.batch is None
        made = inputs.complete(
            made,
            options.input,
            classes=options.classes,
            vocab=options.vocab,
            batch_dim=options.batch_dim,
            seed=options.seed,
        )
        inputs.check_finite(made)
        models = [made.model]
        for seed in seeds[1:]:
            phase(f"building {parsed.name} with seed {seed}")
            built.seed_all(seed)
            models.append(_whole(found).model)
        if options.device is not None:
            for model in models:
                built.to_device(dataclasses.replace(made, model=model), options.device)
        # a module, or a function that gives the same one again, has one set of weights only
        own = len({id(model) for model in models}) == len(models)
        phase("diagnosing, and timing an update")
        result = prove.cure(
            iter(models).__next__ if own and len(models) > 1 else made.model,
            made.batch,
            made.loss,
            made.optimizer,
            seeds=seeds,
            # labels that were drawn can be learned by heart, and in no other way
            held_out=made.batch if random else None,
            batch_dim=options.batch_dim,
            progress=tell,
            **asked,
        )
    if not random:
        return result
    note = "the data are random: candidates are judged by how well they learn them by heart"
    return dataclasses.replace(
        result,
        data=result.data.partition(";")[0] + ", random; judged on what is learned from",
        notes=(*result.notes, note),
    )


def chosen(names: list[str] | None) -> tuple[Cure, ...] | None:
    """The cures of these names; None for none.

    Args:
        names: as written by a user, also several in one string with commas between.

    Returns:
        The cures, each once.

    Raises:
        TargetError: there is no such cure; the message lists near matches.
    """
    if names is None:
        return None
    from signalprop.cures.catalogue import CATALOGUE

    wanted = [part.strip() for text in names for part in text.split(",") if part.strip()]
    if not wanted:
        raise TargetError(f"--only names no cure; there is {', '.join(CATALOGUE)}")
    for name in wanted:
        if name not in CATALOGUE:
            close = screen.near(name, list(CATALOGUE))
            hint = f"did you mean {screen.one_of(close)}?" if close else ""
            hint = hint or f"there is {', '.join(CATALOGUE) or 'none'}"
            raise TargetError(f"there is no cure {name!r}; {hint}")
    return tuple(CATALOGUE[name] for name in dict.fromkeys(wanted))


class _Whole:
    """Data that is to be handed on as it is, and not looked into."""

    def __init__(self, data: Any) -> None:
        self.data = data


def _whole(found: targets.Loaded) -> Built:
    """What the user's code makes, with all batches of a loader instead of the first."""
    import torch

    from signalprop.cli import built

    def wrapped(made: Any) -> Any:
        if isinstance(made, (tuple, list)) and len(made) > 1 and made[1] is not None:
            return [made[0], _Whole(made[1]), *made[2:]]
        return made

    value = found.value
    if not callable(value) or isinstance(value, torch.nn.Module):
        made = built.build(dataclasses.replace(found, value=wrapped(value)))
    else:

        @functools.wraps(value, updated=())
        def call() -> Any:
            return wrapped(value())

        made = built.build(dataclasses.replace(found, value=call))
    if isinstance(made.batch, _Whole):
        made = dataclasses.replace(made, batch=made.batch.data)
    return made


@contextmanager
def _by_value(parsed: targets.Target) -> Iterator[None]:
    """Other processes cannot import the user's file by its private name: its code travels along."""
    if parsed.file is None:
        yield
        return
    import cloudpickle

    # under any other name a module of this file can be imported there as well
    module = next(
        module
        for name, module in list(sys.modules.items())
        if name.startswith("_") and getattr(module, "__file__", None) == str(parsed.file)
    )
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


@contextmanager
def bar(start: str, *, wanted: bool = True) -> Iterator[tuple[Phase, Tell]]:
    """Show on a terminal what is being done, and how many legs of trainings are done.

    Args:
        start: what is done first.
        wanted: whether anything is shown at all.

    Yields:
        A function that is told what comes next, and one that is told (legs done, of how many, what
        has run).
    """
    console = screen.stderr()
    if not (wanted and console.is_terminal):
        yield (lambda phase: None), (lambda done, total, what: None)
        return
    from rich import progress

    columns = (
        progress.SpinnerColumn(),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}", markup=False),
    )
    with progress.Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(f"{start} ...", total=None)
        before, turn = 0, 1

        def phase(text: str) -> None:
            shown.update(task, description=f"{text} ...")

        def tell(done: int, total: int, what: str) -> None:
            nonlocal before, turn
            turn += done <= before
            before = done
            name = f"{what} done" if turn == 1 else f"round {turn}: {what} done"
            shown.update(task, completed=done, total=total, description=name)

        yield phase, tell


def _show(found: Trials, options: Options) -> None:
    if options.json:
        best = found.best
        screen.write_json({"best": None if best is None else best.name, **found.to_dict()})
    elif options.quiet:
        from signalprop.report.trials import said

        screen.stdout().print(Text(said.headline(found)), soft_wrap=True)
    else:
        screen.stdout().print(found)


def _say_interrupted(resume: Path | None, again: Callable[[], str]) -> None:
    if resume is None:
        screen.say("interrupted; with --resume FOLDER what is finished would be kept")
    else:
        screen.say(f"interrupted; go on with: {again()}")


def _again(target: Path, options: Options, given: dict[str, Any]) -> str:
    """The command line that was given, as a shell reads it."""
    found = ["signalprop", "cure", str(target)]
    names = {name: value for name, value in given.items() if name not in ("target", "options")}
    for name, default in (cure.__kwdefaults__ or {}).items():
        found += _option(name, names.get(name, default), default)
    for field in dataclasses.fields(options):
        found += _option(field.name, getattr(options, field.name), getattr(DEFAULTS, field.name))
    return shlex.join(found)


def _option(name: str, value: Any, default: Any) -> list[str]:
    if value == default:
        return []
    words = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [words]
    if isinstance(value, list):
        return [part for item in value for part in (words, str(item))]
    return [words, str(value)]
