"""Credit over the lag: against an unrolled twin, closed forms, and every form a layer comes in."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.references import time_twin as twin
from tests.references.state import Snapshot
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from signalprop.errors import ModelError, SignalpropError
from signalprop.nets.recurrent import LSTM, MinGRU, MinLSTM
from signalprop.recurrent.horizon.curve import sizes_of
from signalprop.recurrent.horizon.measure import horizon
from signalprop.recurrent.horizon.seen import Seen
from signalprop.recurrent.jacobians.steps import steps_of

D = torch.float64


def draw(*shape):
    return torch.randn(*shape, dtype=D)


def curves(model, x, **options):
    return horizon(model, x, gains=False, **options).curves


def agree(a, b, rel=1e-9):
    assert a.lags == b.lags
    assert a.credit == pytest.approx(b.credit, rel=rel)


# ---- against the twin ---------------------------------------------------------------------------

KINDS = {
    "rnn_tanh": lambda: nn.RNN(2, 5),
    "rnn_relu": lambda: nn.RNN(2, 5, nonlinearity="relu"),
    "gru": lambda: nn.GRU(2, 5),
    "lstm": lambda: nn.LSTM(2, 5),
    "lstm, projection": lambda: nn.LSTM(2, 5, proj_size=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_those_of_an_unrolled_twin(kind):
    net = KINDS[kind]().double()
    x = draw(30, 3, 2)
    with Seen(net) as seen:
        net(x)
    run = seen.chains[0].runs()[0]
    steps = steps_of(run, torch.arange(3))
    sizes = sizes_of(steps, 1, torch.Generator().manual_seed(5))
    e = torch.randn(1, 3, steps.size, generator=torch.Generator().manual_seed(5), dtype=D)[0]
    weights = tuple(w if w is None else w.detach() for w in run.weights)
    exact = twin.errors(twin.states(run.place.op, x, run.start, weights), e)
    norms = torch.ldexp(sizes.part, sizes.power)[:, 0]
    assert torch.allclose(norms, exact.norm(dim=-1), rtol=1e-10)
    want = exact.flip(0).square().sum((1, 2)).sqrt()
    (curve,) = curves(net, x, errors=1, seed=5, batch_dim=1)
    assert curve.credit == pytest.approx((want / want[0]).tolist(), rel=1e-10)
    assert curve.floor == torch.finfo(D).eps


def test_many_errors_give_the_frobenius_norm():
    net = nn.RNN(2, 6).double()
    x = draw(8, 1, 2)
    (curve,) = curves(net, x, errors=4000, batch_dim=1)
    with Seen(net) as seen:
        net(x)
    steps = steps_of(seen.chains[0].runs()[0], torch.arange(1))
    product = torch.eye(6, dtype=D)
    for lag, t in enumerate(range(8, 1, -1), 1):
        product = product @ steps.matrix(t)[0]
        assert curve.credit[lag] == pytest.approx(float(product.norm()) / 6**0.5, rel=0.05)


# ---- closed forms -------------------------------------------------------------------------------


class Leak(nn.Module):
    """h_t = gamma h_(t-1) + x_t, in torch's own layer."""

    def __init__(self, gamma, size=3, dtype=D):
        super().__init__()
        self.rnn = nn.RNN(size, size, nonlinearity="relu", bias=False).to(dtype)
        with torch.no_grad():
            self.rnn.weight_ih_l0.copy_(torch.eye(size))
            self.rnn.weight_hh_l0.copy_(gamma * torch.eye(size, dtype=D))

    def forward(self, x):
        return self.rnn(x)[0]


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_a_leaky_integrator(gamma):
    (curve,) = curves(Leak(gamma), torch.rand(400, 2, 3, dtype=D), batch_dim=1)
    assert curve.steps == twin.floor_of(1 / math.e, gamma)
    assert curve.reach(0.05) == twin.floor_of(0.05, gamma)
    assert curve.rate == pytest.approx(math.log(gamma), rel=1e-9)
    assert curve.credit[-1] == pytest.approx(gamma**399, rel=1e-9)  # as small as 1e-120


def test_credit_far_below_what_the_dtype_holds():
    (curve,) = curves(Leak(0.5, dtype=torch.float32), torch.rand(200, 2, 3), batch_dim=1)
    assert curve.credit[-1] == pytest.approx(0.5**199, rel=1e-6)
    assert curve.silent == 23  # the epsilon of float32 is 2^-23


@pytest.mark.parametrize(("gamma", "way"), [(8.0, "grows above"), (1 / 16, "falls below")])
def test_what_no_float_holds_is_cut_and_said(gamma, way):
    net = Leak(gamma)
    x = torch.zeros(400, 1, 3, dtype=D)
    x[0] = 1e-300 if gamma > 1 else 1
    net.rnn.nonlinearity = "relu"
    h = torch.ones(1, 3, dtype=D)

    class Held(nn.Module):
        """The slope alone, so that the state stays finite."""

        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(1, 1, dtype=D)

        def forward(self, x, h):
            return (h - h.detach()) * gamma + x

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = Held()

        def forward(self, x):
            s = h
            for one in x:
                s = self.held(one, s)
            return s

    found = horizon(Outer(), x, batch_dim=1, gains=False)
    (curve,) = found.curves
    lag = int(993 / abs(math.log2(gamma))) + 1
    assert len(curve.credit) == lag
    assert all(0 < c < math.inf for c in curve.credit)
    assert way in found.notes[0]
    assert f"at lag {lag}" in found.notes[0]
    assert curve.rate == pytest.approx(math.log(gamma), rel=1e-9)


def test_the_carousel_of_1997_is_constant_over_10_000_steps():
    net = LSTM(1, 3, cell="1997", truncated=True)
    (curve,) = curves(net, torch.randn(10_000, 1, 1), batch_dim=1)
    assert len(curve.lags) == 10_000
    later = np.array(curve.credit[1:])
    assert np.abs(later / later[0] - 1).max() < 1e-6
    assert curve.steps is None
    assert curve.silent is None


def test_minimal_layers_are_their_decays():
    for kind in (MinGRU, MinLSTM):
        net = kind(2, 4).double()
        x = draw(40, 3, 2)
        logs = net.decays(x).detach()
        (curve,) = curves(net, x, errors=3000, batch_dim=1)
        want = logs[1:].flip(0).cumsum(0).exp().square().mean((1, 2)).sqrt()
        assert curve.credit[1:12] == pytest.approx(want[:11].tolist(), rel=0.08)
        assert curve.op == kind.__name__.lower()


# ---- every form a layer comes in ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_layers_and_directions(kind):
    net = getattr(nn, kind)(2, 4, num_layers=2, bidirectional=True).double()
    x = draw(20, 3, 2)
    found = curves(net, x, batch_dim=1)
    assert [(c.layer, c.reverse) for c in found] == [(0, False), (0, True), (1, False), (1, True)]
    one = getattr(nn, kind)(2, 4).double()
    for name, p in one.named_parameters():
        p.data.copy_(getattr(net, f"{name}_reverse"))
    agree(curves(one, x.flip(0), batch_dim=1)[0], found[1])


def test_a_layer_is_measured_by_itself_at_the_states_it_has_above_another():
    net = nn.GRU(2, 4, num_layers=2).double()
    below, above = nn.GRU(2, 4).double(), nn.GRU(4, 4).double()
    for k, one in enumerate((below, above)):
        for name, p in one.named_parameters():
            p.data.copy_(getattr(net, name.replace("_l0", f"_l{k}")))
    x = draw(20, 3, 2)
    found = curves(net, x, batch_dim=1)
    agree(curves(below, x, batch_dim=1)[0], found[0])
    agree(curves(above, below(x)[0].detach(), batch_dim=1)[0], found[1])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, MinGRU, "peepholes"])
@pytest.mark.parametrize("way", [0, 1])
def test_packed_sequences_count_from_their_own_ends(kind, way):
    kwargs = {"bidirectional": True}
    net = LSTM(2, 4, peepholes=True, **kwargs) if kind == "peepholes" else kind(2, 4, **kwargs)
    net = net.double()
    parts = [draw(n, 2) for n in (25, 11, 14)]
    packed = pack_sequence(parts, enforce_sorted=False)
    whole = curves(net, packed)[way]
    assert len(whole.lags) == 25
    last = curves(net, parts[0][:, None], batch_dim=1)[way]
    # beyond 14 steps only the longest is left; of it the same error, as samples draw one each
    assert whole.credit[20] / whole.credit[15] == pytest.approx(
        last.credit[20] / last.credit[15], rel=0.5
    )
    same = pack_sequence([parts[0]] * 3)
    many = curves(net, parts[0][:, None].expand(-1, 3, -1), batch_dim=1)[way]
    agree(curves(net, same)[way], many)


@pytest.mark.parametrize("kind", ["torch", "peepholes", "minimal"])
def test_of_packed_sequences_the_reverse_begins_at_each_ones_end(kind):
    net = {
        "torch": lambda: nn.LSTM(2, 4, bidirectional=True),
        "peepholes": lambda: LSTM(2, 4, peepholes=True, bidirectional=True),
        "minimal": lambda: MinGRU(2, 4, bidirectional=True),
    }[kind]().double()
    parts = [draw(n, 2) for n in (9, 6)]

    def reverse(x, rows):
        with Seen(net) as seen:
            net(x)
        made = [*(r for chain in seen.chains for r in chain.runs()), *seen.runs, *seen.linear]
        return made[1].steps(rows) if kind == "minimal" else steps_of(made[1], rows)

    both, alone = reverse(pack_sequence(parts), torch.arange(2)), reverse(parts[1], torch.arange(1))
    for t in range(1, 7):
        assert torch.allclose(both.matrix(t)[1], alone.matrix(t)[0], atol=1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
def test_batch_first_unbatched_and_given_states(batch_first):
    net = nn.LSTM(2, 4, batch_first=batch_first).double()
    x = draw(15, 1, 2)
    batched = x.transpose(0, 1) if batch_first else x
    want = curves(net, batched, batch_dim=0 if batch_first else 1)[0]
    agree(curves(net, x[:, 0])[0], want)
    h, c = draw(1, 1, 4), draw(1, 1, 4)
    other = curves(net, (batched, (h, c)), batch_dim=0 if batch_first else 1)[0]
    assert other.credit != want.credit


class Stream(nn.Module):
    """The layer is called once for every step."""

    def __init__(self, layer, detached=None):
        super().__init__()
        self.layer, self.detached = layer, detached

    def forward(self, x):
        state = None
        for t, one in enumerate(x):
            output, state = self.layer(one[None], state)
            if t + 1 == self.detached:
                state = tuple(s.detach() for s in state)
        return output


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_one_call_a_step_is_one_sequence(kind):
    layer = kind(2, 4, num_layers=2).double()
    x = draw(20, 3, 2)
    want = curves(layer, x, batch_dim=1)
    found = curves(Stream(layer), x, batch_dim=1)
    assert [c.site for c in found] == ["layer", "layer"]
    for a, b in zip(found, want, strict=True):
        agree(a, b)


def test_a_detached_state_cuts_the_credit():
    net = Stream(nn.LSTM(2, 4), detached=8)
    found = horizon(net, torch.randn(20, 3, 2), batch_dim=1)
    assert [(c.site, len(c.lags)) for c in found.curves] == [("layer", 8), ("layer#2", 12)]
    assert any("detached" in note for note in found.notes)


class Cells(nn.Module):
    def __init__(self, cell, between=None):
        super().__init__()
        self.cell, self.between = cell, between

    def forward(self, x):
        state = None
        for one in x:
            state = self.cell(one, state)
            if self.between is not None:
                state = self.between(state)
        return state


@pytest.mark.parametrize(
    ("cell", "layer"), [(nn.LSTMCell, nn.LSTM), (nn.GRUCell, nn.GRU), (nn.RNNCell, nn.RNN)]
)
def test_a_loop_over_cells_is_the_layer(cell, layer):
    loop, whole = Cells(cell(2, 4).double()), layer(2, 4).double()
    for name, p in whole.named_parameters():
        p.data.copy_(getattr(loop.cell, name.removesuffix("_l0")))
    x = draw(20, 3, 2)
    (found,), (want,) = curves(loop, x, batch_dim=1), curves(whole, x, batch_dim=1)
    assert (found.site, found.op) == ("cell", want.op)
    agree(found, want)


class Mine(nn.Module):
    """A cell of the user's own: an LSTM cell that returns an output beside its state."""

    def __init__(self, cell):
        super().__init__()
        self.ih, self.hh = nn.Linear(2, 16, dtype=D), nn.Linear(4, 16, dtype=D)
        for mine, theirs in ((self.ih, "ih"), (self.hh, "hh")):
            mine.weight.data.copy_(getattr(cell, f"weight_{theirs}"))
            mine.bias.data.copy_(getattr(cell, f"bias_{theirs}"))

    def forward(self, x, state):
        h, c = state
        i, f, g, o = (self.ih(x) + self.hh(h)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return {"read": h * 2, "state": (o.sigmoid() * c.tanh(), c)}


class MyLoop(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = (x.new_zeros(len(x[0]), 4), x.new_zeros(len(x[0]), 4))
        for one in x:
            state = self.cell(one, state)["state"]
        return state


def test_a_cell_of_the_users_own():
    cell = nn.LSTMCell(2, 4).double()
    x = draw(20, 3, 2)
    want = horizon(Cells(cell), x, batch_dim=1, exponents=2)
    found = horizon(MyLoop(Mine(cell)), x, batch_dim=1, exponents=2)
    assert found.curves[0].op == "mine"
    agree(found.curves[0], want.curves[0])
    assert found.gains[0].largest == pytest.approx(want.gains[0].largest, rel=1e-9)
    assert found.exponents[0].values == pytest.approx(want.exponents[0].values, rel=1e-9)


def test_what_the_code_does_between_the_calls_counts():
    cell = nn.GRUCell(2, 4).double()
    x = draw(20, 3, 2)
    plain = curves(Cells(cell), x, batch_dim=1)[0]
    halved = curves(Cells(cell, lambda h: h + 0.5 * (h.detach() - h)), x, batch_dim=1)[0]
    # the same states, every step's Jacobian half as large
    want = [c * 0.5**k for k, c in zip(plain.lags, plain.credit, strict=True)]
    assert halved.credit == pytest.approx(want, rel=1e-9)


class Mixed(nn.Module):
    """A state of its own beside the cell's: h <- (1 - m) h + m cell(x, h)."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(2, 4, dtype=D)

    def forward(self, x, keep=None):
        h = x.new_zeros(len(x[0]), 4)
        for one in x:
            made = self.cell(one, h)
            if keep is not None:
                keep.append(made)
            h = 0.5 * h + 0.5 * made
        return h


def test_a_state_beside_the_cells_own():
    net, x = Mixed(), draw(12, 3, 2)
    found = horizon(net, x, batch_dim=1, errors=1, seed=2)
    kept = []
    net(x, kept)
    e = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).to(D)
    made = torch.autograd.grad(kept[-1], kept, e)
    want = [float(g.norm() / made[-1].norm()) for g in made[::-1]]
    assert found.curves[0].credit == pytest.approx(want, rel=1e-9)
    assert found.gains == ()
    assert "keeps a state of its own" in found.notes[0]


def test_a_layer_called_twice_and_a_layer_inside():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(2, 2), nn.Linear(2, 3)

        def forward(self, x):
            return self.head(self.rnn(self.rnn(x)[0])[0][-1])

    data = torch.randn(9, 4, 2), torch.randint(3, (4,))
    assert [c.site for c in curves(Twice(), data, loss=F.cross_entropy)] == ["rnn", "rnn#2"]


def test_this_packages_lstm_is_torchs():
    net = nn.LSTM(2, 4, 2, bidirectional=True).double()
    mine = LSTM(2, 4, 2, bidirectional=True, peepholes=True).double()
    mine.load_state_dict(net.state_dict(), strict=False)
    with torch.no_grad():
        for name, p in mine.named_parameters():
            if name.startswith("weight_c"):
                p.zero_()
    x = draw(20, 3, 2)
    for a, b in zip(curves(mine, x, batch_dim=1), curves(net, x, batch_dim=1), strict=True):
        agree(a, b)


def test_dropout_is_that_of_the_pass():
    """With layers above a dropout that a second draw would change."""
    mine = LSTM(2, 4, 2, peepholes=True, dropout=0.5).double()
    with torch.no_grad():
        for name, p in mine.named_parameters():
            if name.startswith("weight_c"):
                p.zero_()
    net = nn.LSTM(2, 4, 2, dropout=0.5).double()
    net.load_state_dict({k: v for k, v in mine.state_dict().items() if "weight_c" not in k})
    x = draw(20, 3, 2)
    torch.manual_seed(1)
    a = curves(mine, x, batch_dim=1)
    torch.manual_seed(1)
    b = curves(net, x, batch_dim=1)
    agree(a[1], b[1])


# ---- the result, the rest of the world, bad input -----------------------------------------------


def test_result_as_plain_data():
    net = nn.LSTM(2, 4)
    found = horizon(net, torch.randn(20, 3, 2), batch_dim=1, exponents=2, spectra=True)
    assert (found.model, found.samples) == ("LSTM", 3)
    assert found.gains[0].values is not None
    assert found.gains[0].values.shape == (16, 3, 8)
    frame = found.frame()
    assert list(frame.index) == [""]
    assert frame.loc["", "longest"] == 19
    told = json.loads(json.dumps(found.to_dict()))
    assert told["curves"][0]["rate"] == pytest.approx(found.curves[0].rate)
    assert len(told["exponents"][0]["values"]) == 2


def test_the_same_seed_gives_the_same_and_samples_are_spread():
    net, x = nn.GRU(2, 4), torch.randn(20, 40, 2)
    a, b, c = (horizon(net, x, batch_dim=1, seed=s) for s in (0, 0, 1))
    assert a.to_dict() == b.to_dict()
    assert a.curves[0].credit != c.curves[0].credit
    assert a.samples == 8
    assert a.gains[0].samples == 4
    assert horizon(net, x, batch_dim=1, samples=None).samples == 40


class Everything(nn.Module):
    def __init__(self, fails=False):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.rnn = nn.LSTM(2, 4, 2, dropout=0.3)
        self.mine = LSTM(4, 4, 2, peepholes=True, dropout=0.3)
        self.cell, self.mix = nn.GRUCell(4, 4), nn.GRUCell(4, 4)
        self.fails, self.seen = fails, []
        self.cell.weight_hh.requires_grad_(False)

    def forward(self, x):
        self.seen.append(len(x))
        x = self.norm(x.flatten(0, 1)).view_as(x)
        x = self.mine(self.rnn(x)[0])[0]
        h = k = x.new_zeros(len(x[0]), 4)
        for one in x:
            h = self.cell(F.dropout(one, 0.2), h)
            k = 0.5 * k + 0.5 * self.mix(h, k)
        if self.fails:
            raise ValueError("no")
        return k


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_untouched(fails):
    net, x = Everything(fails), torch.randn(8, 3, 2)
    net(x).sum().backward() if not fails else None
    before = Snapshot(net, x)
    if fails:
        with pytest.raises(ModelError, match="raised ValueError: no"):
            horizon(net, x, batch_dim=1)
    else:
        assert len(horizon(net, x, batch_dim=1).curves) == 6
    assert before.changed() == []


def test_a_model_that_writes_to_its_own_weights_is_put_back():
    class Writes(nn.GRU):
        def forward(self, x, hx=None):
            self.weight_hh_l0.data.mul_(0.5)
            return super().forward(x, hx)

    net, x = Writes(2, 4), torch.randn(8, 3, 2)
    before = Snapshot(net, x)
    assert horizon(net, x, batch_dim=1).curves
    assert before.changed() == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    (curve,) = curves(nn.GRU(2, 4).to(dtype), torch.randn(20, 3, 2, dtype=dtype), batch_dim=1)
    assert curve.floor == torch.finfo(dtype).eps
    assert 0 < curve.credit[-1] < 1


def test_frozen_layers_have_a_horizon():
    net = Cells(nn.GRUCell(2, 4).requires_grad_(False), lambda h: h * 0.9)
    (curve,) = curves(net, torch.randn(20, 3, 2), batch_dim=1)
    assert 0 < curve.credit[5] < 1
    assert not any(p.requires_grad for p in net.parameters())


def refused(match, model, x, **options):
    with pytest.raises(SignalpropError, match=match) as caught:
        horizon(model, x, **options)
    assert "\n" not in str(caught.value)


def test_bad_input_is_one_sentence():
    rnn, x = nn.RNN(2, 3), torch.randn(9, 4, 2)
    refused("nothing in Linear recurs", nn.Linear(2, 3), torch.randn(4, 2))
    refused("one step", rnn, x[:1])
    refused("steps=10", rnn, x, steps=[2, 10])
    refused("steps count from 2", rnn, x, steps=[1])
    refused("errors=0", rnn, x, errors=0)
    refused("exponents=-1", rnn, x, exponents=-1)
    refused("the model raised", rnn, torch.randn(9, 4, 5))
    with torch.no_grad():
        rnn.weight_hh_l0[0, 0] = math.nan
    refused("not finite at step 9", rnn, x)


def test_a_shared_activation_and_a_residual_stack_are_no_loops():
    act, block = nn.ReLU(), nn.Linear(4, 4)
    refused("nothing in", nn.Sequential(*[block, act] * 6), torch.randn(3, 4))
