"""minGRU and minLSTM against loops over their equations, and their exact spectrum."""

import copy
import math
import pickle

import pytest
import torch
from tests.nets.recurrent.support import FORMS, compiles, flat, leaf, options, sequences
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from signalprop.nets.recurrent import MinGRU, MinLSTM
from signalprop.nets.recurrent._scan import linear_scan

DOUBLE = {"dtype": torch.float64}
KINDS = [MinGRU, MinLSTM]


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def looped(a, b, h):
    states = []
    for t in range(len(a)):
        h = a[t] * h + b[t]
        states.append(h)
    return torch.stack(states)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9, 10, 16, 17, 101])
def test_the_scan_is_the_loop(steps):
    a, b = torch.rand(steps, 2, 3, **DOUBLE), torch.randn(steps, 2, 3, **DOUBLE)
    inputs = [v.requires_grad_() for v in (a, b, torch.randn(2, 3, **DOUBLE))]
    got, want = linear_scan(*inputs), looped(*inputs)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)
    weights = torch.randn_like(want)
    for g, w in zip(
        torch.autograd.grad((got * weights).sum(), inputs),
        torch.autograd.grad((want * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["uniform", "near 1", "shut and open", "tiny", "above 1 at times"])
def test_it_is_exact_over_ten_thousand_steps(kind):
    u = torch.rand(10_000, 4, **DOUBLE)
    a = {
        "uniform": u,
        "near 1": 1 - 1e-4 * u,
        "shut and open": (u < 0.999).double(),
        "tiny": 1e-300 * u,
        "above 1 at times": 0.9 + 0.15 * u,
    }[kind]
    b, h = torch.randn(10_000, 4, **DOUBLE), torch.randn(4, **DOUBLE)
    inputs = [v.requires_grad_() for v in (a, b, h)]
    got, want = linear_scan(*inputs), looped(*inputs)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    weights = torch.randn_like(want)
    for g, w in zip(
        torch.autograd.grad((got * weights).sum(), inputs),
        torch.autograd.grad((want * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)
    # in float32 it is as good as the loop in float32
    short = [v.detach().float() for v in inputs]
    ours = (linear_scan(*short) - want).abs().max()
    assert ours <= 4 * (looped(*short) - want).abs().max() + 1e-6


def test_the_scan_is_differentiable_twice():
    inputs = [torch.rand(s, **DOUBLE, requires_grad=True) for s in ((5, 2), (5, 2), (2,))]
    assert torch.autograd.gradcheck(linear_scan, inputs)
    assert torch.autograd.gradgradcheck(linear_scan, inputs)


def twin(layer, sequence, h_0):
    """One sequence (T, features), a step at a time as the paper has it; ln a of the last layer."""
    n, final, logs = layer.hidden_size, [], []
    for k in range(layer.num_layers):
        read, logs = [], []
        for d in range(1 + layer.bidirectional):
            end = f"_l{k}" + "_reverse" * d
            weight = getattr(layer, "weight_ih" + end)
            bias = getattr(layer, "bias_ih" + end) if layer.bias else 0
            h, order = h_0[len(final)], range(len(sequence))
            seen, decays = [None] * len(sequence), [None] * len(sequence)
            for t in reversed(order) if d else order:
                parts = (weight @ sequence[t] + bias).split(n)
                g = parts[-1]
                if layer.positive:
                    g = torch.where(g >= 0, g + 0.5, sigmoid(g))
                if isinstance(layer, MinGRU):
                    z = sigmoid(parts[0])
                    kept, new = 1 - z, z
                else:
                    f, i = sigmoid(parts[0]), sigmoid(parts[1])
                    kept, new = f / (f + i), i / (f + i)
                h = kept * h + new * g
                seen[t], decays[t] = h, kept.log()
            read.append(seen)
            logs.append(decays)
            final.append(h)
        sequence = [torch.cat(parts) for parts in zip(*read, strict=True)]
    spectrum = torch.stack([torch.cat(parts) for parts in zip(*logs, strict=True)])
    return torch.stack(sequence), torch.stack(final), spectrum


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_results_and_gradients_are_those_of_the_equations(kind, positive, form):
    torch.manual_seed(0)
    for kwargs in options(bias=[True, False], length=[1, 4], given=[False, True]):
        length, given = kwargs.pop("length"), kwargs.pop("given")
        layer = kind(2, 3, positive=positive, **kwargs, **DOUBLE)
        with torch.no_grad():
            for p in layer.parameters():
                p.uniform_(-1.5, 1.5)
        x = sequences(form, 2, batch_first=layer.batch_first, length=length, dtype=torch.float64)
        batch = () if form == "unbatched" else (3,)
        h_0 = torch.randn(
            layer.num_layers * (1 + layer.bidirectional), *batch, 3, **DOUBLE, requires_grad=True
        )
        x, data = leaf(x)
        y, h = layer(x, h_0 if given else None)
        # the spectrum of the last layer knows no given states, nor do those below it then
        plain = layer.decays(x) if layer.num_layers == 1 or not given else None
        nn_y, nn_h = nn.GRU(2, 3, **kwargs, **DOUBLE)(x, h_0 if given else None)
        assert type(y) is type(nn_y)
        assert flat(y)[0].shape == flat(nn_y)[0].shape
        assert h.shape == nn_h.shape
        if isinstance(x, PackedSequence):
            (inputs, lengths), (outputs, _) = pad_packed_sequence(x), pad_packed_sequence(y)
            logs = None if plain is None else pad_packed_sequence(plain)[0]
        else:
            at = 1 if layer.batch_first and x.dim() == 3 else 0
            inputs, outputs = x.movedim(at, 0), y.movedim(at, 0)
            logs = None if plain is None else plain.movedim(at, 0)
            lengths = torch.full((3,), inputs.shape[0])
        wants, gots = [], []
        for b in range(3) if batch else [()]:
            own = (slice(int(lengths[b])), b) if batch else slice(None)
            one = (slice(None), b) if batch else slice(None)
            seen, last, spectrum = twin(layer, inputs[own], (h_0 if given else 0 * h_0)[one])
            wants += [seen, last]
            gots += [outputs[own], h[one]]
            if logs is not None:
                torch.testing.assert_close(logs[own], spectrum, rtol=1e-11, atol=1e-12)
        for got, want in zip(gots, wants, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
        weights = [torch.randn_like(w) for w in wants]
        wrt = [data, *layer.parameters(), *([h_0] if given else [])]
        got, want = (
            torch.autograd.grad(
                sum((w * r).sum() for w, r in zip(weights, results, strict=True)),
                wrt,
                retain_graph=True,
            )
            for results in (gots, wants)
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 7, 400])
def test_the_decays_are_the_spectrum_of_the_jacobian(kind, steps):
    layer = kind(2, 4, **DOUBLE)
    x = torch.randn(steps, 2, **DOUBLE)
    jacobian = torch.autograd.functional.jacobian(
        lambda h: layer(x, h.unsqueeze(0))[1][0], torch.randn(4, **DOUBLE)
    )
    want = layer.decays(x).sum(0).exp()
    torch.testing.assert_close(jacobian, torch.diag(want), rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_decays_of_a_higher_layer_and_of_both_directions(kind):
    layer = kind(2, 3, 2, bidirectional=True, dropout=0.5, **DOUBLE)
    x = torch.randn(6, 1, 2, **DOUBLE)
    layer.eval()
    h = torch.zeros(4, 1, 3, **DOUBLE)
    for k in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda h: layer(x, h)[1], h)
        logs = layer.decays(x, layer=k)
        assert torch.equal(logs, layer.train().decays(x, layer=k - 2))
        layer.eval()
        for d in range(2):
            own = jacobian[2 * k + d, 0, :, 2 * k + d, 0, :]
            want = logs[:, 0, 3 * d : 3 * d + 3].sum(0).exp()
            torch.testing.assert_close(own, torch.diag(want), rtol=1e-11, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_shut_and_open_gates_neither_overflow_nor_lose_their_logarithm(kind):
    layer = kind(1, 2, **DOUBLE)
    x = torch.tensor([[-1e4], [-800.0], [0.0], [800.0], [1e4]], **DOUBLE, requires_grad=True)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1.0)
        layer.bias_ih_l0.zero_()
        if kind is MinLSTM:
            layer.weight_ih_l0[:2] = -1.0
    y, _ = layer(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(y).all()
    assert torch.isfinite(dx).all()
    want = torch.tensor([0, 0, -math.log(2), -800, -1e4], **DOUBLE)
    torch.testing.assert_close(layer.decays(x)[:, 0], want, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("kind", KINDS)
def test_a_leaky_integrator_forgets_as_its_bias_says(kind):
    layer = kind(2, 3, forget_bias=4.0, **DOUBLE)
    with torch.no_grad():
        layer.weight_ih_l0.zero_()
        layer.bias_ih_l0[-3:] = 0.7
    h = torch.ones(1, 1, 3, **DOUBLE, requires_grad=True)
    y, end = layer(torch.randn(10_000, 1, 2, **DOUBLE), h)
    a = 1 / (1 + math.exp(-4.0))
    steps = torch.arange(1, 10_001, **DOUBLE)[:, None, None]
    torch.testing.assert_close(y, (0.7 + 0.3 * a**steps).expand_as(y), rtol=1e-11, atol=0)
    (delta,) = torch.autograd.grad(end.sum(), h)
    torch.testing.assert_close(delta, torch.full_like(delta, a**10_000), rtol=1e-10, atol=0)
    time_constant = -1 / layer.decays(torch.zeros(1, 2, **DOUBLE))
    torch.testing.assert_close(time_constant, torch.full_like(time_constant, -1 / math.log(a)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["batched", "unbatched"])
def test_steps_are_the_scan(kind, form):
    layer = kind(2, 3, 2, batch_first=form == "batched", **DOUBLE)
    x = sequences(form, 2, batch_first=True, length=30, dtype=torch.float64)
    want, want_h = layer(x)
    h, seen = None, []
    for one in x.unbind(-2):
        y, h = layer.step(one, h)
        seen.append(y)
    torch.testing.assert_close(torch.stack(seen, -2), want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(h, want_h, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_dropout_stands_between_layers_alone(kind, form):
    layer = kind(2, 50, 2, dropout=0.5)
    x = sequences(form, 2, batch_first=False, length=6, dtype=torch.float32)
    torch.manual_seed(0)
    first = flat(layer(x))
    torch.manual_seed(0)
    again = flat(layer(x))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(flat(layer(x))[0], first[0])
    # the first layer's states do not know it
    lower = kind(2, 50)
    lower.load_state_dict({n: p for n, p in layer.state_dict().items() if "_l0" in n})
    torch.testing.assert_close(layer(x)[1][:1], lower(x)[1])
    layer.eval()
    assert torch.equal(flat(layer(x))[0], flat(layer(x))[0])
    with pytest.warns(UserWarning, match="does nothing with num_layers=1"):
        kind(2, 3, dropout=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    layer = kind(2, 2, 2, bidirectional=True, **DOUBLE)
    names = [name for name, _ in layer.named_parameters()]

    def out(x, h, *values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, given, (x, h))

    inputs = [torch.randn(s, **DOUBLE, requires_grad=True) for s in ((5, 1, 2), (4, 1, 2))]
    inputs += [p.detach().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(out, inputs)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], inputs[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_an_ordinary_module(kind):
    torch.manual_seed(0)
    layer = kind(30, 40, 2, bidirectional=True, forget_bias=1.0)
    x = torch.randn(5, 2, 30)
    want = flat(layer(x))
    again = kind(30, 40, 2, bidirectional=True)
    again.load_state_dict(layer.state_dict())
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="eager")
    for net in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), again, compiled):
        for a, b in zip(flat(net(x)), want, strict=True):
            torch.testing.assert_close(a, b)
    assert repr(layer) == (
        f"{kind.__name__}(30, 40, num_layers=2, bidirectional=True, forget_bias=1.0)"
    )
    meta = kind(30, 40, 2, bidirectional=True, forget_bias=1.0, device="meta").to_empty(
        device="cpu"
    )
    torch.manual_seed(0)
    meta.reset_parameters()
    for p, q in zip(meta.parameters(), layer.parameters(), strict=True):
        assert torch.equal(p, q)
    # as nn.Linear draws
    for name, p in kind(30, 40, 2).named_parameters():
        bound = 1 / math.sqrt(30 if "_l0" in name else 40)
        assert 0.9 * bound < p.abs().max() <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_lower_precision_is_summed_in_float32(kind):
    layer = kind(3, 4, 2, forget_bias=6.0)
    x = torch.randn(2000, 2, 3)
    want, _ = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        got, h = layer(x)
    assert got.dtype == h.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.1, atol=0.1)
    half = copy.deepcopy(layer).bfloat16()
    got, h = half(x.bfloat16())
    assert got.dtype == h.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_said(kind):
    layer, x = kind(3, 4), torch.randn(5, 2, 3)
    h = torch.zeros(1, 2, 4)
    for error, match, given, state in [
        (RuntimeError, "xpected sequence length to be larger than 0", x[:0], None),
        (RuntimeError, "must be equal to input_size. Expected 3, got 2", x[..., :2], None),
        (ValueError, "Expected input to be 2D or 3D, got 4D", x[None], None),
        (ValueError, "does not match weight dtype", x.double(), None),
        (RuntimeError, r"Expected hidden size \(1, 2, 4\), got \[1, 1, 4\]", x, h[:, :1]),
        (RuntimeError, "also be 3-D", x, h[:, 0]),
        (RuntimeError, "also be 2-D", x[:, 0], h),
        (TypeError, "there is no c_0", x, (h, h)),
    ]:
        with pytest.raises(error, match=match):
            layer(given, state)
    with pytest.raises(ValueError, match="there are 1 layers, and layer 1 is none of them"):
        layer.decays(x, layer=1)
    with pytest.raises(ValueError, match="needs the whole sequence"):
        kind(3, 4, bidirectional=True).step(x[0])
    with pytest.raises(ValueError, match=r"expected one step, \(B, 3\), got \(5, 2, 3\)"):
        layer.step(x)
    for kwargs, match in [
        ({"num_layers": 0}, "num_layers has to be a whole number"),
        ({"dropout": -0.1}, "dropout has to lie between 0 and 1"),
        ({"bias": False, "forget_bias": 1.0}, "forget_bias needs biases"),
    ]:
        with pytest.raises(ValueError, match=match):
            kind(3, 4, **kwargs)
    assert layer(x[:, :0])[0].shape == (5, 0, 4)


@pytest.mark.slow
def test_the_scan_compiles():
    compiles(MinGRU(2, 3, **DOUBLE), torch.randn(5, 2, 2, **DOUBLE))
