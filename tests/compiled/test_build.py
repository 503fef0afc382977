"""C++ is built once, quietly, and done without where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from signalprop.compiled import build
from signalprop.compiled.build import Library

SOURCE = 'extern "C" double half(long x) { return x / 2.0; }\n'


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A library of one function, not built yet."""
    monkeypatch.delenv("SIGNALPROP_COMPILED", raising=False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "kept"))
    (tmp_path / "half.cpp").write_text(SOURCE)
    return Library(tmp_path, ("half.cpp",), {"half": "l -> d"})


@pytest.fixture
def compiler():
    command = build._compiler(*build._surroundings()[:2])
    if isinstance(command, str):
        pytest.skip(command)


def test_built_on_first_use(library, compiler):
    assert not library.ready()
    assert library.status().startswith("built on first use, by ")
    assert library.get().half(3) == 1.5
    assert library.ready()
    assert library.status() == f"built ({library.path()})"
    assert library.path().exists()


def test_built_anew_when_the_source_has_changed(library, compiler, tmp_path):
    assert library.get().half(3) == 1.5
    (tmp_path / "half.cpp").write_text(SOURCE.replace("2.0", "4.0"))
    other = Library(tmp_path, ("half.cpp",), {"half": "l -> d"})
    assert other.get().half(3) == 0.75
    assert other.path() != library.path()


def test_switched_off(library, monkeypatch):
    monkeypatch.setenv("SIGNALPROP_COMPILED", "0")
    assert library.get() is None
    assert not library.ready()
    assert library.status() == "off (SIGNALPROP_COMPILED=0)"


def test_no_compiler(library, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert library.get() is None
    assert library.path() is None
    assert library.status() == "not built: no compiler (c++, g++, clang++) on the PATH"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_a_compiler_that_fails_or_makes_rubbish(library, monkeypatch, tmp_path, capfd):
    for name, text in {
        "fails": "echo lots of words; echo 'half.cpp:1: error: it is broken' >&2; exit 1",
        "lies": 'while [ $# -gt 1 ]; do shift; done; echo rubbish > "$1"',
    }.items():
        compiler = tmp_path / name
        compiler.write_text(f"#!/bin/sh\n{text}\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        assert library.get() is None
        assert library.status().startswith("not built: ")
    monkeypatch.setenv("CXX", str(tmp_path / "fails"))
    assert "it is broken" in library.status()
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "kept").rglob("half*"))


def test_no_folder_to_keep_it_in(library, compiler, tmp_path):
    """A file stands where the folder should be: built for this process alone."""
    (tmp_path / "kept").write_text("")
    assert library.get().half(3) == 1.5
    assert library.status() == "built (for this process)"


PROGRAM = """
import sys
from pathlib import Path
from signalprop.compiled.build import Library
library = Library(Path(sys.argv[1]), ("half.cpp",), {"half": "l -> d"})
assert library.get() is not None, library.status()
assert library.ready()
assert library.status().startswith("built (")
"""


def test_two_processes_build_at_once_and_say_nothing(library, compiler, tmp_path):
    folder = tmp_path / "both"
    given = os.environ | {"TORCH_EXTENSIONS_DIR": str(folder)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    pair = [subprocess.Popen(command, env=given, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    for process in pair:
        assert process.communicate(timeout=120) == ("", "")
        assert process.returncode == 0
    assert [p.suffix for p in (folder / "signalprop").iterdir()] == [".so"]


def test_a_damaged_library_is_built_again(library, compiler):
    kept = library.path()
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"half of it")
    assert library.ready()
    assert kept.read_bytes() != b"half of it"
