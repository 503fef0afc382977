"""States of the random generators, so that a step can be run again."""

from __future__ import annotations

import ctypes
import platform
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
#: bytes that tell whether its state has changed: every number that is drawn changes the position,
#: and all words are made anew before it comes round
_Seen = ctypes.c_char * (4 * 17)


class _Numpy:
    """The state of numpy's global generator, which takes 40 microseconds to ask for.

    So it is asked for only when the generator's own memory (words, then the position) is not what
    it was. A spare normal number lies elsewhere: while there is one, it is asked for in any case.
    """

    def __init__(self) -> None:
        self._memory = b""
        self._generator: Any = None
        self._view: Any = None
        self._known: tuple[Any, ...] = ()

    def state(self) -> tuple[Any, ...]:
        """The present state."""
        generator = np.random.get_bit_generator()
        if generator is not self._generator:
            ours = isinstance(generator, np.random.MT19937)
            self._generator, self._memory = generator, b""
            end = generator.ctypes.state_address + 4 * _INTEGERS if ours else 0
            self._view = _Seen.from_address(end - ctypes.sizeof(_Seen)) if ours else None
        memory = b"" if self._view is None else self._view.raw
        if not memory or memory != self._memory:
            state: Any = np.random.get_state()
            self._known = tuple(state)
            # of a spare number nothing would tell that it has been used
            self._memory = b"" if self._known[3] else memory
        return self._known


class _Python:
    """The state of Python's global generator, which takes 30 microseconds to ask for.

    So it is asked for only when the generator's own memory is not what it was. Where that lies is
    found by its contents: where it cannot be found, the state is asked for in any case.
    """

    def __init__(self) -> None:
        self._known: tuple[Any, ...] = ()
        self._generator: Any = getattr(random.getstate, "__self__", None)
        self._view: Any = None
        self._memory: tuple[bytes, Any] | None = None
        if platform.python_implementation() == "CPython" and self._generator is not None:
            words = struct.pack(f"={_INTEGERS - 1}I", *random.getstate()[1][:-1])
            whole = ctypes.string_at(id(self._generator), self._generator.__sizeof__())
            found = whole.find(words)
            if found >= 4:  # the position stands before the words
                self._view = _Seen.from_address(id(self._generator) + found - 4)

    def state(self) -> tuple[Any, ...]:
        """The present state."""
        if self._view is None:
            return random.getstate()
        memory = self._view.raw, getattr(self._generator, "gauss_next", None)
        if memory != self._memory:
            self._known, self._memory = random.getstate(), memory
        return self._known


_NUMPY, _PYTHON = _Numpy(), _Python()


@dataclass(eq=False, slots=True)
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
        return RandomStates(found, _NUMPY.state(), _PYTHON.state())

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
