"""Real data for the studies: handwritten digits, from MNIST where it is at hand, and a table.

MNIST (LeCun, Cortes & Burges 1998) is read from `$SIGNALPROP_DATA/mnist/*.gz`; without it the
1797 digits that come with scikit-learn (Alpaydin & Kaynak 1998) are used. Nothing is downloaded.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from signalprop.errors import MissingPackageError, SignalpropError

#: the folder with data files, laid out as `mnist/train-images-idx3-ubyte.gz` and so on
FOLDER = "SIGNALPROP_DATA"


@dataclass(frozen=True)
class Digits:
    """Images of handwritten digits, ten classes.

    Attributes:
        name: which set, with the number of images.
        x: training images, (n, pixels), float64; mean 0 and variance 1 over all pixels of the
            training images together.
        y: their classes, (n,).
        x_test: test images, scaled by the same two numbers.
        y_test: their classes.
    """

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def pixels(self) -> int:
        """Number of inputs."""
        return self.x.shape[1]


def digits(limit: int = 60_000) -> Digits:
    """MNIST where `SIGNALPROP_DATA` names a folder that has it, else scikit-learn's digits.

    Args:
        limit: at most so many training images, and a third of that for the test.

    Returns:
        The images, with the name of the set.

    Raises:
        MissingPackageError: neither MNIST nor scikit-learn is there.
        SignalpropError: a file of MNIST is damaged.
    """
    folder = os.environ.get(FOLDER, "")
    if folder and (Path(folder) / "mnist" / "train-images-idx3-ubyte.gz").exists():
        name, parts = "MNIST", _mnist(Path(folder) / "mnist", limit)
    else:
        name, parts = "scikit-learn's digits", _bundled(limit)
    x, y, x_test, y_test = parts
    mean, std = x.mean(), x.std()
    name = f"{name} ({len(x)} training, {len(x_test)} test images of {x.shape[1]} pixels)"
    return Digits(name, (x - mean) / std, y, (x_test - mean) / std, y_test)


def breast_cancer() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 569 tumours of 30 features that come with scikit-learn, benign or malignant.

    Wolberg, Mangasarian, Street & Street 1993. Every feature has mean 0 and variance 1 over the
    training samples.

    Returns:
        Training samples and classes, test samples and classes.

    Raises:
        MissingPackageError: scikit-learn is not there.
    """
    x, y, x_test, y_test = _scikit_learn("breast_cancer")
    mean, std = x.mean(0), x.std(0)
    return (x - mean) / std, y, (x_test - mean) / std, y_test


def _bundled(limit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y, x_test, y_test = _scikit_learn("digits")
    return x[:limit], y[:limit], x_test[: limit // 3], y_test[: limit // 3]


def _scikit_learn(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingPackageError(
            f"this study reads scikit-learn's {name.replace('_', ' ')}, and scikit-learn is not "
            'installed; install it with: pip install "signalprop[studies]"'
        ) from None
    features, classes = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = torch.from_numpy(np.asarray(features)).double()
    y = torch.from_numpy(np.asarray(classes)).long()
    # every fourth sample is for the test: writers follow one another in the file of digits
    test = torch.arange(len(x)) % 4 == 3
    return x[~test], y[~test], x[test], y[test]


def _mnist(folder: Path, limit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def images(part: str, count: int) -> Tensor:
        return _idx(folder / f"{part}-images-idx3-ubyte.gz", count).flatten(1).double()

    def labels(part: str, count: int) -> Tensor:
        return _idx(folder / f"{part}-labels-idx1-ubyte.gz", count).long()

    few = max(1, limit // 3)
    return images("train", limit), labels("train", limit), images("t10k", few), labels("t10k", few)


def _idx(path: Path, count: int) -> Tensor:
    """The first `count` items of an IDX file: zero, zero, type, rank, then sizes and values."""
    try:
        with gzip.open(path) as file:
            head = file.read(4)
            if head[:3] != b"\x00\x00\x08":
                raise ValueError("not an IDX file of bytes")
            shape = np.frombuffer(file.read(4 * head[3]), dtype=">i4").astype(int)
            shape[0] = min(shape[0], count)
            values = np.frombuffer(file.read(int(shape.prod())), dtype=np.uint8)
            return torch.from_numpy(values.reshape(tuple(shape)).copy())
    except (OSError, EOFError, ValueError) as error:
        raise SignalpropError(
            f"cannot read {path}: {error}; replace the file, or unset {FOLDER} to use "
            "scikit-learn's digits"
        ) from error
