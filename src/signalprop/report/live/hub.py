"""News for everybody who follows: one look at the runs, however many pages are open."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from signalprop.report.live.answers import Answers

#: seconds between looks at the files, and between signs of life
EVERY, ALIVE = 0.4, 15.0
#: pages that may follow at a time
MOST = 256


class Hub:
    """Keeps the latest news, and wakes whoever waits for it; a slow reader misses only what is old.

    Args:
        answers: about the runs.

    Attributes:
        readers: pages that follow now.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.readers = 0
        self.closing = False
        self._version = 0
        self._news = b""
        self._said = ""
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look; in a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._look())

    async def stop(self) -> None:
        """End everything that waits."""
        self.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def close(self) -> None:
        """Tell all readers that this is the end."""
        self.closing = True
        self._wake()

    async def follow(self) -> AsyncIterator[bytes]:
        """News as server-sent events, the present state first.

        Yields:
            Events, and comments as signs of life.
        """
        self.readers += 1
        seen = -1
        try:
            # pages ask again one second after a connection broke
            yield b"retry: 1000\n\n"
            await self._once()
            while not self.closing:
                if seen != self._version:
                    seen = self._version
                    yield self._news
                    continue
                changed = self._changed
                try:
                    await asyncio.wait_for(changed.wait(), ALIVE)
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self.readers -= 1

    async def _look(self) -> None:
        while True:
            if self.readers:
                await self._once()
            await asyncio.sleep(EVERY)

    async def _once(self) -> None:
        states = await run_in_threadpool(self.answers.states)
        text = json.dumps(self.answers.news(states))
        if text != self._said:
            self._said = text
            self._version += 1
            self._news = f"id: {self._version}\ndata: {text}\n\n".encode()
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
