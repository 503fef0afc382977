"""The target: what is accepted, and what is said where it is not."""

import os
import sys
from pathlib import Path

import pytest

OK = ("--quiet",)


class TestAccepted:
    def test_file(self, run, train):
        ran = run("trace", "train.py:build", *OK)
        assert ran.status == 0
        assert ran.out.startswith("Sequential: ")

    def test_path_to_a_file(self, run, train, monkeypatch, tmp_path_factory):
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        assert run("trace", f"{train}:build", *OK).status == 0

    def test_module(self, run, write):
        write("", "target_pack/__init__.py")
        write(
            "from torch import nn, ones\ndef build():\n"
            "    return nn.Linear(2, 1), (ones(4, 2), ones(4, 1)), nn.MSELoss()\n",
            "target_pack/inner.py",
        )
        assert run("trace", "target_pack.inner:build", *OK).status == 0

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("model", "model = nn.Linear(4, 2)"),
            ("Net", "class Net(nn.Linear):\n    def __init__(self): super().__init__(4, 2)"),
            ("make", "make = lambda width=2: nn.Linear(4, width)"),
            ("Box.model", "class Box:\n    model = nn.Linear(4, 2)"),
            ("one", "def one(): return (nn.Linear(4, 2),)"),
        ],
    )
    def test_model_only(self, run, write, name, text):
        write(f"from torch import nn\n{text}\n")
        ran = run("trace", f"train.py:{name}", "--input", "8x4", "--classes", "2", *OK)
        assert ran.status == 0, ran.err

    @pytest.mark.parametrize(
        "given",
        [
            "net, (x, y), F.cross_entropy",
            "net, (x, y), F.cross_entropy, None",
            "net, (x, y), lambda out, y: F.cross_entropy(out, y), SGD(net.parameters(), lr=1)",
            "own, x",
            "own, x, None",
            "own, x, SGD(own.parameters(), lr=1)",
            "net, DataLoader(TensorDataset(x, y), batch_size=4), F.cross_entropy",
        ],
    )
    def test_returned(self, run, write, given):
        write(f"""
            import torch, torch.nn as nn, torch.nn.functional as F
            from torch.optim import SGD
            from torch.utils.data import DataLoader, TensorDataset

            class Own(nn.Linear):
                def forward(self, x):
                    return super().forward(x).square().mean()

            def build():
                x, y = torch.randn(8, 4), torch.randint(2, (8,))
                net, own = nn.Linear(4, 2), Own(4, 2)
                return {given}
        """)
        ran = run("trace", "train.py:build", *OK)
        assert ran.status == 0, ran.err


class TestSurroundings:
    """What the user's file sees, and what is left behind."""

    def test_neighbours_dataclasses_and_pickle(self, run, write):
        write("WIDTH = 5", "near_by_settings.py")
        write("""
            import copy, pickle, sys
            from dataclasses import dataclass
            import torch, torch.nn as nn, torch.nn.functional as F
            import near_by_settings

            assert __name__ != "__main__"
            assert sys.argv[1:] == []

            @dataclass
            class Settings:
                width: "int" = near_by_settings.WIDTH

            class Net(nn.Linear):
                pass

            def build():
                import near_by_settings as later
                s = pickle.loads(pickle.dumps(Settings()))
                net = copy.deepcopy(Net(s.width, 2))
                return net, (torch.randn(4, s.width), torch.tensor([0, 1, 0, 1])), F.cross_entropy
        """)
        path, argv, modules = list(sys.path), list(sys.argv), set(sys.modules)
        ran = run("trace", "train.py:build", *OK)
        assert ran.status == 0, ran.err
        assert sys.path == path
        assert sys.argv == argv
        left = {name for name in set(sys.modules) - modules if name.startswith("_signalprop")}
        assert not left

    def test_seed(self, run, train):
        first, again, other = (
            run("trace", "train.py:build", *s, *OK).out for s in ([], [], ["--seed", "1"])
        )
        assert first == again
        assert first != other

    def test_no_cache_is_left_beside_the_file(self, run, train, folder):
        run("trace", "train.py:build", *OK)
        assert os.listdir(folder) == ["train.py"]


class TestRefused:
    def test_no_colon(self, refused, train):
        said = refused("train.py")
        assert "write train.py:build" in said
        assert "there is build or net" in said

    def test_no_name(self, refused, train):
        assert "write train.py:build" in refused("train.py:")

    def test_module_without_colon(self, refused, folder):
        assert "no colon" in refused("train")

    @pytest.mark.parametrize("text", ["train.py:a-b", "train.py:1", "tr ain:build", ":build"])
    def test_malformed(self, refused, train, text):
        assert "train.py:build" in refused(text)

    def test_missing_file(self, refused, train):
        assert refused("trian.py:build") == (
            "there is no file trian.py in this folder; did you mean train.py?"
        )

    def test_missing_file_nothing_near(self, refused, train):
        assert "it holds train.py" in refused("qqq.py:build")

    def test_missing_folder(self, refused, folder):
        assert "the folder nowhere does not exist" in refused("nowhere/train.py:build")

    def test_folder(self, refused, folder):
        (folder / "package").mkdir()
        assert "is a folder" in refused("package:build")

    def test_not_python(self, refused, folder):
        (folder / "net.ipynb").write_text("{}")
        assert "not a Python file" in refused("net.ipynb:build")

    def test_missing_module(self, refused, folder):
        assert "there is no module 'nowhere'" in refused("nowhere.net:build")

    def test_missing_submodule(self, refused, write):
        write("", "other_pack/__init__.py")
        assert "there is no module 'other_pack.inner'" in refused("other_pack.inner:build")

    def test_syntax_error(self, refused, write):
        write("import torch\n\ndef build()\n    return 1\n")
        first, second, third = refused("train.py:build").splitlines()
        assert first == "train.py has a syntax error in line 3: expected ':'"
        assert second == "    3 | def build()"
        assert third == "                   ^"
        assert third.index("^") == second.index(")") + 1

    def test_syntax_error_in_a_neighbour(self, refused, write):
        write("import broken_neighbour")
        write("x = (", "broken_neighbour.py")
        assert "broken_neighbour.py has a syntax error in line 1" in refused("train.py:build")

    def test_null_bytes(self, refused, folder):
        (folder / "train.py").write_bytes(b"x = 1\0")
        assert "null bytes" in refused("train.py:build")

    def test_unreadable(self, refused, train, monkeypatch):
        def read_bytes(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "read_bytes", read_bytes)
        assert refused("train.py:build") == "train.py cannot be read: Permission denied"

    def test_missing_package(self, refused, write):
        write("import os\nimport no_such_package.inner\n")
        said = refused("train.py:build")
        assert "imports 'no_such_package', which is not installed" in said
        assert "train.py:2" in said
        assert said.endswith("-m pip install no_such_package")

    def test_missing_package_of_another_name(self, refused, write, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn", None)
        write("raise ModuleNotFoundError('no', name='sklearn.datasets')")
        assert refused("train.py:build").endswith("pip install scikit-learn")

    def test_missing_package_inside_build(self, refused, write):
        write("def build():\n    import no_such_package\n")
        said = refused("train.py:build")
        assert "train.py:2, in build" in said
        assert "pip install no_such_package" in said

    def test_wrong_import(self, refused, write):
        write("from torch import no_such_thing\n")
        said = refused("train.py:build")
        assert "cannot import name 'no_such_thing'" in said
        assert "train.py:1" in said

    def test_raises_while_imported(self, refused, write):
        write("widths = []\nwidths[3]\n")
        said = refused("train.py:build")
        assert "IndexError: list index out of range" in said
        assert "train.py:2: widths[3]" in said

    def test_reads_arguments_while_imported(self, run, write):
        write("""
            import argparse
            parser = argparse.ArgumentParser()
            parser.add_argument("data")
            parser.parse_args()
        """)
        ran = run("trace", "train.py:build")
        assert ran.status == 2
        # argparse says its part first
        assert ran.err.splitlines()[-1].startswith("error: train.py ended the program")
        assert "train.py:4" in ran.err

    def test_exit_while_imported(self, refused, write):
        write("import sys\nsys.exit(3)\n")
        said = refused("train.py:build")
        assert "ended the program" in said
        assert '`if __name__ == "__main__":`' in said
        assert "train.py:2" in said

    def test_wrong_attribute(self, refused, write):
        write("import torch\nfrom torch import nn\nnet = nn.ReLU()\nSIZE = 3\ndef build(): pass\n")
        said = refused("train.py:biuld")
        assert said == "train.py has no 'biuld'; did you mean build? (there is also net)"

    def test_wrong_attribute_nothing_near(self, refused, train):
        assert refused("train.py:qqqq") == "train.py has no 'qqqq'; it has net, build"

    def test_nothing_to_name(self, refused, write):
        write("x = 1")
        assert "add `def build(): return model`" in refused("train.py:build")

    def test_needs_arguments(self, refused, write):
        write("def make(width, *, depth=3): pass")
        said = refused("train.py:make")
        assert "make(width, *, depth=3) in train.py needs arguments" in said
        assert "return make(...)" in said

    def test_build_raises(self, refused, write):
        write("""
            import json
            def helper():
                json.loads("{")
            def build():
                helper()
        """)
        said = refused("train.py:build")
        assert "build() in train.py raised JSONDecodeError" in said
        assert '(train.py:3, in helper: json.loads("{"))' in said

    def test_build_raises_inside_torch(self, refused, write):
        write("from torch import nn\ndef build():\n    return nn.Linear(-1, 2)\n")
        assert "train.py:3, in build: return nn.Linear(-1, 2)" in refused("train.py:build")

    def test_build_exits(self, refused, write):
        write("def build():\n    raise SystemExit(0)\n")
        assert "ended the program (train.py:2" in refused("train.py:build")

    def test_build_runs_out_of_memory(self, refused, write):
        write("def build():\n    raise MemoryError\n")
        assert "build() in train.py ran out of memory (train.py:2" in refused("train.py:build")

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ("None", "None (is there a return?)"),
            ("3", "a int"),
            ("(3, net)", "a tuple of 2 (int, Linear)"),
            ("()", "a tuple of 0"),
            ("(net, x, None, None, 1)", "a tuple of 5"),
            ("{'model': net}", "a dict"),
        ],
    )
    def test_wrong_type(self, refused, write, given, said):
        write(f"""
            from torch import nn, ones
            net, x = nn.Linear(1, 1), ones(1)
            def build():
                return {given}
        """)
        message = refused("train.py:build")
        assert said in message
        assert "(model, batch, loss, optimizer)" in message

    def test_wrong_loss(self, refused, write):
        write("from torch import nn, ones\ndef build(): return nn.Linear(1, 1), ones(2, 1), 'mse'")
        assert "as the loss; give a function" in refused("train.py:build")

    def test_wrong_optimizer(self, refused, write):
        write(
            "from torch import nn, ones\n"
            "def build(): return nn.Linear(1, 1), ones(2, 1), nn.MSELoss(), 0.1"
        )
        assert "as the optimizer; give one of torch.optim" in refused("train.py:build")

    def test_async(self, refused, write):
        write("async def build(): pass")
        assert "async" in refused("train.py:build")

    def test_no_parameters(self, refused, write):
        write("from torch import nn\ndef build(): return nn.ReLU()")
        assert "no parameters" in refused("train.py:build")
