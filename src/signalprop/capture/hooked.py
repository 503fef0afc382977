"""A mode that sees torch's functions, and has hooks on while it is open."""

from __future__ import annotations

from typing import Any, Self

from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle


class Hooked(TorchFunctionMode):
    """A TorchFunctionMode with hooks: none is left when it closes, also after an error."""

    def __init__(self) -> None:
        super().__init__()
        self._handles: list[RemovableHandle] = []

    def _hooks(self) -> list[RemovableHandle]:
        """Register the hooks."""
        return []

    def __enter__(self) -> Self:
        """Start to see."""
        self._handles = self._hooks()
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        """Stop to see, and take every hook off."""
        try:
            super().__exit__(exc_type, exc_val, exc_tb)
        finally:
            for handle in self._handles:
                handle.remove()
