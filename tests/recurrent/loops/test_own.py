"""The time axis of loops over cells of the user's own, against autograd's own gradients."""

import copy
import gc
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from tests.references.state import Snapshot
from torch import nn
from torch.utils.checkpoint import checkpoint

import signalprop as sp
from signalprop.errors import SignalpropError
from signalprop.recurrent.loops.own import Called

T, B, N = 12, 5, 6


class Plain(nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self.a, self.b = nn.Linear(size, N), nn.Linear(N, N)

    def forward(self, x, h):
        return torch.tanh(self.a(x) + self.b(h))


class Pair(nn.Module):
    """(h, c) in a tuple."""

    def __init__(self, size=3):
        super().__init__()
        self.net = nn.Linear(size + N, 3 * N)

    def forward(self, x, state):
        h, c = state
        f, i, g = self.net(torch.cat([x, h], -1)).chunk(3, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.tanh(c), c


class Named(Pair):
    """The same in a dict, given by keyword."""

    def forward(self, x, *, state):
        h, c = super().forward(x, (state["h"], state["c"]))
        return {"h": h, "c": c}


class Looped(nn.Module):
    """`kept` gets the states, for the twin."""

    def __init__(self, cell, wrap=None):
        super().__init__()
        self.cell, self.head, self.wrap, self.kept = cell, nn.Linear(N, 4), wrap, None

    def forward(self, x):
        h = c = x.new_zeros(*x.shape[:-2], N)
        for t in range(x.shape[-2]):
            new = x[..., t, :]
            if isinstance(self.cell, Named):
                made = self.cell(new, state={"h": h, "c": c})
                h, c = made["h"], made["c"]
            elif isinstance(self.cell, Pair):
                h, c = self.cell(new, (h, c))
            elif self.wrap is not None:
                h = self.wrap(self.cell, new, h)
            else:
                h = self.cell(new, h)
            if self.kept is not None:
                self.kept.append((h, c))
        return self.head(h)


def batch(dtype=torch.float64):
    return torch.randn(B, T, 3, dtype=dtype), torch.randint(4, (B,))


def twin(model, data):
    """rms of dL/dstate by autograd, step by step."""
    model = copy.deepcopy(model)
    model.kept = []
    loss = F.cross_entropy(model(data[0]), data[1])
    found = []
    for which in range(2):
        states = [pair[which] for pair in model.kept]
        if states[0].requires_grad:
            given = torch.autograd.grad(loss, states, retain_graph=True)
            found.append([float(g.square().mean().sqrt()) for g in given])
    return found


@pytest.mark.parametrize("cell", [Plain, Pair, Named])
def test_every_step_is_that_of_autograd(cell):
    torch.manual_seed(0)
    model, data = Looped(cell()).double(), batch()
    (axis,) = sp.trace(model, data, F.cross_entropy).time
    h, *c = twin(model, data)
    assert (axis.site, axis.op, axis.layer, axis.reverse) == (
        "cell",
        cell.__name__.lower(),
        0,
        False,
    )
    assert axis.length == T
    assert axis.steps == tuple(range(1, T + 1))
    assert axis.h == pytest.approx(h, rel=1e-10)
    assert len(axis.c) == (0 if cell is Plain else T)
    if cell is not Plain:
        assert axis.c == pytest.approx(c[0], rel=1e-10)
    assert axis.gates == ()
    assert all(rate < 0 for rate in axis.rates)


def test_it_is_shown_and_written_out():
    d = sp.diagnose(Looped(Plain()), batch(torch.float32), F.cross_entropy)
    assert d.trace.to_dict()["time"][0]["site"] == "cell"
    assert "hrough time" in str(d.trace)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = Plain(), Plain(N), nn.Linear(N, 4)

    def forward(self, x):
        h = k = x.new_zeros(len(x), N)
        for t in range(x.shape[1]):
            h = self.one(x[:, t], h)
            k = self.two(h, k)
        return self.head(k)


def test_two_cells_in_one_loop_are_two_axes():
    axes = sp.trace(Two(), batch(torch.float32), F.cross_entropy).time
    assert [(a.site, a.length) for a in axes] == [("one", T), ("two", T)]


class EncoderDecoder(nn.Module):
    """The same cell reads and writes; the state goes over, or does not."""

    def __init__(self, anew):
        super().__init__()
        self.cell, self.head, self.anew = Plain(), nn.Linear(N, 4), anew

    def forward(self, x):
        h = x.new_zeros(len(x), N)
        for t in range(8):
            h = self.cell(x[:, t], h)
        read = h
        if self.anew:
            h = torch.tanh(h)
        for t in range(8, 12):
            h = self.cell(x[:, t], h)
        return self.head(h + read)


@pytest.mark.parametrize(("anew", "length"), [(False, 12), (True, 8)])
def test_an_encoder_and_a_decoder_with_one_cell(anew, length):
    (axis,) = sp.trace(EncoderDecoder(anew), batch(torch.float32), F.cross_entropy).time
    assert axis.length == len(axis.h) == length


class Shared(nn.Module):
    """One layer again and again in depth, with a mask that stays what it is."""

    def __init__(self, masked):
        super().__init__()
        self.layer, self.head, self.masked = Masked(), nn.Linear(N, 4), masked

    def forward(self, x):
        h, mask = F.pad(x.mean(1), (0, N - 3)), torch.ones(len(x), 1)
        for _ in range(8):
            h = self.layer(h, mask) if self.masked else self.layer(h)
        return self.head(h)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(N, N)

    def forward(self, h, mask=None):
        return torch.tanh(self.net(h)) * (1 if mask is None else mask)


@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_shared_over_depth_is_no_loop_over_time(masked):
    assert sp.trace(Shared(masked), batch(torch.float32), F.cross_entropy).time == ()


def test_a_state_that_is_detached_ends_the_sequence():
    model = Looped(Plain(), wrap=lambda cell, x, h: cell(x, h.detach()))
    assert sp.trace(model, batch(torch.float32), F.cross_entropy).time == ()


class Early(Looped):
    """The loss sees the state of step 7 alone."""

    def forward(self, x):
        h = x.new_zeros(len(x), N)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            seen = h if t == 6 else seen if t > 6 else None
        return self.head(seen)


def test_steps_without_a_delta_are_left_out():
    (axis,) = sp.trace(Early(Plain()), batch(torch.float32), F.cross_entropy).time
    assert (axis.length, axis.steps) == (T, tuple(range(1, 8)))


class Wrapping(nn.Module):
    """A cell of torch inside of one of the user's: seen once."""

    def __init__(self):
        super().__init__()
        self.inner = nn.GRUCell(3, N)

    def forward(self, x, h):
        return self.inner(x, h)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.GRU(3, N)

    def forward(self, x, h):
        return self.inner(x[None], h[None])[1][0]


def test_what_is_seen_inside_is_not_seen_again():
    data = batch(torch.float32)
    assert [a.site for a in sp.trace(Looped(Wrapping()), data, F.cross_entropy).time] == [
        "cell.inner"
    ]
    sites = {
        a.site.partition("#")[0] for a in sp.trace(Looped(Layers()), data, F.cross_entropy).time
    }
    assert sites == {"cell.inner"}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_cells(reentrant):
    def wrap(cell, x, h):
        x = x + 0 * saving.head.bias.sum()  # what is saved re-entrantly needs an input that learns
        return checkpoint(cell, x, h, use_reentrant=reentrant)

    torch.manual_seed(0)
    data = batch()
    plain, saving = Looped(Plain()).double(), Looped(Plain(), wrap).double()
    saving.load_state_dict(plain.state_dict())
    (expected,) = sp.trace(plain, data, F.cross_entropy).time
    (found,) = sp.trace(saving, data, F.cross_entropy).time
    known = dict(zip(expected.steps, expected.h, strict=True))
    assert found.length == T
    assert len(found.steps) >= T - 1
    assert found.h == pytest.approx([known[t] for t in found.steps], rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    model, data = Looped(Pair()).to(dtype), batch(dtype)
    (axis,) = sp.trace(model, data, lambda y, t: F.cross_entropy(y.float(), t)).time
    assert len(axis.h) == len(axis.c) == T
    exact = sp.trace(copy.deepcopy(model).double(), (data[0].double(), data[1]), F.cross_entropy)
    assert axis.h == pytest.approx(exact.time[0].h, rel=0.2, abs=1e-5)


def test_complex_states():
    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, N)
            self.angle = nn.Parameter(torch.rand(N))

        def forward(self, x, h):
            return h * torch.polar(torch.ones(N), self.angle) + self.a(x)

    class Unitary(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = Turning(), nn.Linear(N, 4)

        def forward(self, x):
            h = torch.zeros(len(x), N, dtype=torch.complex64)
            for t in range(x.shape[1]):
                h = self.cell(x[:, t], h)
            return self.head(h.real)

    (axis,) = sp.trace(Unitary(), batch(torch.float32), F.cross_entropy).time
    assert axis.h == pytest.approx([axis.h[-1]] * T, rel=1e-5)  # a turn keeps every length


def test_states_changed_in_place_are_no_sequence_and_no_error():
    def wrap(cell, x, h):
        return cell(x, h).mul_(0.5)

    class Adding(Plain):
        def forward(self, x, h):
            return self.a(x) + self.b(h)

    assert sp.trace(Looped(Adding(), wrap), batch(torch.float32), F.cross_entropy).time == ()


def test_vmapped_cells_are_no_error():
    def wrap(cell, x, h):
        return torch.vmap(cell)(x, h)

    model = Looped(Plain(), wrap)
    with Called(model) as seen:
        model(batch(torch.float32)[0])
    assert list(seen.axes()) == []


def test_a_compiled_cell():
    model = Looped(Plain())
    model.cell = torch.compile(model.cell, backend="eager")
    (axis,) = sp.trace(model, batch(torch.float32), F.cross_entropy).time
    assert (axis.site, axis.length) == ("cell", T)


def test_sequences_without_a_batch():
    class One(Looped):
        def forward(self, x):
            return super().forward(x[0])[None]

    x, y = batch(torch.float32)
    (axis,) = sp.trace(One(Plain()), (x[:1], y[:1]), F.cross_entropy).time
    assert len(axis.h) == T


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_what_it_was(fails):
    class Failing(Plain):
        calls = 0

        def forward(self, x, h):
            self.calls += 1
            if fails and self.calls == 7:
                raise ValueError("no more")
            return F.dropout(super().forward(x, h), 0.1)

    model, data = Looped(Failing()), batch(torch.float32)
    before, numbers = Snapshot(model, data, None), (torch.get_rng_state(), random.getstate())
    if fails:
        with pytest.raises(SignalpropError, match="no more"):
            sp.trace(model, data, F.cross_entropy)
    else:
        assert len(sp.trace(model, data, F.cross_entropy).time) == 1
    assert before.changed() == []
    assert torch.equal(numbers[0], torch.get_rng_state())
    assert numbers[1] == random.getstate()
    assert not any(m._forward_hooks or m._forward_hooks_with_kwargs for m in model.modules())


def test_nothing_is_left_on_a_parameter_that_is_the_state():
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.start = nn.Parameter(torch.randn(B, N))

        def forward(self, x, h=None):
            return self.start

    model = Looped(Same())
    sp.trace(model, batch(torch.float32), F.cross_entropy)
    assert not model.cell.start._backward_hooks


def test_no_state_is_kept_alive():
    alive = []

    class Watched(Plain):
        def forward(self, x, h):
            made = super().forward(x, h)
            alive.append(weakref.ref(made))
            return made

    seen = sp.trace(Looped(Watched()), batch(torch.float32), F.cross_entropy)
    gc.collect()
    assert len(seen.time) == 1
    assert not any(ref() is not None for ref in alive)
