"""What must not matter, does not: hypothesis looks for a network where it does."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import by_name
from torch import nn

import signalprop as sp

ACTIVATIONS = [nn.Tanh, nn.Sigmoid, nn.ReLU, nn.GELU, nn.SELU, nn.Softplus]
FEW = settings(max_examples=20, deadline=None)
FEWER = settings(max_examples=8, deadline=None)

# All in float64, where rounding leaves 1e-9 of room after thirty layers.
ROOM = 1e-9

seeds = st.integers(0, 2**31 - 1)


@st.composite
def tasks(draw, normed=True, size=8):
    """A random fully connected network with data, in float64."""
    torch.manual_seed(draw(seeds))
    width = draw(st.integers(3, 9))
    depth = draw(st.integers(1, 5))
    activation = draw(st.sampled_from(ACTIVATIONS))
    norm = normed and draw(st.booleans())
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), activation()]
        layers += [nn.LayerNorm(width)] * norm
    model = nn.Sequential(*layers, nn.Linear(width, 3)).double()
    return model, torch.randn(size, width, dtype=torch.float64), torch.randint(3, (size,))


def alive(trace):
    """Whether every sample counts in every mean."""
    return trace.samples == trace.batch and math.isfinite(trace.decay)


def same_numbers(one, other, room=ROOM):
    assert one.spine == other.spine
    assert one.decay == pytest.approx(other.decay, abs=room)
    assert one.split == pytest.approx(other.split, abs=room)
    for a, b in zip(one.blocks, other.blocks, strict=True):
        assert a.decay == pytest.approx(b.decay, abs=room)
        assert (a.residual, dict(a.parts)) == (b.residual, pytest.approx(dict(b.parts), abs=room))


def same_sites(one, other, factor=1.0, room=1e-8):
    for name, site in one.sites.items():
        theirs = other.sites[name]
        assert theirs.activation.rms == pytest.approx(site.activation.rms, rel=room)
        assert theirs.activation.cosine == pytest.approx(
            site.activation.cosine, abs=room, nan_ok=True
        )
        if site.delta is None:
            assert theirs.delta is None
            continue
        assert theirs.delta.rms == pytest.approx(factor * site.delta.rms, rel=room)
        assert theirs.delta.geometric_mean == pytest.approx(
            factor * site.delta.geometric_mean, rel=room
        )
        assert theirs.delta.cosine == pytest.approx(site.delta.cosine, abs=room, nan_ok=True)
        assert theirs.delta.alive == site.delta.alive


# ---- the size of the loss ------------------------------------------------------------------------


def times(c):
    return lambda output, y: c * F.cross_entropy(output, y)


scales = st.floats(-6, 6).map(lambda e: 10**e)


@FEW
@given(tasks(), scales)
def test_a_larger_loss_scales_delta_and_nothing_else(task, c):
    model, x, y = task
    one, other = (sp.trace(model, (x, y), times(f)) for f in (1.0, c))
    same_numbers(one, other)
    same_sites(one, other, factor=c)
    assert other.loss == pytest.approx(c * one.loss)


@FEW
@given(tasks(), scales)
def test_learning_shares_do_not_depend_on_the_size_of_the_loss(task, c):
    model, x, y = task
    one, other = (sp.diagnose(model, (x, y), times(f)) for f in (1.0, c))
    assert dict(other.learning.share) == pytest.approx(dict(one.learning.share), abs=1e-7)
    assert other.learning.decrease == pytest.approx(c**2 * one.learning.decrease, rel=1e-7)


NETWORKS = [
    "mlp-sigmoid-30",
    "mlp-relu-he-10",
    "mlp-tanh-saturated",
    "mlp-tanh-ordered",
    "mlp-relu-mostly-dead",
    "residual-mlp-grows",
    "resnet-a",
    "attention-only",
    "transformer-encoder-pre",
    "relu-head",
    "convnet",
]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("c", [1e-6, 1e-3, 10.0, 1e6])
def test_the_verdict_does_not_depend_on_the_size_of_the_loss(name, c):
    model, batch, loss = by_name(name).build()
    found = []
    for factor in (1.0, c):
        d = sp.diagnose(model, batch, lambda *a, f=factor: f * loss(*a))
        found.append([(f.code, f.severity) for f in d.findings])
    assert found[0] == found[1]


# ---- the order of units and samples --------------------------------------------------------------


@FEW
@given(tasks(), seeds)
def test_the_order_of_hidden_units_does_not_matter(task, seed):
    model, x, y = task
    other = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        before = None
        for layer in other:
            if isinstance(layer, nn.Linear):
                if before is not None:
                    layer.weight.copy_(layer.weight[:, before])
                before = torch.randperm(layer.out_features)
                if layer is not other[-1]:
                    layer.weight.copy_(layer.weight[before])
                    layer.bias.copy_(layer.bias[before])
    assert torch.allclose(model(x), other(x))
    one, two = (sp.trace(m, (x, y), F.cross_entropy) for m in (model, other))
    same_numbers(one, two)
    same_sites(one, two)
    for name, site in one.sites.items():
        ours, theirs = site.activation, two.sites[name].activation
        assert (theirs.dead, theirs.saturated) == (ours.dead, ours.saturated)


@FEW
@given(tasks(size=10), seeds)
def test_the_order_of_samples_does_not_matter(task, seed):
    model, x, y = task
    torch.manual_seed(seed)
    order = torch.randperm(len(x))
    one = sp.trace(model, (x, y), F.cross_entropy)
    two = sp.trace(model, (x[order], y[order]), F.cross_entropy)
    same_numbers(one, two)
    same_sites(one, two)


@FEW
@given(tasks(size=5), st.integers(2, 4))
def test_repeating_the_batch_changes_no_decay(task, k):
    model, x, y = task
    one = sp.trace(model, (x, y), F.cross_entropy)
    two = sp.trace(model, (x.repeat(k, 1), y.repeat(k)), F.cross_entropy)
    assert two.samples == k * one.samples
    same_numbers(one, two)
    for name, site in one.sites.items():
        assert two.sites[name].activation.rms == pytest.approx(site.activation.rms)
        assert k * two.sites[name].delta.rms == pytest.approx(site.delta.rms)  # mean loss: 1 / n


@FEW
@given(tasks())
def test_the_sum_of_losses_decays_as_their_mean(task):
    model, x, y = task
    one = sp.trace(model, (x, y), F.cross_entropy)
    two = sp.trace(model, (x, y), nn.CrossEntropyLoss(reduction="sum"))
    same_numbers(one, two)
    same_sites(one, two, factor=len(x))


@FEW
@given(tasks())
def test_a_sample_alone_has_the_decay_it_has_in_company(task):
    """Nothing but the mean joins the samples: the decay of a batch is that of its samples."""
    model, x, y = task
    whole = sp.trace(model, (x, y), F.cross_entropy)
    if not alive(whole):
        return
    alone = [sp.trace(model, (x[i : i + 1], y[i : i + 1]), F.cross_entropy) for i in range(len(x))]
    assert sum(t.decay for t in alone) / len(x) == pytest.approx(whole.decay, abs=ROOM)


# ---- layers that do nothing ----------------------------------------------------------------------


def identity(width, bias=False):
    layer = nn.Linear(width, width, bias=bias).double()
    nn.init.eye_(layer.weight)
    return layer


@FEW
@given(tasks(), st.integers(0, 20))
def test_a_linear_split_in_two_by_an_identity_decays_as_before(task, place):
    model, x, y = task
    linear = [i for i, layer in enumerate(model) if isinstance(layer, nn.Linear)]
    place = linear[place % len(linear)] + 1
    more = list(model)
    more.insert(place, identity(model[place - 1].out_features))
    one = sp.trace(model, (x, y), F.cross_entropy)
    two = sp.trace(nn.Sequential(*more), (x, y), F.cross_entropy)
    assert len(two.spine) == len(one.spine) + 1
    assert two.decay == pytest.approx(one.decay, abs=ROOM)
    assert two.split == pytest.approx(one.split, abs=ROOM)
    if math.isfinite(one.decay):
        block = next(b for b in two.blocks if b.end == str(place))
        assert block.decay == pytest.approx(0.0, abs=ROOM)


@FEW
@given(tasks(), st.integers(0, 20), st.sampled_from([nn.Identity, nn.Flatten, nn.Dropout]))
def test_a_module_that_only_passes_on_is_no_part_of_the_spine(task, place, make):
    model, x, y = task
    model = model.eval()
    more = list(model)
    more.insert(place % len(more), make().eval())
    one = sp.trace(model, (x, y), F.cross_entropy)
    two = sp.trace(nn.Sequential(*more).eval(), (x, y), F.cross_entropy)
    assert len(two.spine) == len(one.spine)
    assert two.decay == pytest.approx(one.decay, abs=ROOM)


class Nested(nn.Module):
    """The same layers, one room deeper."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).view(-1, 3).clone()


@FEW
@given(tasks())
def test_wrapping_a_model_changes_names_only(task):
    model, x, y = task
    one = sp.trace(model, (x, y), F.cross_entropy)
    two = sp.trace(Nested(model), (x, y), F.cross_entropy)
    assert [s.removeprefix("inner.") for s in two.spine] == list(one.spine)
    assert two.decay == pytest.approx(one.decay, abs=ROOM)
    assert two.split == pytest.approx(one.split, abs=ROOM)


# ---- what is known exactly -----------------------------------------------------------------------


@FEW
@given(seeds, st.integers(1, 12), st.integers(2, 8), st.floats(0.01, 10))
def test_scaled_rotations_decay_by_the_log_of_the_scale(seed, depth, width, gain):
    """A product of orthogonal matrices times g decays by depth * ln g, in weights alone."""
    torch.manual_seed(seed)
    layers = [nn.Linear(width, width, bias=False).double() for _ in range(depth)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain)
    model = nn.Sequential(*layers)
    trace = sp.trace(
        model, torch.randn(6, width, dtype=torch.float64), lambda out: out.square().sum()
    )
    assert trace.decay == pytest.approx(depth * math.log(gain), abs=1e-9)
    assert trace.split == pytest.approx({"weights": depth * math.log(gain)}, abs=1e-9)


@FEWER
@given(seeds, st.integers(1, 6), st.floats(-0.9, 3))
def test_a_residual_branch_of_c_times_identity_decays_by_the_log_of_one_plus_c(seed, depth, c):
    torch.manual_seed(seed)

    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(identity(5) for _ in range(depth))
            self.head = nn.Linear(5, 2).double()
            for branch in self.branches:
                nn.init.eye_(branch.weight).data.mul_(c)

        def forward(self, x):
            for branch in self.branches:
                x = x + branch(x)
            return self.head(x)

    x = torch.randn(6, 5, dtype=torch.float64)
    trace = sp.trace(Skips(), (x, torch.randint(2, (6,))), F.cross_entropy)
    residual = [b for b in trace.blocks if b.residual]
    assert len(residual) == depth
    for block in residual:
        assert block.decay == pytest.approx(math.log(1 + c), abs=1e-8)
        assert set(block.parts) == {"skip"}


@FEWER
@given(seeds, st.integers(1, 40))
def test_sigmoid_slopes_never_pass_more_than_a_quarter(seed, depth):
    torch.manual_seed(seed)
    layers = [m for _ in range(depth) for m in (nn.Linear(6, 6), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(6, 3)).double()
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))
    trace = sp.trace(model, (x, y), F.cross_entropy)
    assert trace.split["slope"] <= depth * math.log(0.25) + 1e-9
    assert trace.decay == pytest.approx(trace.split["slope"] + trace.split["weights"], abs=1e-9)
