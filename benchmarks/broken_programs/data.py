"""The data of the cases: the real set where it is at hand, a generator, or a stand-in that says so.

Targets have the shape that Keras would bring them to: one-hot, or (n, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from benchmarks.broken_programs.images import adult, cifar10, mnist, photos
from benchmarks.broken_programs.sample import Data, columns_scaled, one_hot, random, split, whole


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


# ---- written out in the programs -------------------------------------------------------------


def xor() -> Data:
    """The four points of XOR."""
    return whole("XOR", [[1, 1], [1, 0], [0, 0], [0, 1]], [[0], [1], [0], [1]])


def codes(identity: bool = False) -> Data:
    """All 8-bit codes; the target is another code, or the same."""
    x = np.array([[i >> (7 - b) & 1 for b in range(8)] for i in range(256)])
    order = np.arange(256) if identity else random().permutation(256)
    return whole("8-bit codes" + (", copied" if identity else ", permuted"), x, x[order])


def parabola() -> Data:
    """y = 5 x^2 + cubed normal noise at 50 points of 0..5."""
    x = np.arange(50)[:, None] / 10
    return whole("5 x^2 with noise", x, 5 * x**2 + random().normal(size=x.shape) ** 3)


def fourth_power(scaled: bool = False) -> Data:
    """y = x^4 at 400 points of -100..100, scaled or not."""
    x = np.arange(-100, 100, 0.5)[:, None]
    if scaled:
        return whole("x^4", columns_scaled(x), columns_scaled(x**4))
    return whole("x^4, unscaled", x, x**4)


def parabola_table() -> Data:
    """y = x^2 + 3 at 201 points of -10..10, three quarters of them for training."""
    x = random().permutation(np.arange(-100, 101))[:, None] / 10
    return split("x^2 + 3", x, x**2 + 3, 150)


def noise(shape: tuple[int, ...]) -> Data:
    """1000 samples of uniform noise with uniform noise as targets."""
    draw = random()
    y = (1000, *shape) if len(shape) > 1 else (1000, 1)
    return whole("uniform noise", draw.uniform(size=(1000, *shape)), draw.uniform(size=y))


def threshold(scaled: bool = False) -> Data:
    """1000 whole numbers of 15 000..25 000, true below 20 000; the first 800 for training."""
    x = random().integers(15_000, 25_000, size=(1000, 1)).astype(float)
    y = x < 20_000
    return split("numbers below 20 000", columns_scaled(x) if scaled else x, y, 800)


def sine_direction() -> Data:
    """300 rows of a sine and its value one step before, every one with label 1."""
    phase = random().uniform(0, 1, size=(300, 1))
    x = np.concatenate([np.sin(phase), np.sin(phase - 0.063)], 1)
    told = "the same two columns from a formula; the labels are the same: all 1"
    return split("sine and its last value", x, np.ones((300, 1)), 240, told)


def packets(scaled: bool = False) -> Data:
    """21 network packets of 11 numbers: addresses, protocol, lengths; the label is the sender."""
    draw = random()
    bad = np.arange(21) >= 8
    sender = 3_232_235_770 + np.where(bad, 11, draw.choice([3, 8], size=21))
    payload = draw.integers(0, 2, size=21)
    columns = [
        sender,
        np.full(21, 3_232_235_779),
        np.full(21, 6),
        np.full(21, 128),
        524_000 + draw.integers(0, 1600, size=21),
        np.where(draw.integers(0, 2, size=21) > 0, 502, 55_924),
        12 * payload,
        np.where(bad, 65_280 * draw.integers(0, 2, size=21), 61) * payload,
        np.where(bad, 5, 6) * payload,
        np.zeros(21),
        np.where(bad, 100, 206) * payload,
    ]
    x = np.stack(columns, 1).astype(float)
    told = "drawn with the columns, scales and number of rows of the table in the repository"
    return whole("network packets", columns_scaled(x) if scaled else x, bad[:, None], told)


# ---- scikit-learn ----------------------------------------------------------------------------


def blobs() -> Data:
    """Three overlapping blobs in the plane."""
    from sklearn.datasets import make_blobs

    x, y, *_ = make_blobs(n_samples=1000, centers=3, cluster_std=2, random_state=2)
    return split("make_blobs", x, one_hot(y, 3), 700)


def circles() -> Data:
    """Two rings in the plane."""
    from sklearn.datasets import make_circles

    x, y = make_circles(n_samples=1000, noise=0.1, random_state=1)
    return split("make_circles", x, y[:, None], 700)


def multilabel(target: str = "number") -> Data:
    """Counts of four words and whether the text has the one label.

    The program's own draw is not known; this one can be told apart as well as was published.
    """
    from sklearn.datasets import make_multilabel_classification

    x, y, *_ = make_multilabel_classification(
        n_samples=1000, n_features=4, n_classes=1, random_state=10
    )
    return split("make_multilabel_classification", x, y, 800)


def iris() -> Data:
    """150 flowers of three kinds, half of them for training, split as in the program."""
    from sklearn.datasets import load_iris
    from sklearn.model_selection import train_test_split

    x, y = load_iris(return_X_y=True)
    parts = train_test_split(x, y, test_size=0.5, random_state=2)
    x, x_test, y, y_test = (torch.as_tensor(part) for part in parts)
    return Data("iris", x, one_hot(y, 3), x_test, one_hot(y_test, 3))


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
