"""What the tasks refuse, said in one sentence."""

from __future__ import annotations

import torch

from signalprop.errors import SignalpropError


def whole(name: str, value: int, least: int) -> int:
    """`value`, if it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SignalpropError(f"{name} has to be a whole number of at least {least}, not {value!r}")
    return value


def on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    """The generator, if it is on the CPU."""
    if generator is not None and generator.device.type != "cpu":
        raise SignalpropError(
            f"the generator is on {generator.device}; sequences are drawn on the CPU: "
            "give torch.Generator()"
        )
    return generator
