"""States of the random generators, so that a step can be run again."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signalprop.errors import SignalpropError

_UNREADABLE = "the random states of this run cannot be read"
_INTEGERS = 625  # of Python's Mersenne twister: 624 words and a position
_BYTES = 4 * _INTEGERS  # of numpy's


class _Numpy:
    """The state of numpy's global generator, which takes 40 microseconds to ask for.

    So it is asked for only when the generator's own memory is not what it was. A spare normal
    number lies elsewhere: while there is one, the state is asked for in any case.
    """

    def __init__(self) -> None:
        self._memory = b""
        self._generator: Any = None
        self._address = 0
        self._known: tuple[Any, ...] = ()

    def state(self) -> tuple[Any, ...]:
        """The present state."""
        generator = np.random.get_bit_generator()
        if generator is not self._generator:
            ours = isinstance(generator, np.random.MT19937)
            self._generator, self._memory = generator, b""
            self._address = generator.ctypes.state_address if ours else 0
        memory = ctypes.string_at(self._address, _BYTES) if self._address else b""
        if not memory or memory != self._memory:
            state: Any = np.random.get_state()
            self._known = tuple(state)
            # of a spare number nothing would tell that it has been used
            self._memory = b"" if self._known[3] else memory
        return self._known


_NUMPY = _Numpy()


@dataclass(frozen=True, eq=False)
class RandomStates:
    """What the generators of torch (every device in use), numpy and Python would give next.

    Attributes:
        torch: state per device: `cpu`, `cuda:0`, ...
        numpy: of numpy's global generator.
        python: of Python's `random`.
    """

    torch: Mapping[str, Tensor]
    numpy: tuple[Any, ...]
    python: tuple[Any, ...]

    @staticmethod
    def now() -> RandomStates:
        """The present states; some ten microseconds, no wait for a device."""
        found = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            for index in range(torch.cuda.device_count()):
                found[f"cuda:{index}"] = torch.cuda.get_rng_state(index)
        return RandomStates(found, _NUMPY.state(), random.getstate())

    def restore(self) -> None:
        """Set the generators to these states; those of devices that are not here are left."""
        for device, state in self.torch.items():
            if device == "cpu":
                torch.set_rng_state(state)
            elif torch.cuda.is_available() and int(device[5:]) < torch.cuda.device_count():
                torch.cuda.set_rng_state(state, int(device[5:]))
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def to_bytes(self) -> dict[str, bytes]:
        """As a run file keeps them."""
        _, keys, position, gauss, cached = self.numpy
        version, words, following = self.python
        return {
            **{device: bytes(state.numpy().tobytes()) for device, state in self.torch.items()},
            "numpy": struct.pack("<iid", position, gauss, cached)
            + np.asarray(keys, "<u4").tobytes(),
            "python": struct.pack("<i?d", version, following is not None, following or 0.0)
            + np.asarray(words, "<u4").tobytes(),
        }

    @staticmethod
    def from_bytes(states: Mapping[str, bytes]) -> RandomStates:
        """Out of a run file, which is not trusted.

        Args:
            states: what `to_bytes` made.

        Returns:
            The states.

        Raises:
            SignalpropError: they are no such states.
        """
        try:
            head = struct.calcsize("<iid")
            position, gauss, cached = struct.unpack("<iid", states["numpy"][:head])
            keys = np.frombuffer(states["numpy"][head:], "<u4").astype(np.uint32)
            start = struct.calcsize("<i?d")
            version, has, following = struct.unpack("<i?d", states["python"][:start])
            words = np.frombuffer(states["python"][start:], "<u4")
            sizes = (keys.size, words.size, version)
            if sizes != (_INTEGERS - 1, _INTEGERS, 3):
                raise SignalpropError(_UNREADABLE)
            return RandomStates(
                {
                    device: torch.frombuffer(bytearray(state), dtype=torch.uint8)
                    for device, state in states.items()
                    if device == "cpu" or (device.startswith("cuda:") and device[5:].isdigit())
                },
                ("MT19937", keys, position, gauss, cached),
                (version, tuple(int(w) for w in words), following if has else None),
            )
        except (KeyError, ValueError, struct.error) as error:
            raise SignalpropError(_UNREADABLE) from error
