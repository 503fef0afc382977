"""The data of the cases: the real set where it is at hand, a generator, or a stand-in that says so.

Real sets are looked for in the folder that the environment variable SIGNALPROP_DATA names, then in
scikit-learn. Nothing is downloaded. Targets have the shape that Keras would bring them to: one-hot,
or (n, 1).
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from signalprop.studies.data import FOLDER, digits


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


def load(spec: Mapping[str, Any]) -> Data:
    """The data set of a description; the same numbers every time.

    Args:
        spec: `name` and arguments.

    Returns:
        The data.

    Raises:
        ValueError: there is no such set.
    """
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
    name = arguments.pop("name")
    if name not in SETS:
        raise ValueError(f"there is no data set {name}")
    return _made(name, tuple(sorted(arguments.items())))


@cache
def _made(name: str, arguments: tuple[tuple[str, Any], ...]) -> Data:
    data = SETS[name](**dict(arguments))
    parts = {k: getattr(data, k).float() for k in ("x", "y", "x_test", "y_test")}
    return replace(data, **parts)


def folder() -> Path | None:
    """The folder with real data, if the environment names one."""
    name = os.environ.get(FOLDER, "")
    return Path(name) if name and Path(name).is_dir() else None


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _whole(what: str, x: Any, y: Any, stand_in: str | None = None) -> Data:
    """Data of a script that tests on what it trained on."""
    a, b = torch.as_tensor(np.asarray(x)), torch.as_tensor(np.asarray(y))
    return Data(what, a, b, a, b, stand_in)


def _split(what: str, x: Any, y: Any, train: int, stand_in: str | None = None) -> Data:
    a, b = torch.as_tensor(np.asarray(x)), torch.as_tensor(np.asarray(y))
    return Data(what, a[:train], b[:train], a[train:], b[train:], stand_in)


def _scaled(x: Any) -> Any:
    """Every column to mean 0 and variance 1; a constant one to 0."""
    std = x.std(0)
    return (x - x.mean(0)) / np.where(std > 0, std, 1)


def _one_hot(y: Any, classes: int) -> Tensor:
    return F.one_hot(torch.as_tensor(np.asarray(y)).long().flatten(), classes)


# ---- written out in the programs -------------------------------------------------------------


def xor() -> Data:
    """The four points of XOR."""
    return _whole("XOR", [[1, 1], [1, 0], [0, 0], [0, 1]], [[0], [1], [0], [1]])


def codes(identity: bool = False) -> Data:
    """All 8-bit codes; the target is another code, or the same."""
    x = np.array([[i >> (7 - b) & 1 for b in range(8)] for i in range(256)])
    order = np.arange(256) if identity else _random().permutation(256)
    return _whole("8-bit codes" + (", copied" if identity else ", permuted"), x, x[order])


def parabola() -> Data:
    """y = 5 x^2 + cubed normal noise at 50 points of 0..5."""
    x = np.arange(50)[:, None] / 10
    return _whole("5 x^2 with noise", x, 5 * x**2 + _random().normal(size=x.shape) ** 3)


def fourth_power(scaled: bool = False) -> Data:
    """y = x^4 at 400 points of -100..100, scaled or not."""
    x = np.arange(-100, 100, 0.5)[:, None]
    y = x**4
    return _whole("x^4", _scaled(x), _scaled(y)) if scaled else _whole("x^4, unscaled", x, y)


def parabola_table() -> Data:
    """y = x^2 + 3 at 201 points of -10..10, three quarters of them for training."""
    x = _random().permutation(np.arange(-100, 101))[:, None] / 10
    return _split("x^2 + 3", x, x**2 + 3, 150)


def noise(shape: tuple[int, ...]) -> Data:
    """1000 samples of uniform noise with uniform noise as targets."""
    random = _random()
    y = (1000, *shape) if len(shape) > 1 else (1000, 1)
    return _whole("uniform noise", random.uniform(size=(1000, *shape)), random.uniform(size=y))


def threshold(scaled: bool = False) -> Data:
    """1000 whole numbers of 15 000..25 000, true below 20 000; the first 800 for training."""
    x = _random().integers(15_000, 25_000, size=(1000, 1)).astype(float)
    y = x < 20_000
    return _split("numbers below 20 000", _scaled(x) if scaled else x, y, 800)


def sine_direction() -> Data:
    """300 rows of a sine and its value one step before, every one with label 1."""
    phase = _random().uniform(0, 1, size=(300, 1))
    x = np.concatenate([np.sin(phase), np.sin(phase - 0.063)], 1)
    told = "the same two columns from a formula; the labels are the same: all 1"
    return _split("sine and its last value", x, np.ones((300, 1)), 240, told)


def packets(scaled: bool = False) -> Data:
    """21 network packets of 11 numbers: addresses, protocol, lengths; the label is the sender."""
    random = _random()
    bad = np.arange(21) >= 8
    sender = 3_232_235_770 + np.where(bad, 11, random.choice([3, 8], size=21))
    payload = random.integers(0, 2, size=21)
    columns = [
        sender,
        np.full(21, 3_232_235_779),
        np.full(21, 6),
        np.full(21, 128),
        524_000 + random.integers(0, 1600, size=21),
        np.where(random.integers(0, 2, size=21) > 0, 502, 55_924),
        12 * payload,
        np.where(bad, 65_280 * random.integers(0, 2, size=21), 61) * payload,
        np.where(bad, 5, 6) * payload,
        np.zeros(21),
        np.where(bad, 100, 206) * payload,
    ]
    x = np.stack(columns, 1).astype(float)
    told = "drawn with the columns, scales and number of rows of the table in the repository"
    return _whole("network packets", _scaled(x) if scaled else x, bad[:, None], told)


# ---- scikit-learn ----------------------------------------------------------------------------


def blobs() -> Data:
    """Three overlapping blobs in the plane."""
    from sklearn.datasets import make_blobs

    x, y = make_blobs(n_samples=1000, centers=3, cluster_std=2, random_state=2)
    return _split("make_blobs", x, _one_hot(y, 3), 700)


def circles() -> Data:
    """Two rings in the plane."""
    from sklearn.datasets import make_circles

    x, y = make_circles(n_samples=1000, noise=0.1, random_state=1)
    return _split("make_circles", x, y[:, None], 700)


def multilabel(target: str = "number") -> Data:
    """Counts of four words and whether the text has the one label."""
    from sklearn.datasets import make_multilabel_classification

    x, y = make_multilabel_classification(n_samples=1000, n_features=4, n_classes=1, random_state=0)
    return _split("make_multilabel_classification", x, y, 800)


def iris() -> Data:
    """150 flowers of three kinds, half of them for training."""
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    order = _random().permutation(150)
    return _split("iris", x[order], _one_hot(y[order], 3), 75)


# ---- images and tables from files ------------------------------------------------------------


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
        parts += [image.flatten(1) if flat else image, _one_hot(y, 10)]
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
    order = torch.as_tensor(_random().permutation(len(images[0][0])))[:samples]
    images[0] = images[0][0][order], images[0][1][order]
    made = [F.interpolate(x, size=(size, size), mode="bilinear") for x, _ in images]
    if scaled:
        mean, std = made[0].mean((0, 2, 3), keepdim=True), made[0].std((0, 2, 3), keepdim=True)
        made = [(x - mean) / std for x in made]
    y, y_test = (_one_hot(labels, classes) for _, labels in images)
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
    y = _one_hot([int(v.startswith(">50K")) for v in columns[14]], 2)
    return _whole("UCI adult", np.array(numbers).T, y)


def _like_adult() -> Data:
    random = _random()
    n = 20_000
    x = random.uniform(size=(n, 14)) < 0.1
    x = x.astype(float)
    x[:, 0], x[:, 2] = random.integers(17, 90, n), random.lognormal(12, 0.5, n)
    x[:, 4], x[:, 12] = random.integers(1, 17, n), random.integers(1, 99, n)
    x[:, 10] = (random.uniform(size=n) < 0.08) * random.lognormal(8.8, 1, n)
    x[:, 11] = (random.uniform(size=n) < 0.05) * random.normal(1870, 360, n)
    score = x[:, 0] / 30 + x[:, 4] / 3 + x[:, 12] / 20 + x[:, 10] / 5000 + random.normal(size=n)
    y = _one_hot(score > np.quantile(score, 0.76), 2)
    return _whole("a table like adult", x, y, "columns drawn with the scales of UCI adult")


SETS: dict[str, Callable[..., Data]] = {
    "xor": xor,
    "codes": codes,
    "parabola": parabola,
    "fourth-power": fourth_power,
    "parabola-table": parabola_table,
    "noise": noise,
    "threshold": threshold,
    "sine-direction": sine_direction,
    "packets": packets,
    "blobs": blobs,
    "circles": circles,
    "multilabel": multilabel,
    "iris": iris,
    "mnist": mnist,
    "cifar10": cifar10,
    "photos": photos,
    "adult": adult,
}
