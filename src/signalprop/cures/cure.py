"""What a cure is: a function that changes a network or its training, and what it treats."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from signalprop.cures.surgery import copied
from signalprop.cures.training import Training
from signalprop.errors import SignalpropError

#: of the network; of the network, for which it needs data; of it and how it is trained; only of
#: how it is trained, which is measured once and stands for all seeds
Changes = Literal["model", "model with data", "training", "settings"]


class DoesNotApply(SignalpropError):  # noqa: N818 - it is no mistake
    """A cure has nothing to change in this network; the message says why."""


@dataclass(frozen=True)
class Cure:
    """A function that changes a network, and what is known of it.

    Call it to change a network of your own: `he_init(model)`.

    Attributes:
        name: e.g. `he-init`.
        treats: codes of the findings it is for.
        changes: what it takes: `model` f(model, *, inplace=False, ...) -> model; `model with data`
            f(model, data, *, inplace=False, ...) -> model; `training` and `settings` f(training,
            data, ...) -> training, which add the lines to paste by themselves.
        function: the function.
        options: keyword arguments that are not the function's defaults.
    """

    name: str
    treats: tuple[str, ...]
    changes: Changes
    function: Callable[..., Any]
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function."""
        return self.function(*args, **dict(self.options) | options)

    def with_options(self, **options: Any) -> Cure:
        """The same with other options, e.g. `swap_activation.with_options(to="selu")`."""
        return replace(self, options=tuple((dict(self.options) | options).items()))

    @property
    def title(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or self.name).splitlines()[0].rstrip(".")

    @property
    def line(self) -> str:
        """The line a user pastes; of a cure of the training, where it comes from."""
        told = "".join(f", {k}={_shown(v)}" for k, v in self.options)
        name = self.function.__name__
        if self.changes in ("training", "settings"):
            return f"signalprop.cures.{name}"
        data = ", data" if self.changes == "model with data" else ""
        return f"model = signalprop.cures.{name}(model{data}{told})"

    def __str__(self) -> str:
        """The line a user pastes."""
        return self.line

    def treat(self, training: Training, data: Any) -> Training:
        """Change a copy.

        Args:
            training: the network and how it is trained; not touched.
            data: a batch (inputs, target), as for `diagnose`.

        Returns:
            The changed training, with the lines to paste.

        Raises:
            DoesNotApply: there is nothing to change.
        """
        own = replace(training, model=copied(training.model))
        if self.changes in ("training", "settings"):
            return self.function(own, data, **dict(self.options))
        args = (own.model, data) if self.changes == "model with data" else (own.model,)
        model = self.function(*args, inplace=True, **dict(self.options))
        return own.changed(self.line, model=model)


def _shown(value: Any) -> str:
    """An option as it is written; a class of torch by its public name."""
    if not isinstance(value, type):
        return repr(value)
    home = "torch.nn." if value.__module__.startswith("torch.nn.modules") else ""
    return f"{home}{value.__name__}"


def cure(
    name: str, *, treats: tuple[str, ...], changes: Changes = "model"
) -> Callable[[Callable[..., Any]], Cure]:
    """Make a cure of a function.

    Args:
        name: e.g. `he-init`.
        treats: codes of the findings it is for.
        changes: what the function takes, see `Cure`.

    Returns:
        A decorator.
    """

    def made(function: Callable[..., Any]) -> Cure:
        return Cure(name, treats, changes, function)

    return made
