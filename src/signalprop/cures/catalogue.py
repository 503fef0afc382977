"""All cures by name, in the order in which they are applied together.

First what is wrong with the program, then the modules, then their weights, then the rate, which is
measured on what all others have left.
"""

from __future__ import annotations

from signalprop.cures.cure import Cure

CURES: tuple[Cure, ...] = ()

CATALOGUE: dict[str, Cure] = {cure.name: cure for cure in CURES}
