"""Layers run in another way: outputs, states and gradients are those of torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.recurrent import record

LENGTHS = [3, 7, 5]
KINDS = ("LSTM", "GRU", "tanh", "relu")
WAYS = ({"deltas": "all"}, {"chunk": 1}, {"chunk": 3}, {})


def layer(kind, layers=1, dtype=torch.float64, **options):
    if kind in ("tanh", "relu"):
        return nn.RNN(4, 5, layers, nonlinearity=kind, **options).to(dtype)
    return getattr(nn, kind)(4, 5, layers, **options).to(dtype)


def run(model, x, states, way, *, packed=False, seed=1):
    """Outputs and states, and gradients of everything, under the same random numbers."""
    torch.manual_seed(seed)
    given = x
    if packed:
        given = nn.utils.rnn.pack_padded_sequence(
            x, LENGTHS, batch_first=model.batch_first, enforce_sorted=False
        )
    if way is None:
        output, final = model(given, states)
    else:
        with record(model, **way):
            output, final = model(given, states)
    finals = final if isinstance(final, tuple) else (final,)
    made = [output.data if packed else output, *finals]
    generator = torch.Generator().manual_seed(2)
    weighed = [(t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in made]
    starts = states if isinstance(states, tuple) else (states,) if states is not None else ()
    wanted = [x, *starts, *model.parameters()]
    return made, torch.autograd.grad(sum(weighed), wanted)


def agree(model, x, states, tol, **options):
    expected = run(model, x, states, None, **options)
    for way in WAYS:
        found = run(model, x, states, way, **options)
        for a, b in zip(itertools.chain(*expected), itertools.chain(*found), strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() < tol, way


def start(kind, layers, directions, width, size):
    def made(features):
        shape = (layers * directions, *size, features)
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    return (made(width), made(5)) if kind == "LSTM" else made(5)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("form", ["plain", "packed", "unbatched"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [*KINDS, "projected"])
def test_every_form(kind, layers, form, first, both):
    options = {"bidirectional": both, "batch_first": first, "dropout": 0.4 if layers > 1 else 0.0}
    if kind == "projected":
        kind, options = "LSTM", options | {"proj_size": 3}
    model = layer(kind, layers, bias=not both, **options)
    shape = (7, 4) if form == "unbatched" else (3, 7, 4) if first else (7, 3, 4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    size = () if form == "unbatched" else (3,)
    states = start(kind, layers, 2 if both else 1, options.get("proj_size", 5), size)
    agree(model, x, states, 1e-10, packed=form == "packed")


@pytest.mark.parametrize("kind", KINDS)
def test_no_states_and_a_single_step(kind):
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    agree(layer(kind), x, None, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision(kind):
    model = layer(kind, 2, torch.float32)
    x = torch.randn(40, 16, 4, requires_grad=True)  # wide enough for packed weights
    agree(model, x, None, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_in_evaluation_there_is_no_dropout(kind):
    model = layer(kind, 2, dropout=0.5).eval()
    x = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    agree(model, x, None, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [{"deltas": "all"}, {"chunk": 2}])
def test_autocast(kind, way):
    model = layer(kind, dtype=torch.float32)
    x = torch.randn(6, 3, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = model(x)
        with record(model, **way):
            found, _ = model(x)
    assert torch.allclose(expected.float(), found.float(), atol=0.03)
    found.float().sum().backward()
    assert x.grad is not None


def test_no_gradient_no_record():
    model = layer("LSTM")
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    for way in WAYS:
        with torch.no_grad(), record(model, **way) as seen:
            found, _ = model(x)
        assert torch.allclose(found, model(x)[0])
        assert seen.axes() == []


def test_an_empty_sequence_is_torchs_own_error():
    model = layer("LSTM")
    with pytest.raises(RuntimeError) as plain:
        model(torch.randn(0, 3, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError) as seen, record(model):
        model(torch.randn(0, 3, 4, dtype=torch.float64))
    assert str(plain.value) == str(seen.value)


def test_bad_options():
    with pytest.raises(SignalpropError, match="borders"):
        record(layer("LSTM"), "some")
    with pytest.raises(SignalpropError, match="chunk"):
        record(layer("LSTM"), chunk=0)
