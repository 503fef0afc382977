"""What a data set is, and what makes one: splits, scales, one-hot targets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from signalprop.studies.data import FOLDER


@dataclass(frozen=True)
class Data:
    """Samples and targets, float32.

    Attributes:
        what: the set, in words.
        x: training samples, (n, ...), channels first.
        y: targets, one-hot (n, classes) or (n, 1), or (n, ..., 1).
        x_test: test samples; the training samples where the program has no split.
        y_test: their targets.
        stand_in: what is different from the original; None where it is the original.
    """

    what: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    stand_in: str | None = None


def folder() -> Path | None:
    """The folder with real data, if the environment names one."""
    name = os.environ.get(FOLDER, "")
    return Path(name) if name and Path(name).is_dir() else None


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def whole(what: str, x: Any, y: Any, stand_in: str | None = None) -> Data:
    """Data of a script that tests on what it trained on."""
    a, b = torch.as_tensor(np.asarray(x)), torch.as_tensor(np.asarray(y))
    return Data(what, a, b, a, b, stand_in)


def split(what: str, x: Any, y: Any, train: int, stand_in: str | None = None) -> Data:
    a, b = torch.as_tensor(np.asarray(x)), torch.as_tensor(np.asarray(y))
    return Data(what, a[:train], b[:train], a[train:], b[train:], stand_in)


def columns_scaled(x: Any) -> Any:
    """Every column to mean 0 and variance 1; a constant one to 0."""
    std = x.std(0)
    return (x - x.mean(0)) / np.where(std > 0, std, 1)


def one_hot(y: Any, classes: int) -> Tensor:
    return F.one_hot(torch.as_tensor(np.asarray(y)).long().flatten(), classes)
