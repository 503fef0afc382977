"""Turns what was named on the command line into model, batch, loss and optimizer."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from signalprop.capture.batch import describe, first_of
from signalprop.cli import blame
from signalprop.cli.target import Loaded
from signalprop.errors import ModelError, SignalpropError, TargetError

_RETURNS = "a model, (model, batch), (model, batch, loss) or (model, batch, loss, optimizer)"


@dataclass(frozen=True)
class Built:
    """What the user's code made.

    Attributes:
        model: the network.
        batch: what it is given; None where the code made none.
        loss: the loss; None where the model returns its own.
        optimizer: the optimizer; None where the code made none.
        root: the folder of the user's code.
        source: the function or module, for messages.
    """

    model: torch.nn.Module
    batch: Any
    loss: Any
    optimizer: torch.optim.Optimizer | None
    root: Path
    source: str


def seed_all(seed: int) -> None:
    """The same random numbers in every run: Python's, torch's, and NumPy's where it is used."""
    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def build(found: Loaded) -> Built:
    """Call what was found, where it is to be called, and sort out what it gives.

    Args:
        found: an `nn.Module`, a function without arguments, or a tuple.

    Returns:
        The parts, each of the right type; the batch is the first of a DataLoader.

    Raises:
        TargetError: it needs arguments, raises, or gives something else.
        ModelError: the model has no parameters.
    """
    value = found.value
    source = f"{found.target.name!r} in {found.target.place}"
    made = value
    if callable(value) and not isinstance(value, torch.nn.Module):
        source = f"{found.target.name}() in {found.target.place}"
        made = _call(value, found, source)
    model, batch, loss, optimizer = _parts(made, source)
    if next(model.parameters(), None) is None:
        raise ModelError(
            f"the model of {source} has no parameters, so nothing in it can learn; layers kept in "
            "a plain list or dict are not seen by torch, use nn.ModuleList or nn.ModuleDict"
        )
    return Built(model, _first(batch, source, found.root), loss, optimizer, found.root, source)


def _call(function: Callable[..., Any], found: Loaded, source: str) -> Any:
    place, name = found.target.place, found.target.name
    try:
        inspect.signature(function).bind()
    except TypeError:
        signature = str(inspect.signature(function)).partition(" ->")[0]
        raise TargetError(
            f"{name}{signature} in {place} needs arguments, which signalprop cannot know; write a "
            f"function without any, e.g. `def build(): return {name}(...)`, and name that one"
        ) from None
    except ValueError:
        pass  # native callables have no signature to look at
    try:
        return function()
    except SignalpropError:
        raise
    except SystemExit as error:
        raise TargetError(
            f"{source} ended the program{blame.at(error, found.root)}; let it return {_RETURNS}"
        ) from error
    except Exception as error:
        if blame.out_of_memory(error):
            raise TargetError(f"{source} ran out of memory{blame.at(error, found.root)}") from error
        fix = "fix that, and run again"
        if isinstance(error, ModuleNotFoundError):
            fix = f"install it where signalprop runs: {blame.installing(error)}"
        raise TargetError(
            f"{source} raised {blame.named(error)}{blame.at(error, found.root)}; {fix}"
        ) from error


def _parts(made: Any, source: str) -> tuple[torch.nn.Module, Any, Any, Any]:
    if inspect.iscoroutine(made):
        made.close()
        raise TargetError(f"{source} is an async function; write an ordinary one")
    parts = list(made) if isinstance(made, (tuple, list)) else [made]
    if not (1 <= len(parts) <= 4) or not isinstance(parts[0], torch.nn.Module):
        raise TargetError(f"{source} gave {_described(made)}; it has to return {_RETURNS}")
    if len(parts) == 3 and isinstance(parts[2], torch.optim.Optimizer):
        parts.insert(2, None)  # (model, batch, optimizer) of a model with its own loss
    model, batch, loss, optimizer = parts + [None] * (4 - len(parts))
    if loss is not None and not callable(loss):
        raise TargetError(
            f"{source} gave {_described(loss)} as the loss; give a function, e.g. "
            "torch.nn.functional.cross_entropy, or None where the model returns its own loss"
        )
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TargetError(
            f"{source} gave {_described(optimizer)} as the optimizer; give one of torch.optim, "
            "made with model.parameters()"
        )
    return model, batch, loss, optimizer


def _described(value: Any) -> str:
    return "None (is there a return?)" if value is None else describe(value)


def _first(batch: Any, source: str, root: Path) -> Any:
    """The first batch of a data loader, taken once; the user's dataset may raise there."""
    try:
        return first_of(batch)
    except SignalpropError:
        raise
    except Exception as error:
        raise TargetError(
            f"the data loader of {source} raised {blame.named(error)}{blame.at(error, root)}; "
            "it has to give at least one batch"
        ) from error


def to_device(made: Built, name: str) -> None:
    """Move the model, and a loss that is a module, to a device; batches follow the model.

    Args:
        made: what to move.
        name: the device, e.g. `cuda` or `cuda:1`.

    Raises:
        TargetError: there is no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        raise TargetError(
            f"--device {name} cannot be used here ({blame.named(error)}); there is {_devices()}"
        ) from error
    made.model.to(device)
    if isinstance(made.loss, torch.nn.Module):
        made.loss.to(device)


def _devices() -> str:
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return ", ".join(names)
