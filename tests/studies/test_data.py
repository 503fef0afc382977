"""The loaders: MNIST where it is at hand, digits otherwise."""

from __future__ import annotations

import gzip
import struct
import sys

import pytest
import torch

from signalprop.errors import MissingPackageError, SignalpropError
from signalprop.studies.data import digits


def write_idx(path, values):
    head = b"\x00\x00\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    with gzip.open(path, "wb") as file:
        file.write(head + bytes(values.flatten().tolist()))


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    folder = tmp_path / "mnist"
    folder.mkdir()
    parts = {}
    for part, count in (("train", 30), ("t10k", 12)):
        x, y = torch.randint(256, (count, 28, 28)), torch.arange(count) % 10
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", x)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", y)
        parts[part] = x.flatten(1), y
    monkeypatch.setenv("SIGNALPROP_DATA", str(tmp_path))
    return folder, parts


def test_bundled():
    found = digits()
    assert found.name == "scikit-learn's digits (1348 training, 449 test images of 64 pixels)"
    assert found.pixels == 64
    assert found.x.dtype == torch.float64
    assert float(found.x.mean()) == pytest.approx(0, abs=1e-12)
    assert float(found.x.std()) == pytest.approx(1)
    assert set(found.y_test.tolist()) == set(range(10))


def test_limit():
    found = digits(90)
    assert len(found.x) == len(found.y) == 90
    assert len(found.x_test) == len(found.y_test) == 30


def test_mnist_from_the_folder(mnist):
    _, parts = mnist
    found = digits()
    assert found.name == "MNIST (30 training, 12 test images of 784 pixels)"
    assert torch.equal(found.y, parts["train"][1])
    x = parts["train"][0].double()
    torch.testing.assert_close(found.x, (x - x.mean()) / x.std())
    torch.testing.assert_close(found.x_test, (parts["t10k"][0].double() - x.mean()) / x.std())
    assert len(digits(6).x) == 6


def test_folder_without_mnist_falls_back(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGNALPROP_DATA", str(tmp_path))
    assert "scikit-learn" in digits().name


@pytest.mark.parametrize(
    "damage",
    [b"no gzip at all", gzip.compress(b"\x00\x00\x08\x03\x00")],
    ids=["no gzip", "cut short"],  # the bytes hold the time: another id in every worker
)
def test_damaged_file(mnist, damage):
    folder, _ = mnist
    (folder / "train-images-idx3-ubyte.gz").write_bytes(damage)
    with pytest.raises(SignalpropError, match="train-images"):
        digits()


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackageError, match=r"pip install .*signalprop\[studies\]"):
        digits()
