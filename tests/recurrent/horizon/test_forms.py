"""Credit over the lag, of every form a layer comes in."""

import pytest
import torch
import torch.nn.functional as F
from tests.recurrent.horizon.common import Cells, D, agree, curves, draw
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from signalprop.nets.recurrent import LSTM, MinGRU
from signalprop.recurrent.horizon.measure import horizon
from signalprop.recurrent.horizon.seen import Seen
from signalprop.recurrent.jacobians.steps import steps_of


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
