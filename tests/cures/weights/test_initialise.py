"""New weights have the promised variance, and keep everything else."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from tests.cases import CASES, by_name
from tests.cures.everywhere import still_runs
from torch import nn
from torch.nn.utils import parametrizations

from signalprop.cures.cure import DoesNotApply
from signalprop.cures.followed.watching import follow
from signalprop.cures.weights.gains import gain
from signalprop.cures.weights.initialise import (
    critical_init,
    delta_orthogonal_init,
    glorot_init,
    he_init,
    lecun_init,
    orthogonal_init,
    reinitialise,
)
from signalprop.cures.weights.rescale import lsuv, smaller_init
from signalprop.diagnosis.engine import DEFAULT_RULES
from signalprop.errors import SignalpropError
from signalprop.theory.edge import critical_weight_variance

ALL = (
    he_init,
    glorot_init,
    lecun_init,
    orthogonal_init,
    delta_orthogonal_init,
    critical_init,
    reinitialise,
    lsuv,
    smaller_init,
)
NAMED = {"ids": lambda x: x.name}


def applied(cure, model, batch, **options):
    return cure(model, **options) if cure is reinitialise else cure(model, batch, **options)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def mlp(activation, width=256, depth=3):
    layers = [p for _ in range(depth) for p in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def var(layer):
    return float(layer.weight.detach().double().var())


@pytest.mark.parametrize("cure", ALL, **NAMED)
def test_it_treats_what_the_rules_say(cure):
    named = {f.rule.code for f in DEFAULT_RULES if cure.name in f.rule.cures}
    assert set(cure.treats) == named


@pytest.mark.parametrize("cure", ALL, **NAMED)
def test_every_case_runs_after_it_or_is_refused_in_a_sentence(cure):
    done, said = 0, []
    # the compiled and the large ones are in the battery of trials
    for case in CASES[::5]:
        model, batch, loss = case.build()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = copy.deepcopy(model.state_dict()) if case.name != "lazy-parameters" else {}
            try:
                new = applied(cure, model, batch)
            except SignalpropError as error:
                said.append(str(error))
                continue
            finally:
                if before and not any(v.is_meta for v in before.values()):
                    assert same(before, model.state_dict()), case.name
            if case.health == "odd":
                continue
            still_runs(case, new, batch, loss)
        assert list(new.state_dict()) == list(before), case.name
        done += 1
    assert all(len(sentence) > 15 for sentence in said)
    assert done >= (1 if cure in (delta_orthogonal_init, smaller_init) else 8)


@pytest.mark.parametrize(
    ("activation", "squared"),
    [
        (nn.ReLU, 2.0),
        (lambda: nn.LeakyReLU(0.3), 2 / 1.09),
        (nn.PReLU, 2 / (1 + 0.25**2)),
        (nn.GELU, 2.0),
    ],
)
def test_he_takes_the_slope_of_what_follows(activation, squared):
    model = mlp(activation)
    for new in (he_init(model), he_init(model, torch.randn(8, 256))):
        assert var(new[0]) == pytest.approx(squared / 256, rel=0.05)
        assert var(new[-1]) == pytest.approx(1 / 256, rel=0.15)  # the head: no rectifier behind it
        assert not new[0].bias.any()


def test_he_counts_what_goes_out():
    new = he_init(nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 9)), mode="out")
    assert var(new[0]) == pytest.approx(2 / 512, rel=0.05)
    with pytest.raises(SignalpropError, match="mode"):
        he_init(mlp(nn.ReLU), mode="both")


def test_he_does_not_apply_to_tanh_or_nothing():
    with pytest.raises(DoesNotApply, match="no rectifier"):
        he_init(mlp(nn.Tanh))
    with pytest.raises(DoesNotApply, match="no linear"):
        he_init(nn.Sequential(nn.Tanh()), torch.randn(3, 4))


class Calls(nn.Module):
    """Functions, sums, norms and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(200, 200) for _ in range(3))
        self.norm, self.head = nn.BatchNorm1d(200), nn.Linear(200, 200)

    def forward(self, x):
        y = F.leaky_relu(self.a(x), 0.5)
        z = torch.tanh(F.dropout(self.norm(self.b(y)), 0.1, self.training))
        return self.head(F.relu(self.c(z) + y).flatten(1))


def test_functions_in_a_forward_are_seen_with_data():
    model, x = Calls(), torch.randn(16, 200)
    found = follow(model, x).layers
    assert [(p, [u.op for u in layer.uses]) for p, layer in found.items()] == [
        ("a", ["leaky_relu"]),
        ("b", ["tanh"]),
        ("c", ["relu"]),
        ("head", []),
    ]
    assert found["b"].normalised
    assert not found["c"].normalised
    new = he_init(model, x)
    assert var(new.a) * 200 == pytest.approx(2 / 1.25, rel=0.05)
    assert torch.equal(new.b.weight, model.b.weight)  # in front of tanh: not He's
    assert var(new.c) * 200 == pytest.approx(2, rel=0.05)
    with pytest.raises(SignalpropError, match="give a batch"):
        critical_init(model)


def test_looking_leaves_nothing_behind():
    model = Calls()
    before, rng = state(model), torch.get_rng_state()
    follow(
        model, (torch.randn(16, 200, generator=torch.Generator().manual_seed(1)), torch.zeros(16))
    )
    assert same(before, state(model))
    assert torch.equal(rng, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("relu", 2**0.5), ("tanh", 1.0), ("selu", 1.0), ("gelu", 1.5335), ("sigmoid", 10.1493)],
)
def test_gains(name, expected):
    uses = follow(mlp({"relu": nn.ReLU, "tanh": nn.Tanh, "selu": nn.SELU, "gelu": nn.GELU,
                       "sigmoid": nn.Sigmoid}[name], 8, 1)).uses  # fmt: skip
    assert gain(uses[0]) == pytest.approx(expected, rel=1e-3)


def test_lecun_and_glorot():
    x = torch.randn(4, 128)
    model = nn.Sequential(nn.Linear(128, 512), nn.Tanh(), nn.Linear(512, 64))
    assert var(lecun_init(model, x)[0]) == pytest.approx(1 / 128, rel=0.05)
    assert var(glorot_init(model, x, gain=2.0)[0]) == pytest.approx(4 * 2 / 640, rel=0.05)
    with pytest.raises(SignalpropError, match="gain"):
        glorot_init(model, gain=-1.0)


def test_orthogonal_has_the_gain_of_what_follows():
    new = orthogonal_init(mlp(nn.ReLU, 32))
    for layer, g in ((new[0], 2**0.5), (new[-1], 1.0)):
        values = torch.linalg.svdvals(layer.weight.detach().double())
        assert torch.allclose(values, torch.full_like(values, g), atol=1e-5)


def test_delta_orthogonal_turns_every_position():
    model = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.Tanh(), nn.Conv2d(8, 4, 3))
    new = delta_orthogonal_init(model, torch.randn(2, 6, 8, 8))
    x = torch.randn(2, 6, 8, 8)
    assert torch.allclose(new[0](x).norm(dim=1), x.norm(dim=1), atol=1e-5)
    kernel = new[2].weight.detach().flatten(1)  # fewer outputs than inputs: the matrix
    assert torch.allclose(kernel @ kernel.T, torch.eye(4), atol=1e-5)


def test_critical_is_on_the_edge_layer_by_layer():
    model = nn.Sequential(
        *(nn.Linear(400, 400), nn.Tanh(), nn.Linear(400, 400)), nn.ReLU(), nn.Linear(400, 400)
    )
    new = critical_init(model)
    assert var(new[0]) * 400 == pytest.approx(critical_weight_variance("tanh", 0.05), rel=0.02)
    assert float(new[0].bias.detach().var()) == pytest.approx(0.05, rel=0.25)
    assert var(new[2]) * 400 == pytest.approx(2, rel=0.02)
    assert not new[2].bias.any()
    assert var(new[4]) * 400 == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", ["mlp-tanh-chaotic", "mlp-relu-30-default", "mlp-sigmoid-30"])
def test_critical_keeps_the_error_signal(name):
    model, (x, y), loss = by_name(name).build()
    torch.manual_seed(0)
    new = critical_init(model, (x, y))
    ends = []
    for module in (new[1], new[-2]):
        module.register_forward_hook(lambda m, a, out: (out.retain_grad(), ends.append(out))[1])
    loss(new(x), y).backward()
    ratio = ends[0].grad.norm() / ends[-1].grad.norm()
    assert 0.02 < float(ratio) < 50


def test_smaller_weights_do_not_saturate():
    for name in ("mlp-tanh-saturated", "mlp-sigmoid-saturated"):
        model, (x, y), _ = by_name(name).build()
        new = smaller_init(model, (x, y))
        u = new[0](x)
        slope = 1 - u.tanh() ** 2 if "tanh" in name else 4 * u.sigmoid() * (1 - u.sigmoid())
        assert float((slope < 0.05).float().mean()) <= 0.25
        scale = new[0].weight / model[0].weight
        assert torch.allclose(scale, scale[0, 0].expand_as(scale), rtol=1e-4)
    with pytest.raises(DoesNotApply, match="saturated"):
        smaller_init(mlp(nn.Tanh), torch.randn(8, 256))


def test_unit_variance():
    torch.manual_seed(0)
    model, x = mlp(nn.ReLU, 64, 6), torch.randn(256, 64)
    new = lsuv(model, (x, torch.zeros(256)))
    h = x
    for module in new:
        h = module(h)
        if isinstance(module, nn.Linear):
            assert abs(float(h.detach().var(correction=0)) - 1) < 0.1


def test_what_is_left_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].weight.requires_grad_(False)
    nn.init.zeros_(model[4].weight)
    new = he_init(model)
    assert torch.equal(new[0].weight, model[0].weight)
    assert not torch.equal(new[2].weight, model[2].weight)
    assert not new[4].weight.any()
    with pytest.raises(DoesNotApply, match="frozen"):
        he_init(model.requires_grad_(False))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid = nn.Embedding(20, 16), nn.Linear(16, 16)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = F.relu(self.mid(self.embed(tokens)))
        return self.head(x + self.attend(x, x, x)[0])


def test_embeddings_ties_and_attention_stay():
    model = Tied()
    new = he_init(model, torch.randint(20, (3, 5)))
    assert new.head.weight is new.embed.weight
    changed = [k for k, v in new.state_dict().items() if not torch.equal(v, model.state_dict()[k])]
    assert changed == ["mid.weight", "mid.bias"]


def test_parametrised_weights():
    def net(wrap):
        return nn.Sequential(wrap(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 2))

    torch.manual_seed(0)
    new = he_init(net(parametrizations.weight_norm))
    assert var(new[0]) == pytest.approx(2 / 64, rel=0.1)
    model = net(parametrizations.spectral_norm)
    key = "0.parametrizations.weight.original"
    before = state(model)
    new = he_init(model, torch.randn(3, 64))  # sets its own scale
    assert torch.equal(state(new)[key], before[key])
    again = reinitialise(model)
    assert same(before, state(model))
    assert not torch.equal(state(again)[key], before[key])
    assert model[0].weight.shape == again[0].weight.shape == (64, 64)


def test_it_keeps_modes_dtypes_and_the_original_or_changes_in_place():
    model, x = Calls().double().eval(), torch.randn(16, 200).double()
    model.c.train()
    before = state(model)
    new = he_init(model, x)
    assert same(before, state(model))
    assert [m.training for m in new.modules()] == [m.training for m in model.modules()]
    assert {p.dtype for p in new.parameters()} == {torch.float64}
    assert he_init(model, x, inplace=True) is model
    assert not same(before, state(model))


def test_an_error_changes_nothing():
    model = Calls()
    before = state(model)
    for cure in (he_init, lsuv, smaller_init):
        with pytest.raises(SignalpropError, match="raised on the batch"):
            cure(model, torch.randn(4, 7), inplace=True)
    assert same(before, state(model))


def test_random_numbers_are_torchs_own():
    model = mlp(nn.ReLU, 16)
    torch.manual_seed(3)
    first = he_init(model)
    torch.manual_seed(3)
    assert same(state(first), state(he_init(model)))
    assert not same(state(first), state(he_init(model)))


class Scheme(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def reset_parameters(self):
        nn.init.constant_(self.a.weight, 7.0)


def test_reinitialise_uses_each_modules_own():
    model = nn.Sequential(Scheme(), nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(2.0)
        model[0].b.running_mean.fill_(3.0)
    new = reinitialise(model)
    assert (new[0].a.weight == 7).all()  # the network's own scheme has the last word
    assert (new[0].b.weight == 1).all()
    assert not new[0].b.running_mean.any()
    assert new[1].weight.unique().numel() > 10
    only = reinitialise(model, sites=["2"])
    assert (only[1].weight == 2).all()
    assert only[2].weight.unique().numel() > 10
    with pytest.raises(SignalpropError, match="no module 'x'"):
        reinitialise(model, sites="x")
    with pytest.raises(DoesNotApply):
        reinitialise(nn.Sequential(nn.ReLU()))
