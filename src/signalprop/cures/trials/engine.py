"""Where legs run: in this process, in local ones (loky), or by Ray."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from typing import Any, Literal, Protocol

from signalprop.errors import SignalpropError

EngineName = Literal["auto", "serial", "loky", "ray"]

#: a call of a task: its arguments are small, what is large lies in files
Task = Callable[..., Any]


class Engine(Protocol):
    """Runs tasks, and hands results back as they come."""

    def run(self, task: Task, calls: list[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Yield (index of the call, result), in any order."""
        ...


class Serial:
    """One after the other, in this process."""

    def run(self, task: Task, calls: list[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Yield results in order."""
        for i, call in enumerate(calls):
            yield i, task(*call)


class Loky:
    """Local processes.

    Args:
        workers: how many.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, task: Task, calls: list[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Yield results as they come; an interrupt stops the processes."""
        from loky import get_reusable_executor

        executor = get_reusable_executor(
            max_workers=self.workers, timeout=60, initializer=_quiet, initargs=(list(sys.path),)
        )
        futures = {executor.submit(task, *call): i for i, call in enumerate(calls)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            executor.shutdown(kill_workers=True, wait=False)
            raise


class Ray:
    """Ray's workers: the cluster that is connected, else one on this machine.

    Args:
        workers: how many tasks at a time, where it is started here.
    """

    def __init__(self, workers: int) -> None:
        try:
            self.ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise SignalpropError(
                "engine='ray' needs Ray; pip install 'signalprop[ray]'"
            ) from error
        self.started = not self.ray.is_initialized()
        if self.started:
            self.ray.init(
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
            )

    def run(self, task: Task, calls: list[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Yield results as they come."""
        remote = self.ray.remote(num_cpus=1, max_retries=0)(task)
        waiting = {remote.remote(*call): i for i, call in enumerate(calls)}
        try:
            while waiting:
                done, _ = self.ray.wait(list(waiting))
                for reference in done:
                    yield waiting.pop(reference), self.ray.get(reference)
        except BaseException:
            for reference in waiting:
                self.ray.cancel(reference, force=True)
            raise

    def close(self) -> None:
        """Stop what was started here."""
        if self.started:
            self.ray.shutdown()


@contextlib.contextmanager
def engine(name: EngineName, workers: int) -> Iterator[Engine]:
    """An engine for a while.

    Args:
        name: `serial`, `loky` or `ray`.
        workers: how many legs at a time.

    Yields:
        The engine.

    Raises:
        SignalpropError: there is no such engine.
    """
    if name == "serial":
        yield Serial()
    elif name == "loky":
        yield Loky(workers)
    elif name == "ray":
        made = Ray(workers)
        try:
            yield made
        finally:
            made.close()
    else:
        raise SignalpropError(f"engine={name!r}; choose auto, serial, loky or ray")


def cores() -> int:
    """Cores that this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quiet(path: list[str]) -> None:
    """In a worker: the parent decides about an interrupt, and its modules can be imported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = path
    os.environ.setdefault("OMP_NUM_THREADS", "1")
