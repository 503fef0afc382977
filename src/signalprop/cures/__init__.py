"""Changes to a network, or to its training, that treat findings; and trials that prove them.

Every cure is here by the name of its function: `signalprop.cures.he_init(model)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from signalprop.cures.cure import Cure


# resolved on first use: all cures are imported at once, and one is enough to want them
def __getattr__(name: str) -> Cure:
    if not name.startswith("_"):
        from signalprop.cures.catalogue import CURES

        for cure in CURES:
            if cure.function.__name__ == name:
                return cure
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from signalprop.cures.catalogue import CURES

    return sorted({*globals(), *(cure.function.__name__ for cure in CURES)})
