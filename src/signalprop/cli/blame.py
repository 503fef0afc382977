"""Says whose fault an exception is, and where, in one sentence instead of a traceback."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from pathlib import Path

import signalprop

_OWN = Path(signalprop.__file__).parent
_STDLIB = Path(sysconfig.get_paths()["stdlib"])
#: packages whose name on the package index is not the name they are imported by
_INSTALL = {"sklearn": "scikit-learn", "cv2": "opencv-python", "PIL": "pillow", "yaml": "pyyaml"}


def shown(path: str | Path) -> str:
    """A path as the user would write it: relative where that is shorter."""
    text = str(path)
    try:
        relative = os.path.relpath(text)
    except ValueError:  # another drive
        return text
    return relative if len(relative) < len(text) else text


def user_frame(error: BaseException, root: Path | None = None) -> traceback.FrameSummary | None:
    """The innermost line of the user's own code that an exception went through.

    Args:
        error: the exception.
        root: the folder of the user's code; None takes everything that is neither ours, nor the
            standard library's, nor an installed package's.

    Returns:
        That line; None where there is none.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if _is_users(f.filename, root)]
    if not own and root is not None:
        own = [f for f in frames if _is_users(f.filename, None)]
    return own[-1] if own else None


def ours(error: BaseException) -> bool:
    """Whether the line that raised is signalprop's own."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(_OWN)


def _is_users(filename: str, root: Path | None) -> bool:
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    if path.is_relative_to(_OWN):
        return False
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    if root is not None:
        return path.is_relative_to(root) and not (installed - set(root.parts))
    return not installed and not path.is_relative_to(_STDLIB)


def at(error: BaseException, root: Path | None = None) -> str:
    """`(train.py:12, in build: raise ValueError)`, or `""` where no line is the user's."""
    frame = user_frame(error, root)
    if frame is None:
        return ""
    inside = f", in {frame.name}" if not frame.name.startswith("<") else ""
    line = f": {frame.line}" if frame.line else ""
    return f" ({shown(frame.filename)}:{frame.lineno}{inside}{line})"


def named(error: BaseException) -> str:
    """Class and first line of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def chain(error: BaseException | None) -> list[BaseException]:
    """An exception and those it was raised from."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one it was raised from, says that memory ran out."""
    said = ("out of memory", "can't allocate memory", "not enough memory", "calculation overflowed")
    return any(
        isinstance(e, MemoryError)
        or type(e).__name__ == "OutOfMemoryError"
        or (isinstance(e, RuntimeError) and any(words in str(e).lower() for words in said))
        for e in chain(error)
    )


def memory_sentence(device: str = "") -> str:
    """What to do when memory ran out."""
    where = f" on {device}" if device else ""
    return (
        f"out of memory{where}; give a smaller batch (the verdict needs no more than 32 samples), "
        "or a machine with more memory"
    )


def import_sentence(error: Exception, what: str, root: Path | None) -> str:
    """Why the user's file could not be imported, and what to do."""
    match error:
        case SyntaxError():
            return _syntax(error)
        case ModuleNotFoundError(name=str(name)):
            return (
                f"{what} imports {name!r}, which is not installed here{at(error, root)}; install "
                f"it where signalprop runs: {installing(error)}"
            )
        case ImportError():
            return f"{what} could not be imported: {error}{at(error, root)}"
        case _:
            return (
                f"{what} raised {named(error)} while it was imported{at(error, root)}; it has to "
                "run without an error first"
            )


def installing(error: ModuleNotFoundError) -> str:
    """The command that installs a missing package."""
    package = (error.name or "").partition(".")[0]
    return f"{shown(sys.executable)} -m pip install {_INSTALL.get(package, package)}"


def _syntax(error: SyntaxError) -> str:
    where = shown(error.filename) if error.filename else "the file"
    sentence = f"{where} has a syntax error in line {error.lineno}: {error.msg}"
    if not error.text:
        return sentence
    text = error.text.rstrip("\n")
    stripped = text.lstrip()
    number = f"    {error.lineno} | "
    column = (error.offset or 1) - 1 - (len(text) - len(stripped))
    pointer = " " * (len(number) + max(column, 0)) + "^"
    return f"{sentence}\n{number}{stripped}\n{pointer}"
