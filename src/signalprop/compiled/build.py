"""Builds C++ sources on first use, and says why where it cannot.

The sources read no header of torch or Python and need no ninja: a compiler makes them in seconds
or less, so the first use waits for it, and from then on a run gives the same digits whenever it is
started. A library is kept in the folder of torch's extensions (`TORCH_EXTENSIONS_DIR`, else
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++")
EXACT = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")  # NaN and order are kept
FLAGS = ("-std=c++17", "-O3", "-fPIC", *EXACT)
#: seconds after which a compiler is given up
PATIENCE = 120
_TYPES = {"i": ctypes.c_int, "l": ctypes.c_long, "d": ctypes.c_double, "p": ctypes.c_void_p}
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Built:
    """What became of building.

    Attributes:
        library: the functions; None where there are none.
        told: in a few words, where it lies or why there is none.
    """

    library: ctypes.CDLL | None
    told: str


class Library:
    """Functions that are written in C++.

    Args:
        folder: of the sources.
        sources: their names; the first is compiled, the others are what it includes.
        functions: by name, the letters of the arguments and, behind an arrow, of the result: `i` an
            int, `l` a long, `d` a double, `p` an address; blanks part what belongs together.
    """

    def __init__(self, folder: Path, sources: Sequence[str], functions: Mapping[str, str]) -> None:
        self.folder, self.sources, self.functions = folder, tuple(sources), dict(functions)
        self._made: dict[tuple[str, ...], Built] = {}
        self._digest: dict[tuple[str, ...], str] = {}

    def get(self) -> ctypes.CDLL | None:
        """The compiled functions, built now where that has not been done.

        Returns:
            None where they are switched off or cannot be built; `status` says why.
        """
        return None if _off() else self._get(_surroundings()).library

    def ready(self) -> bool:
        """Whether the compiled functions are there without anything being built."""
        return not _off() and self._kept(_surroundings()) and self.get() is not None

    def status(self) -> str:
        """Whether the compiled part is there, or why not, in a few words; nothing is built."""
        if _off():
            return "off (SIGNALPROP_COMPILED=0)"
        where = _surroundings()
        command = _compiler(*where[:2])
        if isinstance(command, str):
            return command
        if where not in self._made and not self._kept(where):
            return f"built on first use, by {command[0]}"
        return self._get(where).told

    def path(self) -> Path | None:
        """Where the library is kept, or will be; None where there is no compiler."""
        return self._path(_surroundings())

    def _path(self, where: tuple[str, ...]) -> Path | None:
        command = _compiler(*where[:2])
        if isinstance(command, str):
            return None
        return _folder(*where[2:]) / self._name(tuple(command), _runtime())

    def _kept(self, where: tuple[str, ...]) -> bool:
        path = self._path(where)
        return path is not None and path.exists()

    def _get(self, where: tuple[str, ...]) -> Built:
        """Kept for as long as nothing of what it depends on has changed."""
        with _LOCK:
            if where not in self._made:
                self._made[where] = self._try(where)
            return self._made[where]

    def _try(self, where: tuple[str, ...]) -> Built:
        command = _compiler(*where[:2])
        if isinstance(command, str):
            return Built(None, command)
        try:
            return self._build(command, _folder(*where[2:]), _runtime())
        except (OSError, subprocess.SubprocessError) as error:
            return Built(None, f"not built: {_short(str(error))}")

    def _build(self, command: list[str], folder: Path, runtime: str | None) -> Built:
        """Load the library that is kept, or build it with as much as the compiler can do."""
        kept = folder / self._name(tuple(command), runtime)
        if kept.exists():
            try:
                return Built(self._load(kept), f"built ({kept})")
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
            made = (Path(place) / self.sources[0]).with_suffix(".so")
            for flags, beside in ways:
                told = _compile(command, self.folder / self.sources[0], flags, beside, made)
                if told:
                    continue
                try:
                    loaded = self._load(made)
                except (OSError, AttributeError) as error:
                    told = str(error)
                    made.unlink()
                    continue
                if kept:
                    made.replace(kept)
                return Built(loaded, f"built ({kept or 'for this process'})")
        return Built(None, f"not built: {_short(told)}")

    def _load(self, path: Path) -> ctypes.CDLL:
        found = ctypes.CDLL(str(path))
        for name, letters in self.functions.items():
            given, _, returned = letters.replace(" ", "").partition("->")
            function = getattr(found, name)
            function.argtypes = [_TYPES[letter] for letter in given]
            function.restype = _TYPES[returned] if returned else None
        return found

    def _name(self, command: tuple[str, ...], runtime: str | None) -> str:
        key = (*command, runtime or "")
        if key not in self._digest:
            program = os.stat(os.path.realpath(command[0]))
            told = [*command, program.st_size, program.st_mtime_ns, *FLAGS, runtime, _processor()]
            made = hashlib.sha256(repr(told).encode())
            for name in self.sources:
                made.update((self.folder / name).read_bytes())
            self._digest[key] = made.hexdigest()[:20]
        return f"{Path(self.sources[0]).stem}-{self._digest[key]}.so"


def _surroundings() -> tuple[str, ...]:
    """What decides by what it is built and where it is kept."""
    names = ("CXX", "PATH", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME")
    return tuple(os.environ.get(name, "") for name in names)


def _off() -> bool:
    return os.environ.get("SIGNALPROP_COMPILED", "1").strip().lower() in ("0", "off", "false", "no")


@cache
def _compiler(cxx: str, path: str) -> list[str] | str:
    """The command, its program as a whole path; or why there is none."""
    if sys.platform == "win32":
        return "not built: there is nothing for Windows' compiler"
    for given in [cxx] if cxx else COMPILERS:
        try:
            first, *rest = shlex.split(given) or [""]
        except ValueError:  # a quote that does not end
            continue
        found = shutil.which(first, path=path)
        if found:
            return [found, *rest]
    return f"not built: no compiler ({cxx or ', '.join(COMPILERS)}) on the PATH"


def _compile(
    command: list[str], source: Path, flags: list[str], beside: str | None, made: Path
) -> str:
    """What the compiler said, "" where it has done its work."""
    thing = made.with_suffix(".o")
    steps = (
        [command[0], *FLAGS, *flags, *command[1:], "-c", str(source), "-o", str(thing)],
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


@cache
def _folder(root: str, caches: str) -> Path:
    if root:
        return Path(root) / "signalprop"
    return (
        Path(caches) if caches else Path("~/.cache").expanduser()
    ) / "torch_extensions/signalprop"


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
