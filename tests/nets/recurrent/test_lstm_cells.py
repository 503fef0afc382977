"""The cells against their equations, and the error signal along c against closed forms."""

import math

import pytest
import torch
from tests.nets.recurrent.support import FORMS, flat, leaf, options, sequences
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from signalprop.nets.recurrent import LSTM

DOUBLE = {"dtype": torch.float64}
CELLS = [
    {"cell": cell, "peepholes": peepholes, "truncated": truncated}
    for cell in ("modern", "1997")
    for peepholes in (False, True)
    for truncated in (False, True)
]


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def twin(layer, sequence, h_0, c_0):
    """One sequence (T, features) through all layers, a number at a time as the papers write it."""
    n, old = layer.hidden_size, layer.cell == "1997"
    final = []
    stop = torch.Tensor.detach if layer.truncated else lambda v: v
    for k in range(layer.num_layers):
        read = []
        for d in range(1 + layer.bidirectional):
            end = f"_l{k}" + "_reverse" * d
            get = {name[: -len(end)]: p for name, p in layer.named_parameters()
                   if name.endswith(end)}  # fmt: skip
            at = k * (1 + layer.bidirectional) + d
            h, c = h_0[at], c_0[at]
            seen = [None] * len(sequence)
            peep = list(get.get("weight_c", torch.zeros(3 * n, **DOUBLE)).split(n))
            order = range(len(sequence))
            for t in reversed(order) if d else order:
                net = get["weight_ih"] @ sequence[t] + get["weight_hh"] @ stop(h)
                if layer.bias:
                    net = net + get["bias_ih"] + get["bias_hh"]
                net = dict(zip("igo" if old else "ifgo", net.split(n), strict=True))
                i = sigmoid(net["i"] + peep[0] * stop(c))
                if old:
                    c_new = c + i * (4 * sigmoid(net["g"]) - 2)
                    o = sigmoid(net["o"] + peep[1] * stop(c_new))
                    h = o * (2 * sigmoid(c_new) - 1)
                else:
                    f = sigmoid(net["f"] + peep[1] * stop(c))
                    c_new = f * c + i * torch.tanh(net["g"])
                    o = sigmoid(net["o"] + peep[2] * stop(c_new))
                    h = o * torch.tanh(c_new)
                c = c_new
                if layer.proj_size:
                    h = get["weight_hr"] @ h
                seen[t] = h
            read.append(seen)
            final.append((h, c))
        sequence = [torch.cat(parts) for parts in zip(*read, strict=True)]
    return torch.stack(sequence), *(torch.stack(s) for s in zip(*final, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", CELLS, ids=lambda k: "-".join(map(str, k.values())))
def test_results_and_gradients_are_those_of_the_equations(kind, form):
    torch.manual_seed(0)
    for kwargs in options(proj_size=[0, 2], bias=[True, False]):
        layer = LSTM(2, 3, **kwargs, **kind, **DOUBLE)
        with torch.no_grad():
            for p in layer.parameters():
                p.uniform_(-1.5, 1.5)
        x = sequences(form, 2, batch_first=kwargs["batch_first"], length=3, dtype=torch.float64)
        count = layer.num_layers * (1 + layer.bidirectional)
        batch = () if form == "unbatched" else (3,)
        hx = tuple(
            torch.randn(count, *batch, s, **DOUBLE, requires_grad=True)
            for s in (layer.proj_size or 3, 3)
        )
        x, data = leaf(x)
        y, (h, c) = layer(x, hx)
        if isinstance(x, PackedSequence):
            (inputs, lengths), (outputs, _) = pad_packed_sequence(x), pad_packed_sequence(y)
        else:
            at = 1 if layer.batch_first and x.dim() == 3 else 0
            inputs, outputs = x.movedim(at, 0), y.movedim(at, 0)
            lengths = torch.full((3,), inputs.shape[0])
        wants, gots = [], []
        for b in range(3) if batch else [()]:
            own = (slice(int(lengths[b])), b) if batch else slice(None)
            one = (slice(None), b) if batch else slice(None)
            wants += twin(layer, inputs[own], hx[0][one], hx[1][one])
            gots += [outputs[own], h[one], c[one]]
        for got, want in zip(gots, wants, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
        weights = [torch.randn_like(w) for w in wants]
        wrt = [data, *hx, *layer.parameters()]
        got, want = (
            torch.autograd.grad(
                sum((w * r).sum() for w, r in zip(weights, results, strict=True)),
                wrt,
                materialize_grads=True,
                retain_graph=True,
            )
            for results in (gots, wants)
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_truncated_gradient_is_that_of_the_paper():
    """By hand: e_c(t) = e_c(t+1) + e_t o_t h'(c_t); weights get it times the gate's slope."""
    layer = LSTM(2, 3, cell="1997", truncated=True, **DOUBLE)
    x, errors = torch.randn(20, 2, **DOUBLE), torch.randn(20, 3, **DOUBLE)
    y, _ = layer(x)
    (y * errors).sum().backward()
    w, r, b = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0 + layer.bias_hh_l0)
    h, c, kept = torch.zeros(3, **DOUBLE), torch.zeros(3, **DOUBLE), []
    for t in range(20):
        past = h
        i, g, o = (w @ x[t] + r @ past + b).split(3)
        i, g, o = sigmoid(i), sigmoid(g), sigmoid(o)
        c = c + i * (4 * g - 2)
        s = sigmoid(c)
        h = o * (2 * s - 1)
        kept.append((past, i, g, o, s))
    e_c, want_w, want_r = torch.zeros(3, **DOUBLE), 0, 0
    for t in reversed(range(20)):
        past, i, g, o, s = kept[t]
        e_c = e_c + errors[t] * o * 2 * s * (1 - s)
        net = torch.cat(
            [
                e_c * (4 * g - 2) * i * (1 - i),
                e_c * i * 4 * g * (1 - g),
                errors[t] * (2 * s - 1) * o * (1 - o),
            ]
        )
        want_w = want_w + torch.outer(net, x[t])
        want_r = want_r + torch.outer(net, past)
    torch.testing.assert_close(layer.weight_ih_l0.grad, want_w, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(layer.weight_hh_l0.grad, want_r, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("peepholes", [False, True])
def test_the_carousel_keeps_the_error_over_ten_thousand_steps(peepholes):
    layer = LSTM(2, 3, cell="1997", truncated=True, peepholes=peepholes)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(10)
    h, c = torch.zeros(1, 1, 3), torch.zeros(1, 1, 3, requires_grad=True)
    # delta at c is seen where the sequence is cut
    cells, states = [c], (h, c)
    for _ in range(10):
        _, states = layer(torch.randn(1000, 1, 2), states)
        cells.append(states[1])
    error = torch.randn(1, 1, 3)
    deltas = torch.autograd.grad(states[1], cells, error)
    for delta in deltas:
        torch.testing.assert_close(delta, error, rtol=1e-6, atol=0)


def test_with_the_whole_gradient_it_is_not_kept():
    layer = LSTM(2, 3, cell="1997", **DOUBLE)
    c = torch.zeros(1, 1, 3, **DOUBLE, requires_grad=True)
    _, (_, end) = layer(torch.randn(100, 1, 2, **DOUBLE), (torch.zeros_like(c), c))
    (delta,) = torch.autograd.grad(end.sum(), c)
    assert (delta - 1).abs().max() > 1e-3


@pytest.mark.parametrize("kwargs", [{}, {"truncated": True}, {"peepholes": True}])
@pytest.mark.parametrize("bias", [1.0, 3.0, 5.0])
def test_a_leaky_integrator_loses_sigmoid_of_the_bias_a_step(bias, kwargs):
    layer = LSTM(2, 3, forget_bias=bias, **kwargs, **DOUBLE)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if "weight" in name:
                p.zero_()
    c = torch.zeros(1, 1, 3, **DOUBLE, requires_grad=True)
    steps = 200
    _, (_, end) = layer(torch.randn(steps, 1, 2, **DOUBLE), (torch.zeros_like(c), c))
    (delta,) = torch.autograd.grad(end.sum(), c)
    gamma = 1 / (1 + math.exp(-bias))
    torch.testing.assert_close(delta, torch.full_like(delta, gamma**steps), rtol=1e-12, atol=0)


def test_truncated_the_modern_error_is_the_product_of_the_forget_gates():
    layer = LSTM(2, 3, truncated=True, **DOUBLE)
    x, c = torch.randn(30, 1, 2, **DOUBLE), torch.randn(1, 1, 3, **DOUBLE, requires_grad=True)
    y, (_, end) = layer(x, (torch.zeros_like(c), c))
    past = torch.cat([torch.zeros(1, 1, 3, **DOUBLE), y[:-1]])
    net = x @ layer.weight_ih_l0.T + past @ layer.weight_hh_l0.T
    f = sigmoid((net + layer.bias_ih_l0 + layer.bias_hh_l0)[..., 3:6])
    (delta,) = torch.autograd.grad(end.sum(), c)
    torch.testing.assert_close(delta[0], f.prod(0))


@pytest.mark.parametrize("kwargs", [k for k in CELLS if not k["truncated"]])
def test_gradients_are_those_of_finite_differences(kwargs):
    layer = LSTM(2, 2, 2, bidirectional=True, proj_size=1, **kwargs, **DOUBLE)
    names = [name for name, _ in layer.named_parameters()]

    def out(x, h, c, *values):
        given = dict(zip(names, values, strict=True))
        return tuple(flat(torch.func.functional_call(layer, given, (x, (h, c)))))

    inputs = [
        torch.randn(s, **DOUBLE, requires_grad=True) for s in ((3, 1, 2), (4, 1, 1), (4, 1, 2))
    ]
    inputs += [p.detach().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(out, inputs)


@pytest.mark.parametrize("kwargs", [{"cell": "1997"}, {"peepholes": True}])
def test_second_derivatives_too(kwargs):
    layer = LSTM(2, 2, **kwargs, **DOUBLE)
    x = torch.randn(3, 1, 2, **DOUBLE, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], (x,))


def test_the_start_of_1997():
    layer = LSTM(20, 50, 2, cell="1997", bidirectional=True)
    for name, p in layer.named_parameters():
        if name.startswith("weight"):
            assert -0.1 <= p.min() < -0.09
            assert 0.09 < p.max() <= 0.1
            assert p.shape[0] == 150
        elif name.startswith("bias_hh"):
            assert not p.any()
        else:
            assert p[100:104].tolist() == [-1.0, -2.0, -3.0, -1.0]
            assert (p[:50] == -3).all()
            assert p[50:100].abs().max() <= 0.1
            assert p[50:100].any()


@pytest.mark.parametrize("kwargs", [{}, {"peepholes": True}, {"proj_size": 7}])
def test_the_forget_bias_is_the_sum_of_both(kwargs):
    layer = LSTM(3, 20, 2, forget_bias=2.5, bidirectional=True, **kwargs)
    for end in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        total = getattr(layer, "bias_ih" + end) + getattr(layer, "bias_hh" + end)
        assert torch.equal(total[20:40], torch.full((20,), 2.5))
        assert (total[:20] != 2.5).all()
        assert (total[40:] != 2.5).all()


def test_chrono_spreads_the_memory_up_to_the_longest_lag():
    layer = LSTM(3, 4000, chrono=500)
    total = (layer.bias_ih_l0 + layer.bias_hh_l0).detach()
    i, f = total[:4000], total[4000:8000]
    assert torch.equal(i, -f)
    u = f.exp()
    assert 1 <= u.min() < 2
    assert 497 < u.max() < 499.1
    assert u.mean().item() == pytest.approx(250, rel=0.03)
    assert u.var().item() == pytest.approx(498**2 / 12, rel=0.05)


def test_only_what_nn_lstm_computes_is_plain():
    assert LSTM(3, 4, proj_size=2, forget_bias=1.0).plain
    assert not any(LSTM(3, 4, **k).plain for k in CELLS[1:])
    assert not isinstance(LSTM(3, 4), nn.LSTM)
