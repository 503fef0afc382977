"""Spine, blocks and decays of the whole zoo, against dominators and raw deltas."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest
import torch
from tests.cases import CASES, by_name
from tests.references import decay_twin

import signalprop as sp

NOT_FINITE = {"nan-data", "own-softmax-overflows", "nan-gradient", "produces-nan"}
REFUSED = {case.name for case in CASES if case.error} | {"labels-from-one"}
WORKING = [case for case in CASES if case.name not in REFUSED]
NAMED = {"ids": lambda case: case.name}

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")


def seen(case):
    torch.manual_seed(1)
    return sp.trace(*case.build())


def raw(case):
    torch.manual_seed(1)
    return decay_twin.run(*case.build(), batch_dim=int("time-first" in case.name))


@pytest.mark.parametrize("case", [c for c in WORKING if c.name not in NOT_FINITE], **NAMED)
def test_spine_and_decays_agree_with_the_twin(case):
    trace, twin = seen(case), raw(case)
    if not trace.spine:
        assert not trace.blocks
        return
    assert list(trace.spine) == twin.spine(trace.spine[0])
    if trace.cut is not None:
        return
    levels, samples = twin.levels(list(trace.spine))
    assert trace.samples <= samples  # other nodes than sites may lie on the spine
    if trace.samples < samples:
        return
    for block, below, above in zip(trace.blocks, levels, levels[1:], strict=False):
        assert block.decay == pytest.approx(below - above, abs=1e-6), (block.start, block.end)
    assert trace.decay == pytest.approx(levels[0] - levels[-1], abs=1e-6 * len(levels))


@pytest.mark.parametrize("case", [c for c in WORKING if c.name not in NOT_FINITE], **NAMED)
def test_the_parts_add_up(case):
    trace = seen(case)
    assert [b.start for b in trace.blocks] == list(trace.spine[:-1])
    assert [b.end for b in trace.blocks] == list(trace.spine[1:])
    for block in trace.blocks:
        if math.isfinite(block.decay):
            assert sum(block.parts.values()) == pytest.approx(block.decay, abs=1e-9)
            by_kind = Counter()
            for step in block.steps:
                by_kind[step.kind] += step.nats
            assert dict(by_kind) == pytest.approx(dict(block.parts), abs=1e-9)
    if math.isfinite(trace.decay):
        assert sum(trace.split.values()) == pytest.approx(trace.decay, abs=1e-3)
        assert sum(trace.split.values()) == pytest.approx(trace.decay, abs=1e-9)
    else:
        assert trace.decay == -math.inf
        assert trace.cut in trace.spine
        assert not any(math.isnan(nats) for nats in trace.split.values())


@pytest.mark.parametrize("case", WORKING, **NAMED)
def test_names_are_readable_and_unique(case):
    model, batch, loss = case.build()
    trace = sp.trace(model, batch, loss)
    while inner := getattr(model, "_orig_mod", None):
        model = inner
    if isinstance(model, torch.nn.DataParallel):
        model = model.module
    # a compiled part and its wrapper are one place
    modules = {path.replace("._orig_mod", "") for path, _ in model.named_modules()}
    for name, site in trace.sites.items():
        assert site.name == name
        assert re.fullmatch(r"[A-Za-z0-9_.:]+(#\d+)?", name), name
        assert site.module in modules or site.module == "loss"
        inside = not site.module or name.startswith(site.module)
        assert inside, (name, site.module)
        if name.isdigit():  # a bare number only where it is the user's own name for a module
            assert name in modules
    assert [s.order for s in trace.sites.values()] == list(range(len(trace.sites)))
    assert len(set(trace.spine)) == len(trace.spine)
    assert set(trace.spine) <= set(trace.sites)
    for block in trace.blocks:
        assert set(block.inner) <= set(trace.sites)
        assert not set(block.inner) & set(trace.spine)


# ---- transformers: the spine is the residual stream ----------------------------------------------


def stream(trace):
    return [name for name in trace.spine if trace.sites[name].op == "add"]


@pytest.mark.parametrize(("name", "blocks"), [("gpt2", 4), ("llama", 4), ("vit", 4), ("bert", 4)])
def test_the_spine_of_a_transformer_is_its_residual_stream(name, blocks):
    """Two additions per block, each residual, and nothing of what lies inside the branches."""
    trace = seen(by_name(name))
    residual = [b for b in trace.blocks if b.residual]
    assert len(residual) == 2 * blocks
    assert all(trace.sites[b.end].op == "add" for b in residual)
    # beside the stream: the embedding, post-norms, the last norm, and the head
    others = [n for n in trace.spine if n not in {b.end for b in residual}]
    assert not [n for n in others if re.search(r"attn|mlp|attention\.(self|q|k|v)", n)]
    for b in residual:
        assert set(b.parts) <= {"skip", "other"}
        assert any(re.search(r"attn|attention|mlp|intermediate|fc|ffn", n) for n in b.inner), b


def test_the_spine_of_gpt2_in_full():
    trace = seen(by_name("gpt2"))
    assert [n for n in trace.spine if n.startswith("transformer.h")] == [
        name for i in range(4) for name in (f"transformer.h.{i}.add", f"transformer.h.{i}.add#2")
    ]
    assert trace.spine[-2:] == ("transformer.ln_f", "lm_head")


def test_the_spine_of_llama_in_full():
    trace = seen(by_name("llama"))
    assert [n for n in trace.spine if n.startswith("model.layers")] == [
        name for i in range(4) for name in (f"model.layers.{i}.add", f"model.layers.{i}.add#2")
    ]
    assert trace.spine[0] == "model.embed_tokens"
    assert trace.spine[-2:] == ("model.norm", "lm_head")


def test_the_spine_of_bert_has_a_norm_after_every_addition():
    trace = seen(by_name("bert"))
    residual = [b for b in trace.blocks if b.residual]
    after = {b.start: b.end for b in trace.blocks}
    assert all(trace.sites[after[b.end]].kind == "normalisation" for b in residual)


# ---- convolutional networks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "identity", "projected"),
    [("resnet-a", 3, 1), ("resnet-20", 7, 2), ("resnet-b", 3, 1), ("mlp-mixer", 8, 0)],
)
def test_the_residual_blocks_of_a_resnet(name, identity, projected):
    trace = seen(by_name(name))
    additions = [b for b in trace.blocks if trace.sites[b.end].op == "add"]
    assert len(additions) == identity + projected
    assert sum(b.residual for b in additions) == identity
    for b in additions:
        assert b.inner
        assert set(b.parts) <= ({"skip"} if b.residual else {"skip", "other"}), b.parts
        if b.residual:
            assert sum(b.branch.values()) != 0.0


def test_what_a_skip_alone_does_is_nothing():
    """With a branch of zeros a residual block keeps delta: I + 0."""
    model, batch, loss = by_name("residual-mlp-rezero").build()
    trace = sp.trace(model, batch, loss)
    residual = [b for b in trace.blocks if b.residual]
    assert len(residual) == 8
    assert all(abs(b.decay) < 1e-6 for b in residual)


def test_a_network_of_dense_skips_says_so():
    trace = seen(by_name("unet"))
    assert trace.dense
    assert any("dense skip" in note for note in trace.notes)
    assert not seen(by_name("resnet-a")).dense
    assert not seen(by_name("gpt2")).dense


# ---- where delta ends ----------------------------------------------------------------------------


def test_a_delta_that_becomes_zero_is_a_cut():
    trace = seen(by_name("mlp-relu-dead"))
    twin = raw(by_name("mlp-relu-dead"))
    assert trace.decay == -math.inf
    assert trace.cut in trace.spine
    place = trace.spine.index(trace.cut)
    alive = [float((twin.norms(twin.sites[name].node) > 0).mean()) for name in trace.spine]
    assert alive[place] < 0.1
    assert all(share >= 0.1 for share in alive[place + 1 :])


@pytest.mark.parametrize("name", ["rnn-time-first", "gru-time-first", "lstm-time-first"])
def test_time_first_batches(name):
    """With the batch dimension named, delta is there at every step."""
    trace = sp.trace(*by_name(name).build(), batch_dim=1)
    assert trace.batch == 16
    assert trace.samples == 16
    assert math.isfinite(trace.decay)
    twin = decay_twin.run(*by_name(name).build(), batch_dim=1)
    assert list(trace.spine) == twin.spine(trace.spine[0])


@pytest.mark.parametrize("name", ["rnn-time-first", "gru-time-first", "lstm-time-first"])
def test_time_first_batches_are_recognised_or_refused(name):
    """The target has 16 rows, the input 12 steps of 16: no infinite decay may come of that."""
    try:
        trace = sp.trace(*by_name(name).build())
    except sp.SignalpropError as error:
        assert "batch_dim" in str(error)  # noqa: PT017
        return
    assert trace.decay > -math.inf


def test_the_same_weights_written_out_have_the_same_spine_length():
    """A module, a functional call and an operator are the same operation."""
    torch.manual_seed(0)
    w = torch.nn.Linear(6, 6)
    tail = torch.nn.Linear(6, 1)

    class Written(torch.nn.Module):
        def __init__(self, how):
            super().__init__()
            self.w, self.tail, self.how = w, tail, how

        def forward(self, x):
            return self.tail(torch.tanh(self.how(x, self.w))).mean()

    x = torch.randn(5, 6)
    ways = [
        lambda x, w: w(x),
        lambda x, w: torch.nn.functional.linear(x, w.weight, w.bias),
        lambda x, w: torch.addmm(w.bias, x, w.weight.t()),
        lambda x, w: torch.einsum("bi,oi->bo", x, w.weight) + w.bias,
    ]
    decays = [sp.trace(Written(how), x) for how in ways]
    assert [t.decay for t in decays] == pytest.approx([decays[0].decay] * 4, abs=1e-6)
    for t in decays:
        assert t.split.keys() >= {"weights", "slope"}
        for kind in ("weights", "slope"):
            assert t.split[kind] == pytest.approx(decays[0].split[kind], abs=1e-6)
