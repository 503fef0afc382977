"""Loads what is named on the command line: `train.py:build` or `package.module:name`."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from signalprop.cli import blame, screen
from signalprop.errors import TargetError

_FORMS = "write FILE.py:NAME or PACKAGE.MODULE:NAME, for example train.py:build"


@dataclass(frozen=True)
class Target:
    """What is named on the command line.

    Attributes:
        text: as it was written.
        file: the Python file; None for a module.
        module: the module's dotted name; `""` for a file.
        name: what is wanted from it, with dots for what is inside a class.
    """

    text: str
    file: Path | None
    module: str
    name: str

    @property
    def place(self) -> str:
        """The file or module, for messages."""
        return blame.shown(self.file) if self.file is not None else self.module


@dataclass(frozen=True)
class Loaded:
    """What was found under the name.

    Attributes:
        target: what was asked for.
        value: the object.
        root: the folder of the user's code.
    """

    target: Target
    value: Any
    root: Path


def parse(text: str) -> Target:
    """Take a target apart, and see that the file exists.

    Args:
        text: as written on the command line.

    Returns:
        File or module, and name.

    Raises:
        TargetError: no colon, no name, or no such file; the message says what there is instead.
    """
    place, colon, name = text.rpartition(":")
    # the colon of a Windows drive is no separator
    if not colon or len(place) <= 1 or "/" in name or "\\" in name or name.endswith(".py"):
        raise TargetError(_no_name(text if not colon or len(place) <= 1 or name else place))
    if not name:
        raise TargetError(_no_name(place))
    if not all(part.isidentifier() for part in name.split(".")):
        raise TargetError(f"{name!r} is not a name in Python; {_FORMS}")
    path = Path(place).expanduser()
    if place.endswith(".py") or path.exists() or "/" in place or "\\" in place:
        return Target(text, _file(path), "", name)
    if not all(part.isidentifier() for part in place.split(".")):
        raise TargetError(f"{place!r} is neither a Python file nor a module; {_FORMS}")
    return Target(text, None, place, name)


def _no_name(place: str) -> str:
    path = Path(place).expanduser()
    if place.endswith(".py") and path.is_file():
        names = _top_level(path)
        found = f"; in {blame.shown(path)} there is {screen.one_of(names)}" if names else ""
        example = names[0] if names else "build"
        return f"the target does not say what to take from the file; write {place}:{example}{found}"
    if place.endswith(".py") and not path.exists():
        return _missing(path)
    return f"the target {place!r} has no colon; {_FORMS}"


def _top_level(path: Path) -> list[str]:
    """Names of a file's functions and classes, read without running it."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    definitions = (ast.FunctionDef, ast.ClassDef)
    names = [n.name for n in body if isinstance(n, definitions) and not n.name.startswith("_")]
    # `build` is what the help calls it
    return sorted(names, key=lambda name: "build" not in name)[:8]


def _file(path: Path) -> Path:
    if path.is_dir():
        raise TargetError(
            f"{path} is a folder; name a Python file in it, e.g. {path}/train.py:build"
        )
    if not path.exists():
        raise TargetError(_missing(path))
    if path.suffix != ".py":
        raise TargetError(f"{path} is not a Python file (*.py); {_FORMS}")
    return path.resolve()


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no file {path}: the folder {folder} does not exist"
    files = sorted(p.name for p in folder.glob("*.py"))
    close = screen.near(path.name, files)
    where = "this folder" if str(folder) == "." else blame.shown(folder.resolve())
    if close:
        return f"there is no file {path} in {where}; did you mean {screen.one_of(close)}?"
    listed = f"; it holds {', '.join(files[:8])}" if files else ", and no other Python file either"
    return f"there is no file {path} in {where}{listed}"


@contextmanager
def loaded(target: Target) -> Iterator[Loaded]:
    """Import the user's code, and keep it importable for as long as it is used.

    The folder of the file (or the current one, for a module) is on `sys.path` meanwhile, and
    `sys.argv` holds nothing but the file, so that a program that reads its arguments sees none.

    Args:
        target: what to load.

    Yields:
        What was found.

    Raises:
        TargetError: the code cannot be imported, or the name is not in it.
    """
    root = target.file.parent if target.file is not None else Path.cwd()
    private = f"_signalprop_target_{target.file.stem}" if target.file is not None else ""
    path, argv = list(sys.path), sys.argv
    sys.path.insert(0, str(root))
    sys.argv = [str(target.file or target.module)]
    try:
        module = _from_file(target, private) if target.file is not None else _module(target, root)
        if target.file is None and module.__file__:
            root = Path(module.__file__).parent
        yield Loaded(target, _find(module, target), root)
    finally:
        sys.path[:] = path
        sys.argv = argv
        sys.modules.pop(private, None)


def _from_file(target: Target, name: str) -> ModuleType:
    """Run a file as a module of a private name."""
    file = target.file
    assert file is not None
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        source = file.read_bytes()
    except OSError as error:
        raise TargetError(f"{target.place} cannot be read: {error.strerror}") from error
    # dataclasses and pickle look their module up by name
    sys.modules[name] = module
    try:
        # not by the import system, which would leave a __pycache__ beside the user's file
        exec(compile(source, str(file), "exec", dont_inherit=True), module.__dict__)
    except SystemExit as error:
        raise TargetError(_exits(target, error, file.parent)) from error
    except Exception as error:
        raise TargetError(blame.import_sentence(error, target.place, file.parent)) from error
    return module


def _exits(target: Target, error: SystemExit, root: Path) -> str:
    return (
        f"{target.place} ended the program while it was imported{blame.at(error, root)}; put what "
        'is to run only as a program under `if __name__ == "__main__":`'
    )


def _module(target: Target, root: Path) -> ModuleType:
    try:
        return importlib.import_module(target.module)
    except ModuleNotFoundError as error:
        if error.name and f"{target.module}.".startswith(f"{error.name}."):
            file = f"path/to/{target.module.rpartition('.')[2]}.py"
            raise TargetError(
                f"there is no module {error.name!r} here; run from the folder that holds it, or "
                f"name the file: {file}:{target.name}"
            ) from error
        raise TargetError(blame.import_sentence(error, target.place, root)) from error
    except SystemExit as error:
        raise TargetError(_exits(target, error, root)) from error
    except Exception as error:
        raise TargetError(blame.import_sentence(error, target.place, root)) from error


def _find(module: ModuleType, target: Target) -> Any:
    value: Any = module
    for part in target.name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            names = candidates(module)
            close = screen.near(part, names)
            if close:
                hint = f"did you mean {screen.one_of(close)}?"
                names = [name for name in names if name not in close]
                hint += f" (there is also {', '.join(names[:8])})" if names else ""
            elif names:
                hint = f"it has {', '.join(names[:8])}"
            else:
                hint = "it defines no module and no function; add `def build(): return model`"
            raise TargetError(f"{target.place} has no {target.name!r}; {hint}") from error
    return value


def candidates(module: ModuleType) -> list[str]:
    """Public names in a module that could be a target: networks, and callables of its own."""
    public = {k: v for k, v in vars(module).items() if not k.startswith("_")}
    torch = sys.modules.get("torch")
    return [
        name
        for name, value in public.items()
        if (torch is not None and isinstance(value, torch.nn.Module))
        or (callable(value) and getattr(value, "__module__", None) == module.__name__)
    ]
