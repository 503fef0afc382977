"""Tables with their splits, from the folder that `SIGNALPROP_DATA` names; nothing is downloaded.

| data    | files                                | public address                         |
|---------|--------------------------------------|----------------------------------------|
| UCI-121 | `uci121/*.tar.*`, one folder per set | linked from github.com/bioinf-jku/SNNs |
| HTRU2   | `htru2/HTRU_2.csv.gz`                | archive.ics.uci.edu, HTRU2             |
| Tox21   | `molecules/tox21_moleculenet.csv.gz` | moleculenet.org; see `molecules.py`    |

UCI-121 are the tables of Fernandez-Delgado et al. 2014 with their splits. A set's own `<set>.txt`
names its one or two files of rows; `conxuntos.dat` holds a training and a validation half for
tuning, `conxuntos_kfold.dat` four folds. Where there are two files, the second is for the test.
"""

from __future__ import annotations

import csv
import gzip
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from signalprop.errors import MissingPackageError, SignalpropError
from signalprop.studies.data import FOLDER

#: a fixed test file belongs to its training file only if no feature's mean is off by more than
#: this many standard deviations; in two of the sets it was left as raw numbers
OFF_SCALE = 1.0


@dataclass(frozen=True)
class Tabular:
    """A table of numbers with classes, and its splits.

    Attributes:
        name: of the set.
        x: features (n, features), float32.
        y: classes 0, 1, ..., (n,).
        tuning: training and validation rows for choosing settings.
        folds: training and test rows; one pair where the test rows are fixed.
    """

    name: str
    x: Tensor
    y: Tensor
    tuning: tuple[Tensor, Tensor]
    folds: tuple[tuple[Tensor, Tensor], ...]

    @property
    def classes(self) -> int:
        """How many."""
        return int(self.y.max()) + 1


def folder(*parts: str) -> Path | None:
    """A path below the data folder, if it exists."""
    root = os.environ.get(FOLDER, "")
    path = Path(root, *parts)
    return path if root and path.exists() else None


def archive() -> Path | None:
    """The archive of UCI-121, if it is at hand."""
    path = folder("uci121")
    found = sorted(path.glob("*.tar*")) if path else []
    return found[0] if found else None


def uci(low: int, high: int, limit: int | None = None) -> tuple[list[Tabular], dict[str, str]]:
    """The sets of UCI-121 with `low` to `high` rows, the smallest first.

    Args:
        low: fewest rows, test file included.
        high: most.
        limit: so many sets at most.

    Returns:
        The sets, and why those of that size that are missing were left out.

    Raises:
        SignalpropError: the archive is not there or damaged.
    """
    path = archive()
    if path is None:
        raise SignalpropError(f"there is no uci121/*.tar.* in the folder that {FOLDER} names")
    try:
        heads = {name: _head(text) for name, part, text in _members(path) if part == f"{name}.txt"}
        sized = sorted((sum(n for _, n in files), name) for name, files in heads.items())
        wanted = [name for rows, name in sized if low <= rows <= high]
        files: dict[str, dict[str, bytes]] = {name: {} for name in wanted}
        for name, part, text in _members(path):
            named = [f for f, _ in heads.get(name, ())]
            if name in files and (part.startswith("conxuntos") or part in named):
                files[name][part] = text
        found: list[Tabular] = []
        left: dict[str, str] = {}
        for name in wanted:
            if limit is not None and len(found) == limit:
                break
            made = _assemble(name, [f for f, _ in heads[name]], files[name])
            if isinstance(made, str):
                left[name] = made
            else:
                found.append(made)
    except (OSError, EOFError, ValueError, IndexError, tarfile.TarError) as error:
        raise SignalpropError(
            f"cannot read {path}: {error}; replace the file, or unset {FOLDER} to use "
            "scikit-learn's tables"
        ) from error
    return found, left


def _members(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Set, file name and content of what lies in a set's own folder."""
    with tarfile.open(path, "r|*") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            file = tar.extractfile(member) if member.isfile() and len(parts) >= 2 else None
            # the folders below a set's are other versions of it
            if file is not None and len(parts) <= 3 and not parts[-1].startswith("."):
                yield parts[-2], parts[-1], file.read()


def _head(text: bytes) -> list[tuple[str, int]]:
    """Names and numbers of rows of a set's files."""
    facts = dict(re.findall(r"(\w+)\s*=\s*(\S+)", text.decode("latin-1")))
    return [
        (facts[f"fich{i}"], int(facts[f"n_patrons{i}"]))
        for i in (1, 2)
        if f"fich{i}" in facts and f"n_patrons{i}" in facts
    ]


def _assemble(name: str, wanted: list[str], files: dict[str, bytes]) -> Tabular | str:
    """A set from its files, or why it cannot be used."""
    if not wanted or any(part not in files for part in (*wanted, "conxuntos.dat")):
        return "its table is not in the archive"
    tables = [np.loadtxt(files[part].decode().splitlines()[1:], ndmin=2) for part in wanted]
    rows = [t[:, 1:-1] for t in tables]
    labels = np.concatenate([t[:, -1] for t in tables]).round().astype(int)
    if len(rows) == 2 and np.abs(rows[1].mean(0) - rows[0].mean(0)).max() > OFF_SCALE:
        return "its test file is not scaled as its training file is"
    y = np.unique(labels, return_inverse=True)[1]
    halves = _indices(files["conxuntos.dat"], len(rows[0]))
    if len(rows) == 2:
        first = torch.arange(len(rows[0]))
        folds = ((first, torch.arange(len(rows[0]), len(y))),)
    else:
        if "conxuntos_kfold.dat" not in files:
            return "its folds are not in the archive"
        lines = _indices(files["conxuntos_kfold.dat"], len(rows[0]))
        folds = tuple(zip(lines[::2], lines[1::2], strict=True))
    x = torch.from_numpy(np.concatenate(rows)).float()
    return Tabular(name, x, torch.from_numpy(y), (halves[0], halves[1]), folds)


def _indices(text: bytes, rows: int) -> list[Tensor]:
    """One tensor of row numbers, counted from 0, per line."""
    lines = [line.split() for line in text.decode().splitlines() if line.strip()]
    found = [torch.tensor([int(word) for word in line]) for line in lines]
    if len(found) < 2 or any(int(one.min()) < 0 or int(one.max()) >= rows for one in found):
        raise ValueError(f"a split names rows outside of its table of {rows}")
    return found


def bundled(seed: int = 0) -> list[Tabular]:
    """The four tables that come with scikit-learn, with random splits of the same kind.

    Returns:
        iris, wine, breast cancer and digits.

    Raises:
        MissingPackageError: scikit-learn is not there.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingPackageError(
            "this study reads tables and runs baselines of scikit-learn, which is not installed; "
            'install it with: pip install "signalprop[studies]"'
        ) from None
    found: list[Tabular] = []
    for name in ("iris", "wine", "breast_cancer", "digits"):
        features, classes = getattr(datasets, f"load_{name}")(return_X_y=True)
        x = torch.from_numpy(np.asarray(features)).float()
        y = torch.from_numpy(np.asarray(classes)).long()
        quarters = deal(y, 4, seed)
        half = torch.cat(quarters[:2]), torch.cat(quarters[2:])
        found.append(Tabular(name.replace("_", " "), x, y, half, around(deal(y, 4, seed + 1))))
    return found


def htru2() -> tuple[Tensor, Tensor]:
    """Eight statistics of every pulsar candidate, and whether it is a pulsar (Lyon et al. 2016).

    Returns:
        Features (17898, 8), float32, and 0 or 1 for each.

    Raises:
        SignalpropError: the file is not there or damaged.
    """
    path = folder("htru2", "HTRU_2.csv.gz")
    if path is None:
        raise SignalpropError(f"there is no htru2/HTRU_2.csv.gz in the folder {FOLDER} names")
    try:
        with gzip.open(path, "rt", newline="") as file:
            rows = list(csv.reader(file))[1:]
        x = torch.tensor([[float(cell) for cell in row[:-1]] for row in rows])
        words = [row[-1] for row in rows]
        if not set(words) <= {"pulsar", "not_pulsar"} or x.shape[1] != 8:
            raise SignalpropError("not eight numbers and `pulsar` or `not_pulsar` in every line")
    except (OSError, EOFError, ValueError, IndexError, SignalpropError) as error:
        raise SignalpropError(f"cannot read {path}: {error}; replace or remove the file") from error
    return x, torch.tensor([int(word == "pulsar") for word in words])


def deal(y: Tensor, hands: int, seed: int) -> list[Tensor]:
    """Shuffle the rows and deal them out, class by class, so that every part has its share."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[y[order].sort(stable=True).indices]
    return [order[i::hands] for i in range(hands)]


def around(parts: list[Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
    """Folds: every part is the test once, all others train."""
    return tuple(
        (torch.cat([p for j, p in enumerate(parts) if j != i]), part)
        for i, part in enumerate(parts)
    )
