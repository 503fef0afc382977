"""Images and tables that are read from files, and what stands in for them.

Real sets are looked for in the folder that the environment variable SIGNALPROP_DATA names, then in
scikit-learn. Nothing is downloaded.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.broken_programs.sample import Data, folder, one_hot, random, whole
from torch import Tensor

from signalprop.studies.data import digits


def mnist(samples: int, flat: bool = False) -> Data:
    """Handwritten digits between 0 and 1; scikit-learn's, enlarged, where there is no MNIST."""
    found = digits(samples)
    real = found.pixels == 784
    parts: list[Tensor] = []
    # the loader scales to variance 1; undone here, as the programs divide by 255
    low = found.x.min()
    high = found.x.max() - low
    for x, y in ((found.x, found.y), (found.x_test, found.y_test)):
        side = 28 if real else 8
        image = ((x - low) / high).view(-1, 1, side, side).float()
        image = image if real else F.interpolate(image, size=28, mode="bilinear")
        parts += [image.flatten(1) if flat else image, one_hot(y, 10)]
    told = None if real else "scikit-learn's digits, enlarged from 8 x 8 pixels"
    return Data(found.name, *parts, stand_in=told)


def cifar10(samples: int) -> Data:
    """Colour images of ten classes, 32 x 32, each channel with mean 0 and variance 1."""
    return _photos(samples, 10, 32, scaled=True, original="CIFAR-10")


def photos(classes: int, target: str, size: int) -> Data:
    """Colour photos of a few classes between 0 and 1, the target one-hot or the class number."""
    data = _photos(1000, classes, size, scaled=False, original="photos of damaged cars")
    if target == "one-hot":
        return data
    return replace(data, y=data.y.argmax(1)[:, None], y_test=data.y_test.argmax(1)[:, None])


def _photos(samples: int, classes: int, size: int, *, scaled: bool, original: str) -> Data:
    root = folder()
    path = root / "gtsrb" / "gtsrb_35px_subset.npz" if root else None
    if path is not None and path.exists():
        with np.load(path) as file:
            parts = [file[k] for k in ("X_train", "y_train", "X_test", "y_test")]
        most = np.argsort(-np.bincount(parts[1]), kind="stable")[:classes]
        images = [_some(parts[i], parts[i + 1], most) for i in (0, 2)]
        what = f"the {classes} most frequent traffic signs of a part of GTSRB"
    else:
        found = digits(samples)
        side = round(found.pixels**0.5)
        images = [
            (x.view(-1, 1, side, side).float().expand(-1, 3, -1, -1), y)
            for x, y in ((found.x, found.y), (found.x_test, found.y_test))
        ]
        images = [(x[y < classes], y[y < classes]) for x, y in images]
        low, high = images[0][0].min(), images[0][0].max()
        images = [((x - low) / (high - low), y) for x, y in images]
        what = f"{found.name}, in grey"
    order = torch.as_tensor(random().permutation(len(images[0][0])))[:samples]
    images[0] = images[0][0][order], images[0][1][order]
    made = [F.interpolate(x, size=(size, size), mode="bilinear") for x, _ in images]
    if scaled:
        mean, std = made[0].mean((0, 2, 3), keepdim=True), made[0].std((0, 2, 3), keepdim=True)
        made = [(x - mean) / std for x in made]
    y, y_test = (one_hot(labels, classes) for _, labels in images)
    told = f"in place of {original}, with the same shape; easier"
    return Data(f"{what}, {size} x {size}", made[0], y, made[1], y_test, told)


def _some(images: Any, labels: Any, classes: Any) -> tuple[Tensor, Tensor]:
    kept = np.isin(labels, classes)
    numbers = np.array([list(classes).index(label) for label in labels[kept]])
    x = torch.as_tensor(images[kept]).permute(0, 3, 1, 2).float() / 255
    return x, torch.as_tensor(numbers)


#: the columns of adult that are text
TEXT = (1, 3, 5, 6, 7, 8, 9, 13)


def adult() -> Data:
    """Incomes above 50 000 dollars from 14 columns, unscaled."""
    root = folder()
    path = root / "uci121" / "uci121_fernandez_delgado.tar.xz" if root else None
    if path is None or not path.exists():
        return _like_adult()
    with tarfile.open(path) as archive:
        member = archive.extractfile("data/adult/adult.data")
        assert member is not None
        text = io.TextIOWrapper(member, encoding="ascii").read()
    fields = (line.replace(",", " ").split() for line in text.splitlines())
    rows = [row for row in fields if len(row) == 15]
    columns = list(zip(*rows, strict=True))
    numbers: list[Any] = []
    for i, column in enumerate(columns[:14]):
        first = min(column)
        numbers.append([float(v == first) if i in TEXT else float(v) for v in column])
    y = one_hot([int(v.startswith(">50K")) for v in columns[14]], 2)
    return whole("UCI adult", np.array(numbers).T, y)


def _like_adult() -> Data:
    draw = random()
    n = 20_000
    x = draw.uniform(size=(n, 14)) < 0.1
    x = x.astype(float)
    x[:, 0], x[:, 2] = draw.integers(17, 90, n), draw.lognormal(12, 0.5, n)
    x[:, 4], x[:, 12] = draw.integers(1, 17, n), draw.integers(1, 99, n)
    x[:, 10] = (draw.uniform(size=n) < 0.08) * draw.lognormal(8.8, 1, n)
    x[:, 11] = (draw.uniform(size=n) < 0.05) * draw.normal(1870, 360, n)
    score = x[:, 0] / 30 + x[:, 4] / 3 + x[:, 12] / 20 + x[:, 10] / 5000 + draw.normal(size=n)
    y = one_hot(score > np.quantile(score, 0.76), 2)
    return whole("a table like adult", x, y, "columns drawn with the scales of UCI adult")
