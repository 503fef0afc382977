"""A folder with the user's files, and a command line run inside this process."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from signalprop.cli import main


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(folder):
    """Write a Python file of the user's."""

    def write(text: str, name: str = "train.py") -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
        return path

    return write


@pytest.fixture
def run(capfd):
    """Run a command line; what it prints is caught below Python, where child processes print."""

    def run(*words: str) -> Ran:
        capfd.readouterr()
        status = main(list(words))
        caught = capfd.readouterr()
        return Ran(status, caught.out, caught.err)

    return run


@pytest.fixture
def refused(run):
    """Run a command line that has to be refused with one message and status 2."""

    def refused(*words: str, command: str = "trace") -> str:
        ran = run(command, *words)
        assert ran.status == 2, ran
        assert ran.out == ""
        assert ran.err.startswith("error: ")
        assert "Traceback" not in ran.err
        assert "bug in signalprop" not in ran.err
        assert ran.err.count("error: ") == 1
        return ran.err.removeprefix("error: ").rstrip("\n")

    return refused


NET = """
    import torch
    from torch import nn
    import torch.nn.functional as F

    def net():
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def build():
        model = net()
        batch = torch.randn(16, 6), torch.randint(3, (16,))
        return model, batch, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1)
"""


@pytest.fixture
def train(write):
    """A file as a user would have it: `net` makes a model, `build` everything."""
    return write(NET)
