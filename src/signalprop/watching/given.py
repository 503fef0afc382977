"""What `watch` was given: optimizers, a file, the number of the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from signalprop.capture.observe import unwrapped
from signalprop.diagnosis.learning import plain_optimizer
from signalprop.errors import SignalpropError
from signalprop.watching.file.reader import Run


def first_step(start: int | None, to: Path | None, mode: str) -> int:
    """Number of the first step: as given, else the one after the last of a run that is resumed.

    Args:
        start: as given.
        to: the run file.
        mode: as given.

    Returns:
        The number.

    Raises:
        SignalpropError: it is no number of a step.
    """
    if start is not None:
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise SignalpropError(f"start={start!r} must be the number of a step, 0 or more")
        return start
    if mode != "resume" or to is None or not to.is_file():
        return 0
    try:
        with Run(to) as run:
            steps = run.steps
            return int(steps[-1]) + 1 if len(steps) else 0
    except SignalpropError:
        return 0  # the writer will say what is wrong with it


def file(to: str | Path | None, mode: str) -> Path | None:
    """Where the run is recorded.

    Args:
        to: as given.
        mode: as given; with `new` what exists is left alone.

    Returns:
        The path, or the first of `run-2.sp`, `run-3.sp`, ... that does not exist; None for nowhere.

    Raises:
        SignalpropError: it is no path.
    """
    if to is None:
        return None
    if not isinstance(to, (str, Path)) or not Path(to).name:
        raise SignalpropError(f"to={to!r} must be the path of a file, or None for no file")
    path = Path(to)
    if mode != "new" or not path.exists():
        return path
    return next(
        p
        for k in range(2, 1 << 30)
        if not (p := path.with_name(f"{path.stem}-{k}{path.suffix}")).exists()
    )


def facts(
    models: Sequence[tuple[str, torch.nn.Module]],
    optimizers: Sequence[torch.optim.Optimizer],
    every: int,
    ranks: int,
) -> dict[str, Any]:
    """What a run file keeps about the training.

    Args:
        models: by name.
        optimizers: of the loop.
        every: steps from sample to sample.
        ranks: processes that train together.

    Returns:
        Facts by name.
    """
    named = [(name, type(unwrapped(m)).__name__) for name, m in models]
    return {
        "model": ", ".join(f"{name}: {kind}" if name else kind for name, kind in named),
        "parameters": sum(p.numel() for _, m in models for p in m.parameters()),
        "optimizer": ", ".join(type(o).__name__ for o in optimizers),
        "every": every,
        **({"ranks": ranks} if ranks > 1 else {}),
        "torch": torch.__version__,
    }


def optimizers(given: Any) -> list[torch.optim.Optimizer]:
    """The torch optimizers in what was given.

    Args:
        given: one, several, wrapped ones, or None.

    Returns:
        All of them.

    Raises:
        SignalpropError: something else was given.
    """
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    found = []
    for one in several:
        if one is None:
            continue
        plain = plain_optimizer(one)
        if not isinstance(plain, torch.optim.Optimizer):
            raise SignalpropError(
                f"expected a torch.optim.Optimizer, got {type(one).__name__}; give None and call "
                "run.step() after each update"
            )
        found.append(plain)
    return found


def check_held(
    models: Sequence[torch.nn.Module], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """See that every optimizer holds something of the models.

    Args:
        models: as they are trained.
        optimizers: of the loop.

    Raises:
        SignalpropError: one holds nothing of them.
    """
    own = {id(p) for m in models for p in m.parameters()}
    for optimizer in optimizers:
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if held and not any(id(p) in own for p in held):
            raise SignalpropError(
                f"{type(optimizer).__name__} holds no parameter of the model; give the optimizer "
                "that was made with model.parameters()"
            )
