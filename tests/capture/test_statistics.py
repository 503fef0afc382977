"""Every statistic against its float64 twin, over real networks and over extreme tensors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name, plain_loss
from tests.cases.base import features
from tests.references import statistics_twin as twin
from tests.references.agreement import TOLERANCE, same, wrong
from torch import nn

import signalprop as sp
from signalprop.capture import statistics
from signalprop.capture.kinds import RECTIFIERS

NAMES = [
    "mlp-sigmoid-30",
    "mlp-relu-he-20",
    "mlp-tanh-saturated",
    "mlp-relu-dead",
    "mlp-relu-mostly-dead",
    "mlp-relu-large-bias",
    "mlp-relu-explodes",
    "batchnorm-mlp",
    "resnet-a",
    "resnet-20",
    "densenet",
    "unet",
    "mlp-mixer",
    "gpt2",
    "llama",
    "bert",
    "vit",
    "transformer-encoder-pre",
    "in-place",
    "bf16",
    "autocast-bf16",
    "float64",
    "checkpoint",
    "frozen-half",
    "one-sample",
    "lora",
    "embedding-bag",
]


class Modulus(nn.Module):
    def forward(self, z):
        return z.abs()


class Polar(nn.Module):
    def forward(self, z):
        return torch.tanh(z.abs()) * z.sgn()


def complex_net():
    make = lambda n: nn.Linear(16, n, dtype=torch.complex64)  # noqa: E731
    model = nn.Sequential(make(16), Polar(), make(16), Polar(), make(5), Modulus())
    x = features(12, 16).to(torch.complex64)
    return model, (x, torch.randint(5, (12,))), F.cross_entropy


def built(name):
    if name == "complex":
        torch.manual_seed(0)
        return complex_net()
    return by_name(name).build()


def looked_at_twice(name):
    """The trace of a case, and what plain hooks keep of the same pass on a fresh copy."""
    model, batch, loss = built(name)
    torch.manual_seed(1)
    trace = sp.trace(model, batch, loss)
    model, batch, loss = built(name)
    kept = twin.Kept(model)
    torch.manual_seed(1)
    plain_loss(model, batch, loss).backward()
    return trace, kept


def expected(site, output, batch):
    found = twin.activation(output, batch)
    tokens = site.activation.token_cosine is not None
    found["token_cosine"] = twin.token_cosine(output) if tokens else None
    several = output.ndim >= 2 and twin.rows(twin.wide(output), batch).shape[0] > 1
    units = several and not output.is_complex()
    found["dead"] = twin.dead(output) if units and site.op in RECTIFIERS else None
    if site.op in twin.SLOPES:
        found["saturated"] = twin.saturated(output, site.op) if units else None
    if found["dead"] is not None or found.get("saturated") is not None:
        found["units"] = len(twin.by_unit(output))
    return found


@pytest.mark.parametrize("name", [*NAMES, "complex"])
def test_every_field_agrees_with_the_twin(name):
    trace, kept = looked_at_twice(name)
    bad, compared, deltas = {}, 0, 0
    for path in kept.once():
        site = trace.sites.get(path)
        if site is None:
            continue
        assert site.shape == tuple(kept.outputs[path].shape)
        compared += 1
        if found := wrong(site.activation, expected(site, kept.outputs[path], trace.batch)):
            bad[path] = found
        gradient = kept.gradients.get(path)
        assert (gradient is None) or (site.delta is not None), path
        if gradient is not None:
            deltas += 1
            if found := wrong(site.delta, twin.delta(gradient, trace.batch)):
                bad[f"delta at {path}"] = found
    assert not bad
    assert compared >= 3
    assert deltas >= 3


def test_the_deltas_of_thirty_sigmoids_are_seen_and_small():
    trace, kept = looked_at_twice("mlp-sigmoid-30")
    assert trace.sites["0"].delta.rms < 1e-20
    assert trace.sites["0"].delta.rms == pytest.approx(
        float(twin.wide(kept.gradients["0"]).std()), rel=0.5
    )


@pytest.mark.parametrize("name", ["mlp-relu-he-20", "gpt2", "mlp-mixer"])
def test_the_twins_two_ways_to_read_a_gradient_agree(name):
    _, kept = looked_at_twice(name)
    assert kept.gradients
    for path, gradient in kept.gradients.items():
        assert torch.equal(gradient, kept.retained[path].grad), path


def test_inputs_and_functional_sites_agree_with_the_twin():
    model, (x, y), loss = by_name("functional-only").build()
    trace = sp.trace(model, (x, y), loss)
    x = x.clone().requires_grad_()
    hidden = F.linear(x, model.w1, model.b1)
    rectified = F.relu(hidden)
    product = rectified @ model.w2.t()
    out = F.linear(torch.tanh(product + model.b2), model.w3)
    tensors = {"input": x, "linear": hidden, "relu": rectified, "matmul": product, "linear#2": out}
    for t in tensors.values():
        t.retain_grad()
    loss(out, y).backward()
    for name, tensor in tensors.items():
        site = trace.sites[name]
        assert not wrong(site.activation, twin.activation(tensor, 32)), name
        assert not wrong(site.delta, twin.delta(tensor.grad, 32)), name


def test_weights_and_their_gradients_agree_with_the_twin():
    for name in ("resnet-a", "gpt2", "bf16", "complex-weights", "mlp-sigmoid-30"):
        model, batch, loss = by_name(name).build()
        torch.manual_seed(1)
        trace = sp.trace(model, batch, loss)
        torch.manual_seed(1)
        plain_loss(model, batch, loss).backward()
        for path, p in model.named_parameters():
            value, seen = twin.wide(p), trace.weights[path]
            assert seen.norm == pytest.approx(np.linalg.norm(value.ravel()), rel=TOLERANCE)
            size = math.sqrt(float((value**2).sum()) / p.numel())  # of a complex number |w|
            assert seen.rms == pytest.approx(size, rel=TOLERANCE)
            assert seen.gradient == pytest.approx(
                float(twin.norms(twin.wide(p.grad).reshape(1, -1))[0]), rel=TOLERANCE
            )


# ---- the ways to add -----------------------------------------------------------------------------


def numbers(trace):
    return {
        (name, part, field): value
        for name, site in trace.sites.items()
        for part, stats in (("activation", site.activation), ("delta", site.delta))
        if stats is not None
        for field, value in dataclasses.asdict(stats).items()
    }


def agree(one, other):
    assert one.spine == other.spine
    assert one.decay == pytest.approx(other.decay, abs=1e-5)
    a, b = numbers(one), numbers(other)
    assert a.keys() == b.keys()
    for (name, part, field), value in a.items():
        theirs = b[name, part, field]
        scale = 1.0
        if field in ("rms", "effective_rank", "geometric_mean"):
            scale = abs(theirs)
        elif field in ("mean", "variance"):
            scale = b[name, part, "rms"] ** (2 if field == "variance" else 1)
        assert same(field, value, theirs, scale), (name, part, field, value, theirs)


SOME = pytest.mark.parametrize(
    "name", ["mlp-sigmoid-30", "resnet-a", "gpt2", "bf16", "mlp-mixer", "complex-weights", "rnn"]
)


@SOME
@pytest.mark.parametrize("chunk", [1, 50, 1000])
def test_large_tensors_are_added_in_chunks_to_the_same(name, chunk, monkeypatch):
    whole = sp.trace(*by_name(name).build())
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    if chunk == 1 and name != "rnn":
        pytest.skip("one element at a time: the smallest network is enough")
    agree(sp.trace(*by_name(name).build()), whole)


@SOME
def test_the_quick_and_the_wide_way_agree(name, monkeypatch):
    quick = sp.trace(*by_name(name).build())
    monkeypatch.setattr("signalprop.capture.quick.array_of", lambda x: None)
    agree(sp.trace(*by_name(name).build()), quick)


def test_the_norm_of_a_sparse_gradient_counts_doubles_once():
    index = torch.tensor([[0, 2, 2]])
    values = torch.tensor([[1.0, 0], [0, 3], [4, 0]])
    x = torch.sparse_coo_tensor(index, values, (4, 2), check_invariants=False)
    assert float(statistics.norm(x)) == pytest.approx(math.sqrt(1 + 9 + 16))


# ---- what a row is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dim", "rows"),
    [
        ((6, 4), 0, (6, 4)),
        ((6, 3, 2, 2), 0, (6, 12)),
        ((5, 6, 4), 1, (6, 20)),
        ((5, 6, 4), 0, (6, 20)),
        ((30, 4), 0, (6, 20)),
        ((7, 4), 0, (1, 28)),
        ((), 0, (1, 1)),
        ((6,), 0, (6, 1)),
        ((4,), 0, (1, 4)),
        ((1, 9, 4), 0, (1, 36)),
    ],
)
def test_rows_are_samples(shape, dim, rows):
    x = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    flat = statistics.by_sample(x, 6, dim)
    assert tuple(flat.shape) == rows
    assert sorted(flat.flatten().tolist()) == sorted(x.flatten().tolist())


def test_the_samples_of_a_time_first_tensor_stay_apart():
    x = torch.randn(5, 6, 4)
    flat = statistics.by_sample(x, 6, 1)
    for sample in range(6):
        assert torch.equal(flat[sample], x[:, sample].flatten())
