"""Optional packages: imported when an adapter is used, and named where they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from signalprop.errors import MissingPackageError


def needed(module: str, extra: str, who: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: its name, e.g. `torch.utils.tensorboard`.
        extra: of signalprop that brings the package.
        who: the adapter, for the message.

    Returns:
        The module.

    Raises:
        MissingPackageError: it cannot be imported; the message has the line that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        why = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        raise MissingPackageError(
            f"{who} needs a package that cannot be imported{why}: pip install 'signalprop[{extra}]'"
        ) from error
