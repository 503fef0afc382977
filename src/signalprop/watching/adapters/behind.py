"""Work that may wait for a network, done behind the training loop's back."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

_LOG = logging.getLogger("signalprop")


class Behind:
    """One thread that does calls in their order.

    Args:
        who: for the log.
        most: calls that may wait; when the other side is slower, the oldest are dropped.

    Attributes:
        dropped: calls that were.
    """

    def __init__(self, who: str, most: int = 1000) -> None:
        self.dropped = 0
        self._who, self._most = who, most
        self._calls: deque[Callable[[], object]] = deque()
        self._error: Exception | None = None
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def do(self, call: Callable[[], object]) -> None:
        """Have a call done; returns at once.

        Args:
            call: what is to be done.

        Raises:
            Exception: what an earlier call has raised.
        """
        with self._wake:
            if self._error is not None:
                raise self._error
            if len(self._calls) >= self._most:
                self._calls.popleft()
                self.dropped += 1
            self._calls.append(call)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name=f"signalprop {self._who}", daemon=True
                )
                self._thread.start()
            self._wake.notify_all()

    def close(self, timeout: float) -> None:
        """Wait until all is done.

        Args:
            timeout: seconds to wait.
        """
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                _LOG.warning(
                    "%s: no answer for %g s; the last numbers may be missing", self._who, timeout
                )
        if self._error is not None:
            _LOG.warning("%s: %s", self._who, self._error)
        if self.dropped:
            _LOG.warning("%s: too slow; %d batches were dropped", self._who, self.dropped)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._calls or self._closing)
                if not self._calls:
                    return
                call = self._calls.popleft()
            try:
                call()
            except Exception as error:
                with self._wake:
                    self._error = error
                    self._calls.clear()
                return
