"""Loaders of real tables: the layout of UCI-121, HTRU2, and what stands in for them."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile

import numpy as np
import pytest
import torch

from signalprop.errors import MissingPackageError, SignalpropError
from signalprop.studies.tables import data


def rows_file(x, y):
    lines = ["\t" + "\t".join(f"f{i}" for i in range(x.shape[1])) + "\tclase"]
    lines += [
        "\t".join([str(k + 1), *(f"{v:.6g}" for v in row), str(c)])
        for k, (row, c) in enumerate(zip(x, y, strict=True))
    ]
    return "\n".join(lines) + "\n"


def line(numbers):
    return " ".join(map(str, numbers)) + " \n"


def a_set(name, rows, *, test=0, shift=0.0):
    """Files of one set, as UCI-121 has them."""
    rng = np.random.default_rng(rows)
    x, y = rng.normal(size=(rows, 3)), np.arange(rows) % 2 * 2  # classes 0 and 2
    halves = line(range(0, rows, 2)) + line(range(1, rows, 2))
    quarters = [list(range(i, rows, 4)) for i in range(4)]
    folds = "".join(
        line(sorted(set(range(rows)) - set(quarter))) + line(quarter) for quarter in quarters
    )
    head = f"n_entradas= 3\nn_clases= 2\nfich1= {name}_R.dat\nn_patrons1= {rows}\n"
    files = {f"{name}_R.dat": rows_file(x, y), "conxuntos.dat": halves}
    files["conxuntos_kfold.dat"] = folds
    files["stray_R.dat"] = "not a table of this set\n"
    if test:
        head += f"fich2= {name}_test_R.dat\nn_patrons2= {test}\n"
        files[f"{name}_test_R.dat"] = rows_file(rng.normal(size=(test, 3)) + shift, [0] * test)
    files[f"{name}.txt"] = head
    return {f"data/{name}/{part}": text for part, text in files.items()}


def write(folder, files):
    (folder / "uci121").mkdir()
    with tarfile.open(folder / "uci121" / "uci.tar.xz", "w:xz") as tar:
        for name, text in files.items():
            content = text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def uci(tmp_path, monkeypatch):
    gone = a_set("gone", 26)
    del gone["data/gone/gone_R.dat"]
    nested = {f"data/middle/old/{k}": "1\t2\n" for k in ("middle_R.dat", "middle.txt")}
    parts = a_set("small", 10), a_set("middle", 24), a_set("fixed", 20, test=8), gone, nested
    write(tmp_path, {k: v for part in (*parts, a_set("raw", 22, test=8, shift=50)) for k, v in
                     part.items()})  # fmt: skip
    monkeypatch.setenv("SIGNALPROP_DATA", str(tmp_path))
    return tmp_path


def test_sets_in_the_window(uci):
    found, left = data.uci(20, 30)
    assert [t.name for t in found] == ["middle", "fixed"]
    assert left == {
        "gone": "its table is not in the archive",
        "raw": "its test file is not scaled as its training file is",
    }
    middle, fixed = found
    assert middle.x.shape == (24, 3)
    assert middle.x.dtype == torch.float32
    assert middle.classes == 2
    assert middle.y.tolist() == [0, 1] * 12
    assert middle.tuning[0].tolist() == list(range(0, 24, 2))
    assert len(middle.folds) == 4
    for k, (train, test) in enumerate(middle.folds):
        assert test.tolist() == list(range(k, 24, 4))
        assert sorted((*train.tolist(), *test.tolist())) == list(range(24))
    rng = np.random.default_rng(24)
    torch.testing.assert_close(
        middle.x, torch.from_numpy(rng.normal(size=(24, 3))).float(), rtol=1e-4, atol=1e-5
    )
    ((train, test),) = fixed.folds
    assert (train.tolist(), test.tolist()) == (list(range(20)), list(range(20, 28)))


def test_limit_takes_the_smallest(uci):
    assert [t.name for t in data.uci(5, 30, 2)[0]] == ["small", "middle"]


def test_damaged_archive(uci):
    path = data.archive()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SignalpropError, match=r"uci\.tar\.xz"):
        data.uci(20, 30)


def test_split_outside_of_its_table(tmp_path, monkeypatch):
    files = a_set("one", 12)
    files["data/one/conxuntos.dat"] = line(range(6)) + line([6, 12])
    write(tmp_path, files)
    monkeypatch.setenv("SIGNALPROP_DATA", str(tmp_path))
    with pytest.raises(SignalpropError, match="rows outside of its table of 12"):
        data.uci(1, 100)


def test_without_the_folder():
    assert data.archive() is None
    with pytest.raises(SignalpropError, match="SIGNALPROP_DATA"):
        data.uci(1, 100)
    with pytest.raises(SignalpropError, match="SIGNALPROP_DATA"):
        data.htru2()


@pytest.mark.parametrize("label", ["not_pulsar", "a star"])
def test_htru2(label, tmp_path, monkeypatch):
    (tmp_path / "htru2").mkdir()
    text = "a,b,c,d,e,f,g,h,target_class\n" + f"1,2,3,4,5,6,7,8.5,pulsar\n0,0,0,0,0,0,0,0,{label}\n"
    with gzip.open(tmp_path / "htru2" / "HTRU_2.csv.gz", "wt") as file:
        file.write(text)
    monkeypatch.setenv("SIGNALPROP_DATA", str(tmp_path))
    if label == "a star":
        with pytest.raises(SignalpropError, match=r"HTRU_2\.csv\.gz"):
            data.htru2()
        return
    x, y = data.htru2()
    assert x.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8.5], [0] * 8]
    assert y.tolist() == [1, 0]


def test_bundled():
    found = data.bundled()
    assert [(t.name, t.classes) for t in found] == [
        ("iris", 3), ("wine", 3), ("breast cancer", 2), ("digits", 10)
    ]  # fmt: skip
    for table in found:
        rows = list(range(len(table.y)))
        assert sorted(torch.cat(table.tuning).tolist()) == rows
        assert sorted(torch.cat([test for _, test in table.folds]).tolist()) == rows
        for train, test in table.folds:
            assert not set(train.tolist()) & set(test.tolist())


def test_every_part_has_its_share_of_every_class():
    y = torch.tensor([0] * 40 + [1] * 8)
    parts = data.deal(y, 4, 3)
    assert sorted(torch.cat(parts).tolist()) == list(range(48))
    assert [int(y[p].sum()) for p in parts] == [2] * 4
    assert not all(torch.equal(a, b) for a, b in zip(parts, data.deal(y, 4, 4), strict=True))


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackageError, match=r"pip install .*signalprop\[studies\]"):
        data.bundled()
