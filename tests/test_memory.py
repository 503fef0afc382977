"""Memory kept in the process: faults are gone, and come back."""

import subprocess
import sys

import pytest

from signalprop import memory
from signalprop.memory import keep_memory, memory_setting, page_faults

PROGRAM = """
import ctypes, sys
from signalprop.memory import keep_memory, page_faults

def faults():
    for _ in range(2):
        before = page_faults()
        made = ctypes.create_string_buffer(64 << 20)
        del made
    return page_faults() - before

found = [faults()]
with keep_memory() as kept:
    assert kept and kept.active
    found.append(faults())
found.append(faults())
assert keep_memory(True)
found.append(faults())
assert not keep_memory(False)
found.append(faults())
print(*found)
"""


@pytest.mark.skipif(memory._unable() != "", reason=memory._unable())
def test_faults():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    usual, kept, after, again, gone = map(int, done.stdout.split())
    pages = (64 << 20) // 4096
    assert min(usual, after, gone) > pages / 600  # huge pages are 512 small ones
    assert max(kept, again) < pages / 600


def test_elsewhere_nothing_is_done_and_it_says_why(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory, "_apply", lambda keep: pytest.fail("called"))
    with keep_memory() as kept:
        assert not kept
    assert repr(kept) == "<memory: not kept: glibc on Linux only>"
    assert memory_setting() == "the system's (glibc on Linux only)"


def test_another_allocator(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.os, "confstr", lambda name: "glibc 2.36", raising=False)
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    monkeypatch.setattr(memory, "_apply", lambda keep: pytest.fail("called"))
    assert keep_memory().told == "not kept: the allocator is jemalloc"


@pytest.mark.skipif(sys.platform == "win32", reason="no such counter there")
def test_page_faults_only_grow():
    before = page_faults()
    kept = bytearray(32 << 20)
    assert page_faults() >= before > 0
    assert kept
