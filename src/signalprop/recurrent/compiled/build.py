"""Builds the compiled time loops on first use, and says why where it cannot.

The sources read no header of torch or Python and need no ninja: a compiler makes them in about
three seconds, so the first use waits for it, and from then on a run gives the same digits whenever
it is started. The library is kept in the folder of torch's extensions (`TORCH_EXTENSIONS_DIR`, else
`~/.cache/torch_extensions`) under a name that says what it was made from: sources, compiler,
processor, and the OpenMP runtime that torch has loaded, whose threads it shares. Every process
builds in a folder of its own and moves the result there in one step: there is no lock to wait for.

`SIGNALPROP_COMPILED=0` keeps to torch's own operations.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("cells.cpp", "lstm.h", "gru.h", "rnn.h", "share.h", "products.h", "vectors.h")
COMPILERS = ("c++", "g++", "clang++")
EXACT = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")  # NaN and order are kept
FLAGS = ("-std=c++17", "-O3", "-fPIC", *EXACT)
#: seconds after which a compiler is given up
PATIENCE = 120
#: arguments of the functions: threads or a flag, sizes and strides, tensors
ARGUMENTS = {
    "lstm_forward": "i llll ppppppp",
    "lstm_backward": "i llll p ll pppppppppp",
    "gru_forward": "i lll pppppp",
    "gru_backward": "i lll p ll ppppppppp",
    "rnn_forward": "i lll i ppp",
    "rnn_backward": "i lll i p ll pppppp",
}
_TYPES = {"i": ctypes.c_int, "l": ctypes.c_long, "p": ctypes.c_void_p}
_LOCK = threading.Lock()
_TRIED: set[tuple[str, ...]] = set()


@dataclass(frozen=True)
class Built:
    """What became of building.

    Attributes:
        library: the functions; None where there are none.
        told: in a few words, where it lies or why there is none.
    """

    library: ctypes.CDLL | None
    told: str


def library() -> ctypes.CDLL | None:
    """The compiled functions, built now where that has not been done.

    Returns:
        None where they are switched off or cannot be built; `status` says why.
    """
    if _off():
        return None
    with _LOCK:
        return _built(*_surroundings()).library


def ready() -> bool:
    """Whether the compiled functions are there without anything being built."""
    if _off():
        return False
    where = _surroundings()
    command = _compiler(*where[:2])
    if (
        isinstance(command, str)
        or not (_folder(*where[2:]) / _name(tuple(command), _runtime())).exists()
    ):
        return False
    return library() is not None


def status() -> str:
    """Whether the compiled part is there, or why not, in a few words; nothing is built."""
    if _off():
        return "off (SIGNALPROP_COMPILED=0)"
    where = _surroundings()
    command = _compiler(*where[:2])
    if isinstance(command, str):
        return command
    if (
        where not in _TRIED
        and not (_folder(*where[2:]) / _name(tuple(command), _runtime())).exists()
    ):
        return f"built on first use, by {command[0]}"
    with _LOCK:
        return _built(*where).told


def _surroundings() -> tuple[str, ...]:
    """What decides by what it is built and where it is kept."""
    names = ("CXX", "PATH", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME")
    return tuple(os.environ.get(name, "") for name in names)


def _off() -> bool:
    return os.environ.get("SIGNALPROP_COMPILED", "1").strip().lower() in ("0", "off", "false", "no")


@cache
def _built(*where: str) -> Built:
    """As `library` says; kept for as long as nothing of what it depends on has changed."""
    _TRIED.add(where)
    command = _compiler(*where[:2])
    if isinstance(command, str):
        return Built(None, command)
    try:
        return _build(command, _folder(*where[2:]), _runtime())
    except (OSError, subprocess.SubprocessError) as error:
        return Built(None, f"not built: {_short(str(error))}")


@cache
def _compiler(cxx: str, path: str) -> list[str] | str:
    """The command, its program as a whole path; or why there is none."""
    if sys.platform == "win32":
        return "not built: there is no loop for Windows' compiler"
    for given in [cxx] if cxx else COMPILERS:
        try:
            first, *rest = shlex.split(given) or [""]
        except ValueError:  # a quote that does not end
            continue
        found = shutil.which(first, path=path)
        if found:
            return [found, *rest]
    return f"not built: no compiler ({cxx or ', '.join(COMPILERS)}) on the PATH"


def _build(command: list[str], folder: Path, runtime: str | None) -> Built:
    """Load the library that is kept, or build it with as much as the compiler can do."""
    kept = folder / _name(tuple(command), runtime)
    if kept.exists():
        try:
            return Built(_load(kept), f"built ({kept})")
        except (OSError, AttributeError):
            kept.unlink(missing_ok=True)  # half a file, or for another system
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = tempfile.TemporaryDirectory(dir=folder, prefix="building-")
    except OSError:
        own, kept = tempfile.TemporaryDirectory(prefix="signalprop-"), None
    native, told = ["-march=native"], ""
    ways: list[tuple[list[str], str | None]] = [(native, None), ([], None)]
    if runtime:
        ways.insert(0, ([*native, "-fopenmp"], runtime))
    with own as place:
        made = Path(place) / "cells.so"
        for flags, beside in ways:
            told = _compile(command, flags, beside, made)
            if told:
                continue
            try:
                loaded = _load(made)
            except (OSError, AttributeError) as error:
                told = str(error)
                made.unlink()
                continue
            if kept:
                made.replace(kept)
            return Built(loaded, f"built ({kept or 'for this process'})")
    return Built(None, f"not built: {_short(told)}")


def _compile(command: list[str], flags: list[str], beside: str | None, made: Path) -> str:
    """What the compiler said, "" where it has done its work."""
    thing = made.with_suffix(".o")
    steps = (
        [command[0], *FLAGS, *flags, *command[1:], "-c", str(HERE / "cells.cpp"), "-o", str(thing)],
        # the runtime is named, so that the compiler's own is not loaded beside torch's
        [*command, "-shared", str(thing), *([beside] if beside else []), "-o", str(made)],
    )
    for step in steps:
        done = subprocess.run(
            step, capture_output=True, stdin=subprocess.DEVNULL, cwd=made.parent, timeout=PATIENCE,
            check=False,
        )  # fmt: skip
        if done.returncode:
            return done.stderr.decode(errors="replace") or f"{command[0]} failed"
    return ""


def _load(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    for name, letters in ARGUMENTS.items():
        for bits in (32, 64):
            function = getattr(found, f"{name}_{bits}")
            function.argtypes = [_TYPES[letter] for letter in letters.replace(" ", "")]
            function.restype = ctypes.c_int
    return found


@cache
def _folder(root: str, caches: str) -> Path:
    if root:
        return Path(root) / "signalprop"
    return (
        Path(caches) if caches else Path("~/.cache").expanduser()
    ) / "torch_extensions/signalprop"


@cache
def _name(command: tuple[str, ...], runtime: str | None) -> str:
    program = os.stat(os.path.realpath(command[0]))
    told = [*command, program.st_size, program.st_mtime_ns, *FLAGS, runtime, _processor()]
    made = hashlib.sha256(repr(told).encode())
    for name in SOURCES:
        made.update((HERE / name).read_bytes())
    return f"cells-{made.hexdigest()[:20]}.so"


@cache
def _processor() -> str:
    """What the processor can do: -march=native is right for no other one."""
    told = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return " ".join(told)
    kinds = ("flags", "Features", "model name", "CPU part")
    return " ".join([*told, *sorted({line for line in lines if line.startswith(kinds)})])


@cache
def _runtime() -> str | None:
    """The OpenMP runtime that torch has loaded, where the system tells."""
    import torch  # noqa: F401 - it is torch's that is looked for

    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    files = sorted({line.split(maxsplit=5)[-1] for line in lines if "/" in line})
    found = [f for f in files if re.match(r"lib(gomp|omp|iomp5)\b", os.path.basename(f))]
    return next((f for f in found if "torch" in f), found[0] if found else None)


def _short(told: str) -> str:
    """The line of a compiler's words that says what is wrong."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "?")
