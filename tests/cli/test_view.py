"""`view`: what it says, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.report.live.serving import Reader, until
from tests.report.run import samples


class Viewing:
    """`signalprop view` in a process of its own.

    Args:
        words: of the command line.
    """

    def __init__(self, *words):
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "signalprop", "view", *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        self.url = self.process.stdout.readline().split()[0]

    def connection(self):
        import http.client

        return http.client.HTTPConnection(*_place(self.url), timeout=20)

    def end(self, kind=signal.SIGINT):
        """Status, what was written to stderr, and seconds until it ended."""
        start = time.perf_counter()
        self.process.send_signal(kind)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err, time.perf_counter() - start


def _place(url):
    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    return host, int(port)


@pytest.fixture
def viewing():
    started = []

    def view(*words):
        started.append(Viewing(*words, "--no-open"))
        return started[-1]

    yield view
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_although_pages_follow(viewing, tmp_path, kind):
    path = samples.write(tmp_path / "run.sp", steps=range(0, 500, 50))
    view = viewing(path, "--port", "0")
    until(lambda: _answers(view))
    readers = [Reader(view) for _ in range(8)]
    for reader in readers:
        assert reader.news()["runs"][0]["state"] == "open"
    status, err, seconds = view.end(kind)
    assert status == 0
    assert err == ""
    assert seconds < 5
    for reader in readers:
        reader.close()


def test_a_run_that_does_not_exist_yet_is_waited_for(viewing, tmp_path):
    view = viewing(tmp_path / "later.sp", "--port", "0")
    until(lambda: _answers(view))
    reader = Reader(view)
    assert reader.news()["runs"][0]["state"] == "waiting"
    samples.write(tmp_path / "later.sp", steps=range(0, 500, 50))
    assert reader.until(lambda n: n["runs"][0]["state"] == "open")
    reader.close()
    status, err, _ = view.end()
    assert status == 0
    assert err.endswith("later.sp does not exist yet; the page waits for it\n")
    assert err.count("\n") == 1


def test_a_host_that_others_reach_is_warned_of(viewing, tmp_path):
    view = viewing(tmp_path / "run.sp", "--host", "0.0.0.0", "--port", "0")
    until(lambda: _answers(view))
    status, err, _ = view.end()
    assert status == 0
    assert "warning: everybody who can reach 0.0.0.0 on the network can see these runs" in err


def _answers(view):
    connection = view.connection()
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture
def refused(refused):
    return lambda *words: refused(*words, command="view")


def test_a_port_that_is_taken(refused, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(str(tmp_path / "run.sp"), "--port", str(port))
    assert said == (
        f"port {port} of 127.0.0.1 is taken by another program; choose another with --port, or 0 "
        "for any that is free"
    )


def test_without_a_port_the_next_free_one_is_taken():
    from signalprop.report.live import serve

    first = serve.listen("127.0.0.1", None)
    second = serve.listen("127.0.0.1", None)
    with first, second:
        assert first.getsockname()[1] != second.getsockname()[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "--port 70000 must be between 0 and 65535"),
        (["--port", "-1"], "--port -1 must be between 0 and 65535"),
        (["--host", "no such host"], "--host no such host is not known"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 is no address of this machine"),
    ],
)
def test_addresses(refused, tmp_path, words, said):
    assert refused(str(tmp_path / "run.sp"), *words).startswith(said)


def test_a_folder(refused, tmp_path):
    assert "is a folder; give a run file in it" in refused(str(tmp_path))


def test_too_many(refused, tmp_path):
    runs = [str(tmp_path / f"{k}.sp") for k in range(17)]
    assert "17 runs are more than a page can hold" in refused(*runs)


def test_help(run):
    ran = run("view", "--help")
    assert ran.status == 0
    assert "while" in ran.out or "follows" in ran.out
    for word in ("--host", "--port", "--no-open"):
        assert word in ran.out


def test_torch_stays_out(tmp_path):
    """Somebody who looks at a run waits for no framework."""
    code = (
        "import sys; from signalprop.report.live import serve; "
        "from signalprop.report.run import result; "
        "print([m for m in ('torch', 'pandas', 'scipy') if m in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": str(Path.cwd())}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert ran.stdout.strip() == "[]", ran
