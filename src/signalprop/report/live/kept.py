"""Answers that are kept for a while, so that fifty readers of one picture cost one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable


class Kept:
    """The latest answers, up to a size; each is made once, whoever asks meanwhile waits for it.

    Args:
        most: bytes of all answers.
    """

    def __init__(self, most: int = 64 << 20) -> None:
        self.most = most
        self.bytes = 0
        self._one = threading.Lock()
        self._found: OrderedDict[Hashable, bytes] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """The answer to a question.

        Args:
            key: the question, and the state of what it is about.
            make: makes the answer; what it raises is not kept.

        Returns:
            The answer.
        """
        found = self._look(key)
        if found is not None:
            return found
        with self._one:
            turn = self._making.setdefault(key, threading.Lock())
        try:
            with turn:
                found = self._look(key)
                if found is None:
                    found = make()
                    self._keep(key, found)
                return found
        finally:
            with self._one:
                self._making.pop(key, None)

    def _look(self, key: Hashable) -> bytes | None:
        with self._one:
            found = self._found.get(key)
            if found is not None:
                self._found.move_to_end(key)
            return found

    def _keep(self, key: Hashable, answer: bytes) -> None:
        with self._one:
            if len(answer) > self.most or key in self._found:
                return
            self._found[key] = answer
            self.bytes += len(answer)
            while self.bytes > self.most:
                _, old = self._found.popitem(last=False)
                self.bytes -= len(old)
