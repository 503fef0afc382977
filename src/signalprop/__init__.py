"""Where a deep network loses its signal, why, and which cure works."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from signalprop.capture.observe import trace as trace
    from signalprop.capture.trace import Trace as Trace

__version__ = "0.1.0"

# resolved on first use, so that importing the package and `signalprop --help` stay quick
_HOMES = {
    "trace": "signalprop.capture.observe",
    "Trace": "signalprop.capture.trace",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
