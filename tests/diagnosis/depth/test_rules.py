"""SP101 to SP109: a sick, a healthy and a silent network each, limits, and the numbers told."""

import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name
from tests.diagnosis.support import evidence_of, features, judge, labels, rehearsal
from torch import nn

from signalprop.diagnosis.depth import backward as back
from signalprop.diagnosis.depth import forward as forth
from signalprop.diagnosis.depth import spine
from signalprop.diagnosis.engine import diagnose
from signalprop.diagnosis.rule import NotApplicable

WIDTH = 16
RULES = {r.rule.code: r for r in (*back.BACKWARD_RULES, *forth.FORWARD_RULES)}


def stack(depth, activation=nn.Tanh, std=1.0):
    layers = []
    for _ in range(depth):
        linear = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(linear.weight, std=std / WIDTH**0.5)
        layers += [linear, activation()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 5))


def seen(model, n=32, **options):
    """Evidence around a real pass over a classification batch."""
    return evidence_of(
        model, (features(n, WIDTH), labels(max(n, 5))[:n]), F.cross_entropy, **options
    )


def diagnosed(name):
    case = by_name(name)
    model, batch, loss = case.build()
    return diagnose(model, batch, loss, case.optimizer(model))


def result(found, code):
    return next(r for r in found.results if r.code == code)


def with_decays(evidence, **decays):
    """The same evidence, where the named blocks (by their end site) decay as given."""
    blocks = []
    for b in evidence.trace.blocks:
        decay = decays.get(f"s{b.end}", 0.0)
        parts = dict.fromkeys(b.parts, 0.0) | {next(iter(b.parts)): decay}
        blocks.append(replace(b, decay=decay, parts=parts))
    return replace(evidence, trace=replace(evidence.trace, blocks=tuple(blocks)))


def with_sites(evidence, values):
    """The same evidence, where the activations of the named sites are as given."""
    sites = dict(evidence.trace.sites)
    for name, changes in values.items():
        sites[name] = replace(sites[name], activation=replace(sites[name].activation, **changes))
    return replace(evidence, trace=replace(evidence.trace, sites=sites))


SICK = {
    "SP101": "mlp-sigmoid-30",
    "SP102": "mlp-relu-explodes",
    "SP103": "mlp-quiet-branch",
    "SP104": "mlp-tanh-tiny-weights",
    "SP105": "mlp-relu-explodes",
    "SP106": "mlp-layer-norm-60",
    "SP107": "mlp-tanh-chaotic",
    "SP108": "attention-only",
    "SP109": "residual-mlp-grows",
}
HEALTHY = {
    **dict.fromkeys(("SP101", "SP102", "SP103", "SP104", "SP105", "SP106"), "mlp-relu-he-20"),
    "SP107": "mlp-tanh-xavier-8",
    "SP108": "vit",
    "SP109": "residual-mlp-preln",
}


@pytest.mark.parametrize("code", SICK)
def test_sick(code):
    found = diagnosed(SICK[code])
    own = [f for f in found.findings if f.code == code]
    assert len(own) == 1
    assert own[0].severity == result(found, code).outcome == "issue"
    assert own[0].sites
    assert own[0].cures == RULES[code].rule.cures
    known = {*found.trace.sites, *(w.module for w in found.trace.weights.values())}
    assert set(own[0].sites) <= known
    below = code in ("SP101", "SP103", "SP104", "SP106", "SP108")
    assert (own[0].value < own[0].threshold) == below


@pytest.mark.parametrize("code", HEALTHY)
def test_healthy(code):
    assert result(diagnosed(HEALTHY[code]), code).outcome == "passed"


# ---- backward ----------------------------------------------------------------------------------


def idle_below(model, layers):
    """A rehearsal in which the named layers have next to no share."""
    names = [n for n in model._modules if list(model.get_submodule(n).parameters())]
    share = {n: 1e-12 if n in layers else 1 / (len(names) - len(layers)) for n in names}
    return rehearsal(model, share=share, later_share=share, update_ratio=dict.fromkeys(names, 1e-9))


@pytest.mark.parametrize(("nats", "fires"), [(-6.99, False), (-7.01, True)])
def test_vanishing_needs_seven_nats(nats, fires):
    model = stack(4)
    evidence = with_decays(seen(model, learning=idle_below(model, {"0"})), s5=nats)
    assert bool(judge(back.vanishing, evidence)) == fires


@pytest.mark.parametrize("share", ["share", "later_share"])
def test_vanishing_needs_a_layer_that_stays_idle(share):
    """Adam gives a layer its share although delta is a millionth: no illness."""
    model = stack(4)
    sick = with_decays(seen(model, learning=idle_below(model, {"0"})), s5=-12.0)
    assert judge(back.vanishing, sick)
    learns = getattr(sick.learning, share) | {"0": 0.05}
    forgiven = replace(sick, learning=replace(sick.learning, **{share: learns}))
    assert not judge(back.vanishing, forgiven)


def test_vanishing_splits_the_loss_and_the_split_adds_up():
    found = diagnosed("mlp-sigmoid-30")
    told = next(f for f in found.findings if f.code == "SP101")
    drop = spine.largest_drop(found.trace)
    assert told.value == drop.nats
    assert told.value == pytest.approx(found.decay, abs=0.5)
    assert (told.unit, told.threshold) == ("nats", -7)
    assert f"loses {-drop.nats:.1f} nats" in told.explanation
    assert f"{drop.nats / 31:+.2f} per layer over 31 layers" in told.explanation
    parts = re.findall(r"(?:activation slope|weights|other) ([+-][\d.]+)", told.explanation)
    assert len(parts) >= 2
    assert math.fsum(map(float, parts)) == pytest.approx(told.value, abs=0.15)
    assert sum(sum(b.parts.values()) for b in drop.blocks) == pytest.approx(drop.nats, abs=1e-3)
    assert told.sites == (drop.lower, drop.upper)


def test_vanishing_says_where_delta_becomes_exactly_zero():
    told = next(f for f in diagnosed("mlp-relu-dead").findings if f.code == "SP101")
    assert told.value == -math.inf
    assert "exactly zero" in told.explanation
    assert "no error signal at all" in told.explanation


def test_depth_counts_gated_blocks_as_layers():
    """A highway block is one layer, although its sum of two products is no plain residual one."""

    class Highway(nn.Module):
        def __init__(self):
            super().__init__()
            self.t, self.g = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            nn.init.constant_(self.g.bias, 0.0)

        def forward(self, x):
            gate = torch.sigmoid(self.g(x))
            return gate * torch.tanh(self.t(x)) + (1 - gate) * x

    model = nn.Sequential(*(Highway() for _ in range(30)), nn.Linear(WIDTH, 5))
    drop = spine.largest_drop(seen(model).trace)
    assert drop.layers == 31


@pytest.mark.parametrize(("nats", "fires"), [(6.99, False), (7.01, True)])
def test_exploding_needs_seven_nats(nats, fires):
    evidence = with_decays(seen(stack(4)), s5=nats)
    found = judge(back.exploding, evidence)
    assert bool(found) == fires
    if fires:
        assert found[0].value == pytest.approx(nats)
        assert "grows by 7.0 nats (a factor 1108)" in found[0].explanation


def test_exploding_leaves_out_the_scale_of_the_input():
    """LayerNorm of an input of 1e-5 multiplies delta by 1e5, and that is all it does."""
    model = nn.Sequential(nn.LayerNorm(WIDTH, eps=1e-16), *stack(3))
    batch = 1e-5 * features(32, WIDTH), labels(32)
    evidence = evidence_of(model, batch, F.cross_entropy)
    assert spine.largest_rise(evidence.trace).nats > 9
    assert not judge(back.exploding, evidence)


def test_backward_rules_need_a_spine():
    evidence = seen(nn.Linear(WIDTH, 5), learning=rehearsal(nn.Linear(WIDTH, 5)))
    for rule in (back.vanishing, back.exploding, back.chaos):
        with pytest.raises(NotApplicable, match="no chain of layers"):
            judge(rule, evidence)
    with pytest.raises(NotApplicable, match="one layer"):
        judge(back.idle_layer, evidence)


def idle_one(share=1e-9, ratio=1e-9):
    model = stack(11)
    learning = rehearsal(model)
    first = {**learning.share, "8": share}
    ratios = {**learning.update_ratio, "8": ratio}
    learning = replace(learning, share=first, later_share=first, update_ratio=ratios)
    return with_decays(seen(model, learning=learning))


@pytest.mark.parametrize(
    ("share", "ratio", "fires"),
    [(0.9e-7 / 12, 0.9e-6, True), (1.1e-7 / 12, 0.9e-6, False), (0.9e-7 / 12, 1.1e-6, False)],
)
def test_idle_layer_needs_no_share_and_no_movement(share, ratio, fires):
    found = judge(back.idle_layer, idle_one(share, ratio))
    assert bool(found) == fires
    if fires:
        assert found[0].sites == ("8",)
        assert found[0].value == share
        assert found[0].threshold == pytest.approx(1e-7 / 12)
        assert found[0].severity == "tip"  # one of twelve
        assert f"by {ratio:.0e} of their weights" in found[0].explanation


def test_idle_layers_are_an_issue_when_they_are_many():
    evidence = idle_one()
    share = {**evidence.learning.share, "4": 0.0}
    learning = replace(evidence.learning, share=share, later_share=share)
    learning = replace(learning, update_ratio={**learning.update_ratio, "4": 0.0})
    (found,) = judge(back.idle_layer, replace(evidence, learning=learning))
    assert found.severity == "issue"
    assert set(found.sites) == {"4", "8"}


def test_idle_layer_leaves_the_rest_to_other_rules():
    evidence = idle_one()
    assert not judge(back.idle_layer, with_decays(evidence, s13=-8.0))  # SP101's
    assert not judge(back.idle_layer, with_decays(evidence, s13=8.0))  # SP102's
    rounded = dict.fromkeys(evidence.learning.share, 0.9)
    with pytest.raises(NotApplicable, match="SP211"):
        judge(
            back.idle_layer,
            replace(evidence, learning=replace(evidence.learning, unmoved=rounded)),
        )


def chaotic(gain, layers=7):
    """A tanh stack whose delta grows by `gain` nats from the first to the last activation."""
    evidence = seen(stack(layers))
    names = [s.name for s in spine.hidden(evidence.trace) if s.op == "tanh"]
    rms = {"rms": 0.6, "cosine": 0.1}
    evidence = with_sites(evidence, dict.fromkeys(names, rms))
    return with_decays(evidence, **{f"s{names[-1]}": gain})


@pytest.mark.parametrize(("gain", "fires"), [(2.99, False), (3.01, True)])
def test_chaos_needs_three_nats(gain, fires):
    found = judge(back.chaos, chaotic(gain))
    assert bool(found) == fires
    if fires:
        assert found[0].value == pytest.approx(gain)
        assert f"{math.exp(gain):.0f} times as large" in found[0].explanation
        assert f"{gain / 6:+.2f} nats per layer over 6 layers" in found[0].explanation


def test_chaos_needs_a_rate_per_layer_and_samples_apart():
    assert judge(back.chaos, chaotic(3.3, layers=65))
    assert not judge(back.chaos, chaotic(3.1, layers=65))
    evidence = chaotic(5.0)
    last = spine.hidden(evidence.trace)[-1].name
    assert not judge(back.chaos, with_sites(evidence, {last: {"cosine": 0.9}}))


@pytest.mark.parametrize(
    "model", [stack(8, nn.ReLU), stack(2)], ids=["unbounded", "too-few-layers"]
)
def test_chaos_is_for_chains_of_bounded_activations(model):
    with pytest.raises(NotApplicable, match="bounded"):
        judge(back.chaos, seen(model))


# ---- forward -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("nats", "fires"), [(-6.99, False), (-7.01, True)])
def test_activations_vanish_at_seven_nats(nats, fires):
    evidence = seen(stack(4))
    names = [s.name for s in spine.hidden(evidence.trace)]
    levels = {n: {"rms": 0.5} for n in names} | {names[-1]: {"rms": 0.5 * math.exp(nats)}}
    found = judge(forth.activations_vanish, with_sites(evidence, levels))
    assert bool(found) == fires
    if fires:
        assert found[0].value == pytest.approx(nats)
        assert f"to {0.5 * math.exp(nats):.2g} at {names[-1]}" in found[0].explanation


@pytest.mark.parametrize(("nats", "fires"), [(6.99, False), (7.01, True)])
def test_activations_explode_at_seven_nats(nats, fires):
    evidence = seen(stack(4))
    names = [s.name for s in evidence.trace.spine_sites()]
    levels = {n: {"rms": 2.0} for n in names} | {"5": {"rms": 2 * math.exp(nats)}}
    found = judge(forth.activations_explode, with_sites(evidence, levels))
    assert bool(found) == fires
    small = levels | {names[0]: {"rms": 1e-3}}  # one that starts small is no explosion by itself
    found = judge(forth.activations_explode, with_sites(evidence, small))
    assert bool(found) == (nats + math.log(2) > 7)


@pytest.mark.parametrize("rule", [forth.activations_vanish, forth.activations_explode])
def test_forward_rules_need_three_activations(rule):
    with pytest.raises(NotApplicable, match="fewer than three"):
        judge(rule, seen(nn.Linear(WIDTH, 5)))


def test_indistinguishable_needs_samples_that_differ():
    with pytest.raises(NotApplicable, match="at least 4 samples, got 3"):
        judge(forth.indistinguishable, seen(stack(8), n=3))
    same = torch.ones(8, WIDTH), torch.zeros(8, dtype=torch.long)
    with pytest.raises(NotApplicable, match="do not differ at the input"):
        judge(forth.indistinguishable, evidence_of(stack(8), same, F.cross_entropy))
    with pytest.raises(NotApplicable, match="no hidden activation"):
        judge(forth.indistinguishable, seen(nn.Linear(WIDTH, 5)))


def rehearsed(before, after):
    """A deep stack whose samples keep these shares of their distance, now and after updates."""
    evidence = seen(stack(12, std=0.4), learning=rehearsal(stack(12)))
    start, last = (spine.hidden(evidence.trace)[i].name for i in (0, -1))
    now, then = (
        with_sites(evidence, {start: {"cosine": 0.0}, last: {"cosine": 1 - share}}).trace
        for share in (before, after)
    )
    return replace(evidence, trace=now, later=then), last


@pytest.mark.parametrize(
    ("before", "after", "fires"),
    [
        (1e-5, 1.05e-5, True),  # as close as before
        (1e-5, 1.2e-5, False),  # pulled apart
        (2.1e-4, 2.1e-4, False),  # not close enough
        (4e-2, 3.5e-3, True),  # driven together
        (4e-2, 6e-3, False),  # a ResNet with GroupNorm, and it trains
    ],
)
def test_indistinguishable_looks_at_the_distance_before_and_after(before, after, fires):
    evidence, last = rehearsed(before, after)
    found = judge(forth.indistinguishable, evidence)
    assert bool(found) == fires
    if fires:
        assert found[0].value == pytest.approx(after, rel=1e-3)
        assert found[0].value < found[0].threshold
        assert found[0].sites == (last,)


@pytest.mark.parametrize(("near", "fires"), [(0.0101, False), (0.0099, True)])
def test_token_collapse_at_a_hundredth(near, fires):
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(6 * WIDTH, 5))
    evidence = evidence_of(model, (torch.randn(8, 6, WIDTH), labels(8)), F.cross_entropy)
    tokens = [s for s in evidence.trace.sites.values() if s.activation.token_cosine is not None]
    levels = {
        tokens[0].name: {"token_cosine": 0.0},
        tokens[-1].name: {"token_cosine": 1 - near},
    }
    found = judge(forth.token_collapse, with_sites(evidence, levels))
    assert bool(found) == fires
    if fires:
        assert found[0].value == pytest.approx(near)
        assert f"{1 - near:.4f} at {tokens[-1].name}" in found[0].explanation


def test_token_collapse_needs_tokens():
    with pytest.raises(NotApplicable, match="no stream of tokens"):
        judge(forth.token_collapse, seen(stack(4)))


def stream(per_block, blocks=24):
    model, batch, loss = by_name("residual-mlp-grows").build()
    evidence = evidence_of(model, batch, loss)
    ends = [b.end for b in evidence.trace.blocks if b.residual][:blocks]
    return with_sites(evidence, {n: {"rms": math.exp(per_block * i)} for i, n in enumerate(ends)})


@pytest.mark.parametrize(("per_block", "fires"), [(0.149, False), (0.151, True)])
def test_stream_grows_needs_a_rate(per_block, fires):
    found = judge(forth.stream_grows, stream(per_block))
    assert bool(found) == fires
    if fires:
        assert found[0].value == pytest.approx(per_block)
        assert f"a factor {math.exp(per_block):.2f} per block" in found[0].explanation


def test_stream_grows_needs_a_factor_of_thirty_and_four_blocks():
    assert not judge(forth.stream_grows, stream(0.147))
    with pytest.raises(NotApplicable, match="four residual blocks"):
        judge(forth.stream_grows, seen(stack(4)))
