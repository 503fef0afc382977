"""Random data for a model that comes without: `--input`, `--classes`, `--vocab`."""

import json

import pytest
import torch

from signalprop.cli.inputs import parse
from signalprop.errors import TargetError

MODELS = """
    import torch
    from torch import nn

    def flat():
        return nn.Linear(6, 3)

    def double():
        return nn.Linear(6, 3).double()

    def image():
        return nn.Conv2d(3, 5, 3, padding=1)

    def words():
        return nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 11))

    def own():
        class Own(nn.Linear):
            def forward(self, x):
                return {"loss": super().forward(x).square().mean()}
        return Own(6, 3)

    def unlike():
        return flat(), None, nn.MSELoss()

    def alone():
        return flat(), None, lambda out: out.square().mean()

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.user, self.item = nn.Embedding(4, 6), nn.Embedding(900, 6)
            self.head = nn.Linear(6, 2)
        def forward(self, u, i):
            return self.head(self.user(u) * self.item(i))

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.place, self.word = nn.Embedding(6, 8), nn.Embedding(50, 8)
            self.head = nn.Linear(8, 50)
        def forward(self, x):
            return self.head(self.word(x) + self.place(torch.arange(x.shape[1])))

    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.RNN(6, 8), nn.Linear(8, 3)
        def forward(self, x):
            return self.head(self.rnn(x)[0])

    class Picky(nn.Linear):
        def __init__(self):
            super().__init__(6, 3)
        def forward(self, x):
            raise ValueError("not today")
"""


@pytest.fixture
def traced(run, write):
    """The JSON of `trace` with these options."""
    write(MODELS, "models.py")

    def traced(name, *words):
        ran = run("trace", f"models.py:{name}", *words, "--json")
        assert ran.status == 0, ran.err
        return json.loads(ran.out)

    return traced


class TestParse:
    @pytest.mark.parametrize(
        ("text", "sizes", "dtype"),
        [
            ("32x3x32x32", (32, 3, 32, 32), None),
            ("8X128:int", (8, 128), torch.int64),
            ("8,4:half", (8, 4), torch.float16),
            ("5:bool", (5,), torch.bool),
            (" 2×3:float64 ", (2, 3), torch.float64),
        ],
    )
    def test_forms(self, text, sizes, dtype):
        shape = parse(text)
        assert shape.sizes == sizes
        assert shape.dtype == dtype

    @pytest.mark.parametrize("text", ["", "x", "3x", "3xx4", "-3x4", "3.5x4", "(3, 4)", "3x4:"])
    def test_malformed(self, text):
        if text == "3x4:":
            assert parse(text).dtype is None
            return
        with pytest.raises(TargetError, match="is not a shape; write sizes joined by x"):
            parse(text)

    def test_dtype(self):
        with pytest.raises(TargetError, match="'string' is none of int, "):
            parse("3x4:string")

    def test_zero(self):
        with pytest.raises(TargetError, match="size of 0"):
            parse("0x4")


class TestDrawn:
    def test_standardised_in_the_models_dtype(self, traced):
        (x,) = traced("flat", "--input", "512x6", "--classes", "3")["inputs"].values()
        assert x["dtype"] == "float32"
        assert abs(x["mean"]) < 0.1
        assert abs(x["std"] - 1) < 0.1
        (x,) = traced("double", "--input", "8x6", "--classes", "3")["inputs"].values()
        assert x["dtype"] == "float64"

    def test_labels(self, traced):
        seen = traced("flat", "--input", "64x6", "--classes", "3")
        (call,) = seen["losses"]
        assert call["op"] == "cross_entropy"
        assert call["target"]["shape"] == [64]
        assert (call["target"]["low"], call["target"]["high"]) == (0, 2)

    def test_images(self, traced):
        seen = traced("image", "--input", "2x3x8x8", "--classes", "5")
        assert seen["losses"][0]["target"]["shape"] == [2, 8, 8]

    def test_tokens(self, traced):
        seen = traced("words", "--input", "4x9:int", "--classes", "11")
        assert seen["inputs"]["input"]["high"] == 6
        assert seen["losses"][0]["target"]["shape"] == [36]
        assert seen["losses"][0]["classes"] == 11

    def test_vocab(self, traced):
        seen = traced("words", "--input", "4x90:int", "--classes", "11", "--vocab", "2")
        assert seen["inputs"]["input"]["high"] == 1

    def test_largest_embedding(self, traced):
        seen = traced("Positions", "--input", "40x6:int", "--classes", "50")
        assert seen["inputs"]["input"]["high"] > 40

    def test_one_embedding_each(self, traced):
        seen = traced("Pair", "--input", "200:int", "--input", "200:int", "--classes", "2")
        user, item = seen["inputs"].values()
        assert user["high"] == 3
        assert item["high"] > 500

    def test_own_loss(self, traced):
        assert traced("own", "--input", "8x6")["loss"] > 0

    def test_given_loss_of_the_output_alone(self, traced):
        assert traced("alone", "--input", "8x6")["loss"] > 0

    def test_batch_dim(self, traced):
        seen = traced("Sequence", "--input", "5x4x6", "--classes", "3", "--batch-dim", "1")
        assert seen["batch"] == 4
        assert seen["losses"][0]["target"]["shape"] == [20]

    def test_seed(self, traced):
        words = ("flat", "--input", "8x6", "--classes", "3")
        assert traced(*words)["loss"] == traced(*words)["loss"]
        assert traced(*words)["loss"] != traced(*words, "--seed", "1")["loss"]


class TestRefused:
    @pytest.fixture(autouse=True)
    def models(self, write):
        write(MODELS, "models.py")

    def test_no_data(self, refused):
        said = refused("models.py:flat")
        assert "--input 32x3x32x32 --classes 10" in said

    def test_classes_without_input(self, refused):
        assert "--input" in refused("models.py:flat", "--classes", "3")

    def test_no_classes(self, refused):
        said = refused("models.py:flat", "--input", "8x6")
        assert "a tensor of shape (8, 3)" in said
        assert "--classes N" in said

    def test_loss_that_compares_without_classes(self, refused):
        assert "--classes N" in refused("models.py:unlike", "--input", "8x6")

    def test_loss_of_the_output_alone_with_classes(self, refused):
        said = refused("models.py:alone", "--input", "8x6", "--classes", "3")
        assert "leave out --classes" in said

    def test_wrong_classes(self, refused):
        said = refused("models.py:flat", "--input", "8x6", "--classes", "10")
        assert "shape (8, 3), with no dimension of 10 classes; its last size is 3" in said

    def test_classes_in_another_dimension(self, refused):
        said = refused("models.py:image", "--input", "2x3x8x9", "--classes", "8")
        assert "second or its last dimension" in said

    @pytest.mark.parametrize("option", ["--classes", "--vocab"])
    def test_nought(self, refused, option):
        words = {"--classes": "3", "--vocab": "5"} | {option: "0"}
        flat = [word for pair in words.items() for word in pair]
        assert f"{option} 0 must be at least 1" in refused(
            "models.py:words", "--input", "8x6:int", *flat
        )

    def test_own_loss_with_classes(self, refused):
        said = refused("models.py:own", "--input", "8x6", "--classes", "3")
        assert "a dict with keys ['loss']" in said

    def test_range_unknown(self, refused):
        said = refused("models.py:flat", "--input", "8x6:int", "--classes", "3")
        assert "--vocab N" in said

    def test_vocab_without_integers(self, refused):
        said = refused("models.py:flat", "--input", "8x6", "--classes", "3", "--vocab", "9")
        assert "mark one with :int" in said

    def test_malformed(self, refused):
        assert "is not a shape" in refused("models.py:flat", "--input", "8 by 6")

    @pytest.mark.parametrize("text", ["90000000x90000000", "99999999999999999999x6"])
    def test_too_large(self, refused, text):
        said = refused("models.py:flat", "--input", text, "--classes", "3")
        assert "does not fit into memory" in said

    def test_wrong_shape(self, refused):
        said = refused("models.py:flat", "--input", "8x5", "--classes", "3")
        assert "mat1 and mat2 shapes" in said
        assert "float32[8, 5]" in said

    def test_model_raises(self, refused):
        said = refused("models.py:Picky", "--input", "8x6", "--classes", "3")
        assert "ValueError: not today" in said

    @pytest.mark.parametrize("option", [("--input", "3x6"), ("--classes", "3"), ("--vocab", "9")])
    def test_batch_is_there_already(self, refused, train, option):
        assert f"leave out {option[0]}" in refused("train.py:build", *option)

    @pytest.mark.parametrize("name", ["cuda:99", "gpu"])
    def test_device(self, refused, train, name):
        said = refused("train.py:build", "--device", name)
        assert f"--device {name} cannot be used here" in said
        assert "there is cpu" in said
