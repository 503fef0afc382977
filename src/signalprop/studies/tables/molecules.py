"""Tox21 as numbers: RDKit's descriptors and Morgan fingerprints of every molecule, twelve assays.

The file is MoleculeNet's (Wu et al. 2018): 7,831 molecules with their activity in twelve assays,
many of them unknown. The Tox21 Challenge had 12,060 training and 647 test molecules; that split is
not in it, and the descriptors of DeepTox, which Klambauer et al. 2017 used, are not public code.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signalprop.errors import MissingPackageError, SignalpropError
from signalprop.studies.data import FOLDER
from signalprop.studies.tables.data import folder
from signalprop.studies.tables.nested import Split

#: bits of the fingerprint, and the radius in bonds of the neighbourhoods it counts
BITS, RADIUS = 512, 2
#: RDKit's modules that are used, and where they lie
RDKIT = {
    "Chem": "",
    "rdBase": "",
    "Descriptors": "Chem.",
    "rdFingerprintGenerator": "Chem.",
    "MurckoScaffold": "Chem.Scaffolds.",
}


@dataclass(frozen=True)
class Molecules:
    """Molecules with their activities.

    Attributes:
        x: arcsinh of descriptors and fingerprint counts, (n, features), float32; the descriptors
            span twenty decades.
        y: 1 active, 0 inactive, NaN unknown, (n, assays).
        assays: their names.
        scaffolds: Bemis-Murcko scaffold of every molecule.
        unread: how many molecules RDKit cannot read.
    """

    x: Tensor
    y: Tensor
    assays: tuple[str, ...]
    scaffolds: tuple[str, ...]
    unread: int


def chemistry() -> Any:
    """RDKit's modules.

    Returns:
        What holds them under their own names.

    Raises:
        MissingPackageError: RDKit is not there.
    """
    try:
        found = {name: import_module(f"rdkit.{path}{name}") for name, path in RDKIT.items()}
    except ImportError:
        raise MissingPackageError(
            "descriptors of molecules need RDKit, which is not installed; install it with: "
            'pip install "signalprop[studies]"'
        ) from None
    return SimpleNamespace(**found)


def tox21(limit: int | None = None) -> Molecules:
    """Read Tox21 and compute its inputs, some 6 ms per molecule.

    Args:
        limit: so many molecules, spread over the file.

    Returns:
        The molecules that RDKit can read.

    Raises:
        MissingPackageError: RDKit is not there.
        SignalpropError: the file is not there or damaged.
    """
    path = folder("molecules", "tox21_moleculenet.csv.gz")
    if path is None:
        raise SignalpropError(
            f"there is no molecules/tox21_moleculenet.csv.gz in the folder {FOLDER} names"
        )
    rdkit = chemistry()
    try:
        with gzip.open(path, "rt", newline="") as file:
            rows = list(csv.DictReader(file))
        assays = tuple(k for k in rows[0] if k not in ("mol_id", "smiles"))
        if limit is not None:
            rows = rows[:: max(1, len(rows) // limit)][:limit]
        labels = [[float(row[k]) if row[k] else float("nan") for k in assays] for row in rows]
        smiles = [row["smiles"] for row in rows]
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise SignalpropError(f"cannot read {path}: {error}; replace or remove the file") from error
    generator = rdkit.rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    features: list[np.ndarray] = []
    scaffolds: list[str] = []
    kept: list[int] = []
    with rdkit.rdBase.BlockLogs():
        for i, text in enumerate(smiles):
            molecule = rdkit.Chem.MolFromSmiles(text)
            if molecule is not None:
                numbers = rdkit.Descriptors.CalcMolDescriptors(molecule, missingVal=0.0)
                described = np.asarray(list(numbers.values()), dtype=np.float64)
                counts = generator.GetCountFingerprintAsNumPy(molecule).astype(np.float64)
                features.append(np.arcsinh(np.nan_to_num(np.concatenate([described, counts]))))
                scaffolds.append(rdkit.MurckoScaffold.MurckoScaffoldSmiles(mol=molecule))
                kept.append(i)
    x = torch.from_numpy(np.stack(features)).float()
    y = torch.tensor(labels)[kept]
    return Molecules(x, y, assays, tuple(scaffolds), len(smiles) - len(kept))


def random_split(n: int, seed: int) -> Split:
    """Eight tenths to learn, one to choose, one to test."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    train, validation, test = order.tensor_split((8 * n // 10, 9 * n // 10))
    return train, validation, test


def scaffold_split(scaffolds: tuple[str, ...]) -> Split:
    """The same shares, no scaffold in two parts: the largest groups learn, the rarest test."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, scaffold in enumerate(scaffolds):
        groups[scaffold].append(i)
    n = len(scaffolds)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for group in sorted(groups.values(), key=lambda g: (-len(g), g[0])):
        if len(parts[0]) + len(group) <= 8 * n // 10:
            parts[0].extend(group)
        elif len(parts[1]) + len(group) <= n // 10:
            parts[1].extend(group)
        else:
            parts[2].extend(group)
    train, validation, test = (torch.tensor(part, dtype=torch.long) for part in parts)
    return train, validation, test
