"""Every adapter's package is imported when it is used, and named when it is missing."""

import importlib
import subprocess
import sys

import pytest

from signalprop.errors import MissingPackageError
from signalprop.watching.adapters.mlflow import MLflow
from signalprop.watching.adapters.tensorboard import TensorBoard
from signalprop.watching.adapters.wandb import WandB

ROOM = "signalprop.watching.adapters"


@pytest.mark.parametrize(
    ("make", "modules", "extra"),
    [
        (lambda: TensorBoard("logs"), ["torch.utils.tensorboard"], "tensorboard"),
        (WandB, ["wandb"], "wandb"),
        (MLflow, ["mlflow"], "mlflow"),
    ],
)
def test_a_listener_names_what_is_missing(monkeypatch, make, modules, extra):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'signalprop\[{extra}\]'"):
        make()


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("lightning", ["lightning", "lightning.pytorch", "pytorch_lightning"]),
        ("huggingface", ["transformers"]),
    ],
)
def test_a_callback_names_what_is_missing(monkeypatch, name, modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"{ROOM}.{name}", raising=False)
    with pytest.raises(MissingPackageError, match=rf"pip install 'signalprop\[{name}\]'"):
        importlib.import_module(f"{ROOM}.{name}")


def test_a_package_that_breaks_while_it_is_imported_says_why(monkeypatch, tmp_path):
    (tmp_path / "broken_by_us.py").write_text("from math import no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    from signalprop.watching.adapters.packages import needed

    with pytest.raises(MissingPackageError, match="no_such_name"):
        needed("broken_by_us", "x", "X")


def test_nothing_is_imported_before_it_is_used():
    code = (
        "import sys, signalprop.watching.watch\n"
        f"import {ROOM}.tensorboard, {ROOM}.wandb, {ROOM}.mlflow, {ROOM}.attaching\n"
        "names = 'tensorboard wandb mlflow lightning pytorch_lightning transformers'.split()\n"
        "print([n for n in names if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
