"""The time axis of the layers of `signalprop.nets`, against plain loops in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.references import time_twin
from tests.references.state import Snapshot
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import signalprop as sp
from signalprop.nets import LSTM, MinGRU, MinLSTM
from signalprop.recurrent.record import record

N, I = 4, 3
LENGTHS = (9, 6, 6, 2)
DOUBLE = {"dtype": torch.float64}
KINDS = [
    {"cell": "1997"},
    {"truncated": True},
    {"peepholes": True},
    {"cell": "1997", "truncated": True, "peepholes": True},
]


def drawn(net):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.7 * torch.randn(p.shape, generator=generator, **DOUBLE))
    return net


def sequences(lengths):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, I, generator=generator, **DOUBLE) for n in lengths]


def steps(net, layer, way, x):
    """(h_t, c_t) of one sequence, one after the other, in the order in which they are made."""
    end = f"_l{layer}" + "_reverse" * way
    if not isinstance(net, LSTM):
        gate, candidate = net._gate(x, end)
        h, found = x.new_zeros(N), []
        for z, g in zip(torch.sigmoid(gate), candidate, strict=True):
            h = (1 - z) * h + z * g
            found.append((h,))
        return found
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    weights = [getattr(net, name + end, None) for name in names]
    options = {"truncated": net.truncated, "peeps": getattr(net, "weight_c" + end, None)}
    state, found = (x.new_zeros(1, net.proj_size or N), x.new_zeros(1, N)), []
    for one in x:
        state = time_twin.step("lstm", one[None], state, weights, net.cell, **options)
        found.append(state)
    return found


def twin(net, given, loss):
    """{(layer, way): rms of dL/dh, of dL/dc by step} from one sequence after the other."""
    net, made, outputs = copy.deepcopy(net), {}, []
    for x in given:
        for layer in range(net.num_layers):
            read = []
            for way in range(2 if net.bidirectional else 1):
                found = steps(net, layer, way, x.flip(0) if way else x)
                made.setdefault((layer, way), []).append(found)
                h = torch.stack([s[0].reshape(-1) for s in found])
                read.append(h.flip(0) if way else h)
            x = torch.cat(read, -1)
        outputs.append(x)
    value = loss(outputs)
    return {place: rms(value, all_) for place, all_ in made.items()}


def rms(value, of_each):
    found = []
    for which in range(len(of_each[0][0])):
        states = [[s[which] for s in one] for one in of_each]
        flat = [s for one in states for s in one]
        given = iter(torch.autograd.grad(value, flat, retain_graph=True, allow_unused=True))
        deltas = [[g if (g := next(given)) is not None else 0 * s for s in one] for one in states]
        longest = max(len(one) for one in deltas)
        found.append([
            float(torch.stack([d[t] for d in deltas if t < len(d)]).square().mean().sqrt())
            for t in range(longest)
        ])  # fmt: skip
    return found


def weighted(outputs):
    """Every entry in its own way."""
    return sum((o * torch.linspace(0.2, 1, o.numel(), **DOUBLE).view_as(o)).sum() for o in outputs)


def check(axes, expected, length, op):
    assert {(a.layer, int(a.reverse)) for a in axes} == set(expected)
    for axis in axes:
        h, *c = expected[axis.layer, int(axis.reverse)]
        assert (axis.op, axis.length) == (op, length)
        assert axis.steps == tuple(range(1, length + 1))
        assert axis.h == pytest.approx(h, rel=1e-10)
        assert axis.c == (pytest.approx(c[0], rel=1e-10) if c else ())
        assert axis.gates == ()


STACKED = {"num_layers": 2, "bidirectional": True}
NETS = [
    *((LSTM, {**kind, **more}) for kind in KINDS for more in ({}, STACKED, {"proj_size": 2})),
    *((kind, more) for kind in (MinGRU, MinLSTM) for more in ({}, STACKED, {"positive": True})),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("kind", "options"), NETS)
def test_every_step_is_that_of_a_plain_loop(kind, options, packed):
    net = drawn(kind(I, N, **options, **DOUBLE))
    given = sequences(LENGTHS if packed else (7, 7, 7))
    with record(net) as seen:
        if packed:
            output, sizes = pad_packed_sequence(net(pack_sequence(given))[0])
            parts = [output[:n, k] for k, n in enumerate(sizes)]
        else:
            parts = list(net(torch.stack(given, 1))[0].unbind(1))
        weighted(parts).backward()
    expected = twin(net, given, weighted)
    check(seen.axes(), expected, 9 if packed else 7, kind.__name__.lower())


@pytest.mark.parametrize("kind", [LSTM, MinGRU])
def test_the_last_state_alone_and_sequences_without_a_batch(kind):
    options = {"cell": "1997"} if kind is LSTM else {}
    net = drawn(kind(I, N, **options, **DOUBLE))
    (x,) = sequences((7,))
    with record(net, deltas="all") as seen:
        behind = net(x)[1]
        (behind[0] if kind is LSTM else behind).sum().backward()
    check(seen.axes(), twin(net, [x], lambda o: o[0][-1].sum()), 7, kind.__name__.lower())


class Net(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(N, 4)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def batch(steps=12):
    return torch.randn(6, steps, I), torch.randint(4, (6,))


def nets():
    yield LSTM(I, N, cell="1997", batch_first=True)
    yield LSTM(I, N, batch_first=True)
    yield MinGRU(I, N, batch_first=True)
    yield MinLSTM(I, N, batch_first=True, num_layers=2, dropout=0.3)


@pytest.mark.parametrize("rnn", list(nets()), ids=repr)
@pytest.mark.parametrize("deltas", ["borders", "all"])
def test_a_trace_has_it(rnn, deltas):
    axes = sp.trace(Net(rnn), batch(), F.cross_entropy, deltas=deltas).time
    assert [a.site for a in axes] == ["rnn"] * rnn.num_layers
    assert axes[0].length == 12


def test_with_and_without_somebody_who_looks_the_numbers_are_the_same():
    for net in nets():
        x, made = batch()[0], []
        for context in (None, record(net)):
            torch.manual_seed(5)
            if context is None:
                output = net(x)[0]
            else:
                with context:
                    output = net(x)[0]
            net.zero_grad()
            output.square().sum().backward()
            made.append([output.detach(), *(p.grad.clone() for p in net.parameters())])
        exact = not isinstance(net, LSTM) or not net.plain  # torch's kernels run in chunks
        for a, b in zip(*made, strict=True):
            assert torch.equal(a, b) if exact else torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_what_it_was(fails):
    class Failing(Net):
        def forward(self, x):
            made = super().forward(x)
            if fails:
                raise ValueError("no more")
            return made

    for rnn in nets():
        model, data = Failing(rnn), batch()
        before, numbers = Snapshot(model, data, None), torch.get_rng_state()
        if fails:
            with pytest.raises(sp.SignalpropError, match="no more"):
                sp.trace(model, data, F.cross_entropy)
        else:
            sp.trace(model, data, F.cross_entropy)
        assert before.changed() == []
        assert torch.equal(numbers, torch.get_rng_state())


def test_two_calls_are_two_axes_and_two_watchers_both_see():
    net = drawn(LSTM(I, N, cell="1997", num_layers=2, **DOUBLE))
    with record(net) as outer, record(net) as inner:
        for _ in range(2):
            net(sequences((5,))[0])[0].sum().backward()
    sites = [(a.site, a.layer) for a in inner.axes()]
    assert sites == [("", 0), ("", 1), ("#2", 0), ("#2", 1)]
    assert outer.axes() == inner.axes()


def test_layers_without_a_gradient_are_left_out():
    net = MinGRU(I, N)
    with record(net) as seen:
        net(torch.randn(5, 2, I))
    assert seen.axes() == []


def test_steps_one_by_one():
    net = drawn(MinGRU(I, N, **DOUBLE))
    (x,) = sequences((5,))
    with record(net) as seen:
        h, found = None, []
        for one in x:
            out, h = net.step(one, h)
            found.append(out)
        torch.stack(found).sum().backward()
    expected = twin(net, [x], lambda o: o[0].sum())[0, 0][0]
    assert [a.h[0] for a in seen.axes()] == pytest.approx(expected, rel=1e-10)


def in_float(output, target):
    return F.cross_entropy(output.float(), target)


def test_half_precision_and_autocast():
    for net in (LSTM(I, N, cell="1997", batch_first=True), MinGRU(I, N, batch_first=True)):
        model, (x, y) = Net(net).bfloat16(), batch()
        (axis,) = sp.trace(
            model, (x.bfloat16(), y), lambda o, t: F.cross_entropy(o.float(), t)
        ).time
        assert len(axis.h) == 12
        with torch.autocast("cpu", torch.bfloat16):
            (axis,) = sp.trace(model.float(), (x, y), F.cross_entropy).time
        assert len(axis.h) == 12


def test_the_carousel_carries_its_delta_over_thousands_of_steps():
    torch.manual_seed(0)
    model = Net(LSTM(I, N, cell="1997", truncated=True, batch_first=True))
    (axis,) = sp.trace(model, batch(10_000), F.cross_entropy).time
    assert len(axis.c) == 10_000
    assert axis.c == pytest.approx([axis.c[-1]] * 10_000, rel=1e-6)
    assert axis.h[-1] > 0
    assert set(axis.h[:-1]) == {0.0}  # what goes back in time goes along c alone
