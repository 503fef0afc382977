"""What only a process of its own can show: start-up, signals, pipes, completion."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import signalprop

SOURCE = str(Path(signalprop.__file__).parents[1])
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH")])),
    "COLUMNS": "80",
    "OMP_NUM_THREADS": "1",
}
COMMAND = [sys.executable, "-m", "signalprop"]


def process(*words, **environment):
    return subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | environment,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["diagnose", "--help"],
        ["trace", "--help"],
        ["rules", "--help"],
        ["explain", "--help"],
        ["study", "--help"],
        ["spectrum", "--help"],
        ["horizon", "--help"],
        ["cure", "--help"],
        ["theory", "--help"],
        ["theory", "defaults", "--help"],
        ["theory", "phase", "--help"],
        ["diagnose", "no/such/file.py:build"],
    ],
    ids=" ".join,
)
def test_answers_without_torch(words):
    program = (
        "import sys; from signalprop.cli import main; status = main(); "
        "slow = {'torch', 'numpy', 'pandas', 'plotly', 'networkx'} & set(sys.modules); "
        "sys.exit(f'loaded {slow}' if slow else 0)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    "command",
    (
        "|diagnose|cure|trace|spectrum|horizon|rules|explain|study|theory"
        "|theory defaults|theory phase"
    ).split("|"),
)
def test_help(command):
    ran = process(*command.split(), "--help")
    assert ran.returncode == 0
    assert ran.stdout.startswith(" ".join(filter(None, ["Usage: signalprop", command])))
    assert f"signalprop {command or 'diagnose'}" in ran.stdout.partition("Examples:")[2]
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_json_alone_on_stdout(train):
    ran = process("trace", "train.py:build", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["model"] == "Sequential"
    assert ran.stderr == ""


def test_refused(folder):
    ran = process("trace", "train.py:build")
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: there is no file train.py")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupted(write, folder):
    write("import pathlib, time\npathlib.Path('started').touch()\ntime.sleep(60)\n")
    running = subprocess.Popen(
        [*COMMAND, "trace", "train.py:build"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # a background job of a shell ignores the signal, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with running:
        for _ in range(600):
            if (folder / "started").exists():
                break
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (130, "", "interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
@pytest.mark.parametrize("words", [["--help"], ["trace", "train.py:build", "--json"]])
def test_reader_went_away(train, words):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        ran = subprocess.run(
            [*COMMAND, *words],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            timeout=120,
            check=False,
        )
    assert ran.stderr == ""
    assert ran.returncode == 141


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(folder, shell):
    # HOME too, because a line is added to the shell's start-up file
    words = ["--install-completion", "--shell", shell, "--output", "script"]
    ran = process(*words, HOME=str(folder), ZDOTDIR=str(folder))
    assert ran.returncode == 0, ran.stderr
    script = (folder / "script").read_text()
    for word in ("diagnose", "explain", "--fail-on", "--html"):
        assert word.lstrip("-") in script
