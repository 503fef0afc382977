"""A server of runs in a thread, as `signalprop view` starts it, and readers that follow it."""

import contextlib
import http.client
import json
import threading
import time
from urllib.parse import urlparse

from signalprop.report.live import serve


class Served:
    """A running server.

    Args:
        paths: of the run files.
        port: 0 for any.
    """

    def __init__(self, paths, port=0):
        self.socket = serve.listen("127.0.0.1", port)
        self.url = serve.address(self.socket)
        self.live = serve.Live(paths)
        self.server = serve.Server(self.live)
        self.thread = threading.Thread(
            target=lambda: self.server.run(sockets=[self.socket]), daemon=True
        )

    def __enter__(self):
        self.thread.start()
        until(lambda: self.server.started)
        return self

    def __exit__(self, *raised):
        self.stop()
        self.socket.close()

    def stop(self):
        """Seconds until it was over."""
        start = time.perf_counter()
        self.server.handle_exit(2, None)
        self.thread.join(10)
        assert not self.thread.is_alive()
        return time.perf_counter() - start

    def get(self, path):
        """Status, headers and body of an answer."""
        with contextlib.closing(self.connection()) as connection:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()

    def json(self, path):
        return json.loads(self.get(path)[2])

    def connection(self):
        at = urlparse(self.url)
        return http.client.HTTPConnection(at.hostname, at.port, timeout=20)


class Reader:
    """Follows the news of a server."""

    def __init__(self, served):
        self.connection = served.connection()
        self.connection.request("GET", "/events")
        self.reply = self.connection.getresponse()
        assert self.reply.status == 200

    def news(self):
        """The next event."""
        while True:
            line = self.reply.fp.readline()
            if not line:
                return None
            if line.startswith(b"data: "):
                return json.loads(line[6:])

    def until(self, good):
        """The first event that is as wanted."""
        while True:
            found = self.news()
            if found is None or good(found):
                return found

    def close(self):
        self.reply.close()
        self.connection.close()


def until(good, seconds=20.0):
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
