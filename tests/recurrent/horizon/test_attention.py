"""Credit over positions, against autograd by hand."""

import pytest
import torch
from tests.references.state import Snapshot
from torch import nn

from signalprop.errors import SignalpropError
from signalprop.recurrent.horizon.measure import horizon


class Text(nn.Module):
    """Token numbers in, one number a class out; nothing after the encoder has the positions."""

    def __init__(self, batch_first=True, causal=False):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
        self.embed, self.causal = nn.Embedding(20, 8), causal
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head, self.axis = nn.Linear(8, 3), 1 if batch_first else 0

    def forward(self, ids, pad=None):
        return self.head(self.encode(self.embed(ids), pad).mean(self.axis))

    def encode(self, x, pad=None):
        length = x.shape[self.axis]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        return self.encoder(x, mask=mask, src_key_padding_mask=pad)


def by_hand(net, ids, last, errors=1, seed=0):
    """Credit at every position of the last one, (T,), for one sample."""
    generator = torch.Generator().manual_seed(seed)
    x = net.embed(ids).detach().requires_grad_()
    made = net.encode(x)
    e = torch.randn(len(ids), 8, generator=generator)
    (found,) = torch.autograd.grad((made[:, last] * e).sum(), x)
    return found.square().sum((0, 2)).sqrt()


def test_credit_is_autograds():
    net, ids = Text().eval(), torch.randint(20, (3, 7))
    (curve,) = horizon(net, (ids,), errors=1).curves
    assert (curve.site, curve.op, curve.lags) == ("embed", "attention", tuple(range(7)))
    want = by_hand(net, ids, 6).flip(0)
    assert curve.credit == pytest.approx((want / want[0]).tolist(), rel=1e-4)


def test_a_causal_net_and_positions_first():
    torch.manual_seed(0)
    net = Text(causal=True)
    torch.manual_seed(0)
    turned = Text(batch_first=False, causal=True)
    ids = torch.randint(20, (3, 7))
    (a,), (b,) = horizon(net, (ids,)).curves, horizon(turned, (ids.t(),), batch_dim=1).curves
    assert a.credit == pytest.approx(b.credit, rel=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_counts_from_the_last_that_is_not_padded(side):
    net, ids = Text(), torch.randint(20, (3, 7))
    (want,) = horizon(net, (ids,)).curves
    junk = torch.randint(20, (3, 4))
    pad = torch.zeros(3, 11, dtype=torch.bool)
    if side == "right":
        padded = torch.cat([ids, junk], 1)
        pad[:, 7:] = True
    else:
        padded = torch.cat([junk, ids], 1)
        pad[:, :4] = True
    (found,) = horizon(net, {"ids": padded, "pad": pad}).curves
    assert found.lags == want.lags
    assert found.credit == pytest.approx(want.credit, rel=1e-3)


def test_floating_input_and_its_name():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    (curve,) = horizon(net, torch.randn(3, 7, 8)).curves
    assert (curve.site, len(curve.lags)) == ("input", 7)


def test_positions_that_no_module_returned():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.cut, self.mine = nn.Conv2d(1, 8, 2, 2), nn.Parameter(torch.randn(1, 1, 8))
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            x = self.cut(x).flatten(2).mT
            return self.encoder(torch.cat([self.mine.expand(len(x), -1, -1), x], 1))[:, 0]

    (curve,) = horizon(Patches(), torch.randn(3, 1, 4, 4)).curves
    assert (curve.site, len(curve.lags)) == ("encoder.input", 5)


def test_attention_written_by_hand_and_a_recurrent_layer_beside_it():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.q, self.k = (
                nn.GRU(2, 4, batch_first=True),
                nn.Linear(4, 4),
                nn.Linear(4, 4),
            )

        def forward(self, x):
            h = self.rnn(x)[0]
            return (self.q(h) @ self.k(h).mT / 2).softmax(-1) @ h

    found = horizon(Both(), torch.randn(3, 9, 2)).curves
    assert [(c.site, c.op) for c in found] == [("rnn", "gru"), ("input", "attention")]


def test_no_attention_over_one_position_is_made_up():
    net = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4))
    for x in (torch.randn(3, 4), torch.randn(3, 4, 4)):  # probabilities are no attention
        with pytest.raises(SignalpropError, match="nothing in Sequential recurs"):
            horizon(net, x)


def test_a_frozen_net():
    net, ids = Text(), torch.randint(20, (3, 7))
    (want,) = horizon(net, (ids,)).curves
    assert horizon(net.requires_grad_(False), (ids,)).curves == (want,)


def test_untouched():
    net, ids = Text(), torch.randint(20, (3, 7))
    before = Snapshot(net, ids)
    horizon(net, (ids,))
    assert before.changed() == []


@pytest.mark.parametrize("name", ["GPT2", "Bert", "Llama"])
def test_models_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    small = {
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0},
        "Bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "intermediate_size": 32},
        "Llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                  "intermediate_size": 32, "num_key_value_heads": 2},
    }[name]  # fmt: skip
    model = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(vocab_size=20, **small)
    )
    ids, mask = torch.randint(20, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[:, 6:] = 0
    (curve,) = horizon(model, {"input_ids": ids, "attention_mask": mask}).curves
    assert "embed" in curve.site or curve.site == "wte"
    assert len(curve.lags) == 6
    assert 0 < curve.credit[-1] < 1
