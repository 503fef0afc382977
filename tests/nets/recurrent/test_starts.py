import pytest
import torch
from torch import nn

from signalprop.nets.recurrent import LSTM, MinGRU, identity_rnn_, orthogonal_recurrent_


def test_an_identity_recurrence_and_no_biases():
    net = nn.RNN(200, 30, 2, nonlinearity="relu", bidirectional=True)
    assert identity_rnn_(net, 0.5) is net
    for name, p in net.named_parameters():
        if "weight_hh" in name:
            assert torch.equal(p, 0.5 * torch.eye(30))
        elif "bias" in name:
            assert not p.any()
        else:
            assert p.std().item() == pytest.approx(0.001, rel=0.1)
            assert p.requires_grad
    kept = net.weight_ih_l0.detach().clone()
    identity_rnn_(net, input_std=None)
    assert torch.equal(net.weight_ih_l0, kept)
    assert torch.equal(net.weight_hh_l1, torch.eye(30))


@pytest.mark.parametrize("scale", [1.0, 0.9])
def test_the_error_of_an_idle_net_decays_by_the_scale_a_step(scale):
    net = identity_rnn_(nn.RNN(3, 5, nonlinearity="relu", dtype=torch.float64), scale)
    h = torch.rand(1, 1, 5, dtype=torch.float64, requires_grad=True)
    _, end = net(torch.zeros(1000, 1, 3, dtype=torch.float64), h)
    (delta,) = torch.autograd.grad(end.sum(), h)
    torch.testing.assert_close(delta, torch.full_like(delta, scale**1000), rtol=1e-11, atol=0)


def test_other_layers_of_a_model_are_left_alone():
    net = nn.ModuleDict(
        {
            "irnn": nn.RNNCell(3, 4, nonlinearity="relu", bias=False),
            "tanh": nn.RNN(3, 4),
            "head": nn.Linear(4, 2),
        }
    )
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    identity_rnn_(net)
    assert torch.equal(net["irnn"].weight_hh, torch.eye(4))
    changed = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"irnn.weight_ih", "irnn.weight_hh"}
    orthogonal_recurrent_(net)
    changed = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"irnn.weight_ih", "irnn.weight_hh", "tanh.weight_hh_l0"}


LAYERS = {
    "rnn": (lambda: nn.RNN(3, 6, 2, bidirectional=True), 1),
    "gru": (lambda: nn.GRU(3, 6, 2), 3),
    "lstm": (lambda: nn.LSTM(3, 6, 2), 4),
    "projected": (lambda: nn.LSTM(3, 6, 2, proj_size=2), 4),
    "ours": (lambda: LSTM(3, 6, peepholes=True), 4),
    "1997": (lambda: LSTM(3, 6, cell="1997"), 3),
    "rnn cell": (lambda: nn.RNNCell(3, 6), 1),
    "gru cell": (lambda: nn.GRUCell(3, 6), 3),
    "lstm cell": (lambda: nn.LSTMCell(3, 6), 4),
    "half": (lambda: nn.GRU(3, 6, dtype=torch.bfloat16), 3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_gate_is_orthogonal(name):
    make, gates = LAYERS[name]
    layer = make()
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    assert orthogonal_recurrent_(layer, 0.5) is layer
    for key, p in layer.named_parameters():
        if "weight_hh" not in key:
            assert torch.equal(p, before[key])
            continue
        assert p.shape[0] == 6 * gates
        for block in p.float().split(6):
            gram = block.T @ block
            slack = 0.02 if name == "half" else 1e-6
            torch.testing.assert_close(gram, 0.25 * torch.eye(len(gram)), rtol=0, atol=slack)
        assert gates == 1 or not torch.equal(p[:6], p[6:12])
    orthogonal_recurrent_(layer, zero_bias=True)
    assert not any(p.any() for key, p in layer.named_parameters() if "bias" in key)


def test_the_norm_of_the_error_is_kept():
    net = orthogonal_recurrent_(nn.RNN(3, 5, dtype=torch.float64), 1.1, zero_bias=True)
    # at 0, tanh is the identity
    h = torch.zeros(1, 1, 5, dtype=torch.float64, requires_grad=True)
    _, end = net(torch.zeros(200, 1, 3, dtype=torch.float64), h)
    error = torch.randn_like(end)
    (delta,) = torch.autograd.grad(end, h, error)
    torch.testing.assert_close(delta.norm(), 1.1**200 * error.norm(), rtol=1e-11, atol=0)


def test_random_numbers_come_from_where_they_are_said_to():
    def drawn(seed):
        g = torch.Generator().manual_seed(seed)
        net = nn.RNN(3, 5, nonlinearity="relu")
        identity_rnn_(net, generator=g)
        orthogonal_recurrent_(net, generator=g)
        return torch.cat([net.weight_ih_l0.ravel(), net.weight_hh_l0.ravel()])

    state = torch.get_rng_state()
    first = drawn(1)
    torch.set_rng_state(state)
    torch.manual_seed(99)
    assert torch.equal(first, drawn(1))
    assert not torch.equal(first, drawn(2))


def test_a_shared_weight_is_drawn_once():
    net, single = nn.ModuleList([nn.RNNCell(3, 5), nn.RNNCell(3, 5)]), nn.RNN(3, 5)
    net[1].weight_hh = net[0].weight_hh
    torch.manual_seed(0)
    orthogonal_recurrent_(net)
    torch.manual_seed(0)
    orthogonal_recurrent_(single)
    assert torch.equal(net[1].weight_hh, single.weight_hh_l0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: identity_rnn_(nn.RNN(3, 4)), "nonlinearity='relu' to initialise"),
        (lambda: identity_rnn_(nn.LSTM(3, 4)), "nonlinearity='relu' to initialise"),
        (
            lambda: identity_rnn_(nn.RNN(3, 4, nonlinearity="relu"), input_std=-1.0),
            "input_std has to be at least 0",
        ),
        (
            lambda: identity_rnn_(nn.RNN(3, 4, nonlinearity="relu"), float("inf")),
            "scale has to be a finite number",
        ),
        (lambda: orthogonal_recurrent_(nn.Linear(3, 4)), "to initialise"),
        (lambda: orthogonal_recurrent_(MinGRU(3, 4)), "to initialise"),
        (lambda: orthogonal_recurrent_(nn.RNN(3, 4), float("nan")), "gain has to be a finite"),
    ],
)
def test_what_makes_no_sense(call, match):
    with pytest.raises(ValueError, match=match):
        call()
