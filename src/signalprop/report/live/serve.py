"""From files and an address to a server that runs until Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from signalprop.errors import SignalpropError
from signalprop.report.live.app import Live

#: tried first, and then the ones after it, where no port is asked for
PORT, TRIED = 8000, 20


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens.

    Args:
        host: name or address.
        port: 0 for any that is free; None for 8000 or the first free one after it.

    Returns:
        The socket.

    Raises:
        SignalpropError: the port is taken, or the address is not one of this machine.
    """
    for number in (*range(PORT, PORT + TRIED), 0) if port is None else (port,):
        try:
            return _bound(host, number)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise SignalpropError(_why(host, number, error)) from error
    raise SignalpropError(
        f"port {port} of {host} is taken by another program; choose another with --port, or 0 for "
        "any that is free"
    )


def address(listening: socket.socket) -> str:
    """What a browser is to open."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if listening.family == socket.AF_INET else "::1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve(
    paths: Sequence[Path],
    listening: socket.socket,
    *,
    host: str = "127.0.0.1",
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve until Ctrl-C, or until the process is told to end.

    Args:
        paths: of the run files.
        listening: of `listen`.
        host: as it was asked for.
        ready: called in a thread of its own when the server answers.
    """
    live = Live(paths, host)
    server = Server(live)
    if ready is not None:
        threading.Thread(target=_after, args=(server, ready), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


class Server(uvicorn.Server):
    """A server that ends at once: pages that follow are told, and nobody is waited for long.

    Args:
        live: what it serves.
    """

    def __init__(self, live: Live) -> None:
        self.live = live
        super().__init__(
            uvicorn.Config(
                live.app,
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                date_header=False,
                lifespan="on",
                timeout_graceful_shutdown=1,
                timeout_keep_alive=30,
                h11_max_incomplete_event_size=16384,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ctrl-C, or a polite request to end."""
        self.live.hub.close()
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While it runs; uvicorn's own would raise the signal again when all is over."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = [signal.SIGINT, signal.SIGTERM]
        before = [signal.signal(kind, self.handle_exit) for kind in kinds]
        try:
            yield
        finally:
            for kind, old in zip(kinds, before, strict=True):
                signal.signal(kind, old)


def _bound(host: str, port: int) -> socket.socket:
    family, _, _, _, where = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        # a port that was left a moment ago may be taken again; one that is in use may not
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
        made.listen(512)
    except BaseException:
        made.close()
        raise
    return made


def _why(host: str, port: int, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"--host {host} is not known; give an address of this machine, e.g. 127.0.0.1"
    if error.errno == errno.EACCES:
        return f"port {port} may not be used; choose one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this machine; give e.g. 127.0.0.1"
    return f"cannot listen at {host}, port {port}: {error.strerror}"


def _after(server: Server, ready: Callable[[], None]) -> None:
    wait = threading.Event()
    for _ in range(200):
        if server.started:
            ready()
            return
        wait.wait(0.05)
