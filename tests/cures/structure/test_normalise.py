"""Normalisation is put in front of hidden activations, and computes what it should."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name
from tests.cures.everywhere import on_all_cases, same_elsewhere
from torch import nn

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.structure.normalise import group_norm, input_batchnorm, normalise
from signalprop.errors import SignalpropError


def net(*, bias: float = 0.0) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    nn.init.constant_(made[0].bias, bias)
    return made


def task(n: int = 32):
    return torch.randn(n, 6), torch.randint(3, (n,))


def standard(x: torch.Tensor, dims) -> torch.Tensor:
    """Written out, in float64."""
    x = x.double()
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt()


@pytest.mark.parametrize(("kind", "dim"), [("batch", 0), ("layer", 1), ("auto", 0)])
def test_normalise_is_norm_between_layer_and_activation(kind, dim):
    model, data = net(bias=3.0), task()
    cured = normalise(model, data, kind=kind)
    x = data[0].double()
    model = model.double()
    x = F.relu(standard(model[0](x), dim))
    x = torch.tanh(standard(model[2](x), dim))
    torch.testing.assert_close(cured(data[0]).double(), model[4](x), rtol=1e-4, atol=1e-5)


def test_normalise_in_groups():
    model, data = net(), task(4)
    cured = normalise(model, data, kind="group")
    assert cured[0].norm.num_groups == 2
    x = standard(model[0](data[0]).reshape(4, 2, 8), 2).reshape(4, 16)
    torch.testing.assert_close(cured[:1](data[0]).double(), x, rtol=1e-4, atol=1e-5)


def test_normalise_keeps_names_and_classes():
    model = net()
    cured = normalise(model, task())
    new = set(cured.state_dict()) - set(model.state_dict())
    assert {name.rpartition(".")[0] for name in new} == {"0.norm", "2.norm"}
    assert not set(model.state_dict()) - set(cured.state_dict())
    assert [type(m) for m in cured] == [type(m) for m in model]


@pytest.mark.parametrize(
    ("shape", "layer", "expected"),
    [
        ((16, 6), nn.Linear(6, 9), nn.BatchNorm1d),
        ((4, 6), nn.Linear(6, 9), nn.LayerNorm),
        ((16, 5, 6), nn.Linear(6, 9), nn.LayerNorm),
        ((16, 6, 5), nn.Conv1d(6, 9, 3), nn.BatchNorm1d),
        ((16, 6, 5, 5), nn.Conv2d(6, 9, 3), nn.BatchNorm2d),
        ((16, 6, 4, 4, 4), nn.Conv3d(6, 9, 3), nn.BatchNorm3d),
        ((2, 6, 5, 5), nn.Conv2d(6, 9, 3), nn.GroupNorm),
        ((16, 6, 5, 5), nn.ConvTranspose2d(6, 9, 3), nn.BatchNorm2d),
    ],
)
def test_normalise_takes_what_fits(shape, layer, expected):
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(shape)
    model(x)
    cured = normalise(model, (x, torch.randint(3, shape[:1])))
    assert type(cured[0].norm) is expected
    cured(x).sum().backward()


def test_normalise_of_sequences_by_the_batch():
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    x = torch.randn(8, 5, 6)
    cured = normalise(model, (x, torch.randn(8, 5, 3)), kind="batch")
    expected = standard(model[0](x), (0, 1))
    torch.testing.assert_close(cured[:1](x).double(), expected, rtol=1e-4, atol=1e-5)


class Mixed(nn.Module):
    """One activation module for all; a gate, a frozen layer, a read-out that is squashed."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.pre, self.free = nn.LayerNorm(6), nn.Linear(6, 8)
        self.after_norm, self.frozen = nn.Linear(6, 8), nn.Linear(8, 8)
        self.soft, self.last, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        y = self.act(self.free(x)) + self.act(self.after_norm(self.pre(x)))
        y = self.act(F.dropout(self.last(y), 0.1)) + self.act(self.frozen(y))
        return torch.sigmoid(self.head(y * self.soft(y).softmax(-1))).squeeze()


def test_normalise_where_it_is_needed_only():
    model = Mixed()
    cured = normalise(model, (torch.randn(16, 6), torch.rand(16, 3)))
    new = {k.split(".")[0] for k in set(cured.state_dict()) - set(model.state_dict())}
    assert new == {"free", "last"}


def test_normalise_goes_along_with_copies():
    model, data = net(), task()
    same_elsewhere(normalise(model, data), data[0])
    same_elsewhere(input_batchnorm(model, (10 + data[0], data[1])), data[0])


def test_normalise_brings_dead_units_to_life():
    model, batch, _ = by_name("mlp-relu-dead").build()
    cured = normalise(model, batch)

    def alive(m: nn.Sequential) -> float:
        return (m[:12](batch[0]) > 0).any(0).float().mean().item()

    assert alive(model) < 0.2
    assert alive(cured) > 0.9


def test_normalise_says_why_not():
    with pytest.raises(DoesNotApply):
        normalise(normalise(net(), task()), task())
    with pytest.raises(SignalpropError, match="kind has to be"):
        normalise(net(), task(), kind="weight")
    with pytest.raises(SignalpropError, match="two samples"):
        normalise(net(), task(1), kind="batch")
    model = nn.Sequential(nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 3))
    with pytest.raises(DoesNotApply):  # a layer norm of one unit is zero
        normalise(model, task(), kind="layer")


# group-norm


def test_group_norm_is_for_one_sample_what_it_is_for_many():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
    nn.init.uniform_(model[1].weight), nn.init.uniform_(model[1].bias)
    cured = group_norm(model)
    x = torch.randn(5, 3, 6, 6)
    torch.testing.assert_close(cured(x)[:1], cured(x[:1]))
    assert cured[1].num_groups == 4
    y = standard(model[0](x).reshape(5, 4, 8, 4, 4), (2, 3, 4)).reshape(5, 32, 4, 4)
    y = y * model[1].weight[:, None, None] + model[1].bias[:, None, None]
    torch.testing.assert_close(cured(x).double(), y.relu(), rtol=1e-4, atol=1e-5)


def test_group_norm_keeps_ties_flags_hooks_and_places():
    norm = nn.BatchNorm1d(12, eps=1e-3)
    norm.bias.requires_grad_(False)
    calls = []
    norm.register_forward_hook(lambda *_: calls.append(1))
    model = nn.Sequential(nn.Linear(4, 12), norm, nn.ReLU(), nn.Linear(12, 12), norm).double()
    cured = group_norm(model)
    assert cured[1] is cured[4]
    assert cured[1].eps == 1e-3
    assert cured[1].num_groups == 1
    assert cured[1].weight.dtype == torch.float64
    assert cured[1].weight.requires_grad
    assert not cured[1].bias.requires_grad
    cured(torch.randn(1, 4, dtype=torch.float64))
    assert len(calls) == 2
    lost = set(model.state_dict()) - set(cured.state_dict())
    assert {name.rpartition(".")[2] for name in lost} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    same = group_norm(model, inplace=True)
    assert same is model
    assert isinstance(model[1], nn.GroupNorm)
    assert model[1].weight is norm.weight


def test_group_norm_leaves_frozen_ones_and_says_why_not():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False))
    model[1].eval()
    cured = group_norm(model, groups=4)
    assert isinstance(cured[1], nn.BatchNorm2d)
    assert cured[2].num_groups == 3
    assert cured[2].weight is None
    with pytest.raises(DoesNotApply, match="no BatchNorm"):
        group_norm(net())
    with pytest.raises(SignalpropError, match="groups has to be"):
        group_norm(model, groups=0)
    with pytest.raises(SignalpropError, match="lazy"):
        group_norm(nn.Sequential(nn.LazyBatchNorm1d()))


# input-batchnorm


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_inputs_are_standardised_in_any_unit(scale):
    x = scale * (7 + torch.randn(64, 6) * torch.logspace(-1, 1, 6))
    x[:, 2] = scale
    model = net()
    cured = input_batchnorm(model, (x, torch.randint(3, (64,))))
    seen = []
    cured[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    cured(x)
    vary = [0, 1, 3, 4, 5]
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[0].std(0, False)[vary], torch.ones(5), atol=5e-3, rtol=0)
    assert seen[0][:, 2].abs().max() < 1e-2
    # and from the first batch on in evaluation mode
    cured.eval()(x)
    torch.testing.assert_close(seen[1], seen[0], atol=0.02, rtol=0.02)
    assert not [n for n, _ in cured.named_parameters() if "input_norm" in n]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3), (9, 3, 5, 5)),
        (nn.Conv1d(3, 4, 3), (9, 3, 5)),
        (nn.Linear(3, 4), (9, 5, 3)),
    ],
)
@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_input_norm_of_images_and_sequences(layer, shape, kind):
    x = 50 + 9 * torch.randn(shape)
    cured = input_batchnorm(nn.Sequential(layer), (x, torch.randn(9, 1)), kind=kind)
    seen = []
    cured[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    cured(x)
    dim = len(shape) - 1 if isinstance(layer, nn.Linear) else 1
    over = [d for d in range(len(shape)) if d != dim]
    if kind == "layer":
        over = [dim] if isinstance(layer, nn.Linear) else list(range(1, len(shape)))
    torch.testing.assert_close(seen[0].double(), standard(x, over), atol=1e-3, rtol=1e-3)


class Attends(nn.Module):
    """Attention reads x three times, `left` an input once, `head` more than inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.left, self.head = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x, y):
        z, _ = self.attention(x, key=x, value=x, need_weights=False)
        return self.head(input=z + self.left(input=y)) + self.head(y)


def test_every_reader_and_every_argument():
    x, y = 90 + torch.randn(8, 4, 8), 3 * torch.randn(8, 4, 8)
    model = Attends()
    cured = input_batchnorm(model, ((x, y), torch.randn(8, 4, 1)))
    new = {k.partition(".input_norm")[0] for k in set(cured.state_dict()) - set(model.state_dict())}
    assert new == {"attention", "left"}
    u, v = standard(x, (0, 1)).float(), standard(y, (0, 1)).float()
    expected = model.head(model.attention(u, u, u)[0] + model.left(v)) + model.head(y)
    torch.testing.assert_close(cured(x, y), expected, atol=1e-3, rtol=1e-3)


def test_input_norm_says_why_not():
    with pytest.raises(DoesNotApply, match="are normalised"):
        input_batchnorm(net(), (torch.randn(4096, 6), torch.randint(3, (4096,))))
    embedded = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 3))
    with pytest.raises(DoesNotApply, match="no layer reads"):
        input_batchnorm(embedded, (torch.randint(9, (8,)), torch.randint(3, (8,))))
    with pytest.raises(SignalpropError, match="nan"):
        input_batchnorm(net(), (torch.full((8, 6), torch.nan), torch.randint(3, (8,))))
    with pytest.raises(SignalpropError, match="kind has to be"):
        input_batchnorm(net(), task(), kind="group")


EXPECTED = {
    normalise: {"mlp-sigmoid-30", "own-cell-loop", "siamese", "convnet", "bf16", "autocast-bf16"},
    group_norm: {"resnet-a", "resnet-b", "batchnorm-batch-of-one", "batchnorm1d-batch-of-one"},
    input_batchnorm: {"raw-pixels", "one-feature-unscaled"},
}


@pytest.mark.parametrize("cure", EXPECTED, ids=lambda cure: cure.name)
def test_on_all_cases(cure):
    assert on_all_cases(cure) >= EXPECTED[cure]
