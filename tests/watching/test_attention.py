"""Entropy and largest logit of attention, from sampled queries, against all of it written out."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from signalprop.watching.file.reader import Run
from signalprop.watching.passes import attention
from signalprop.watching.watch import watch

B, H, T, D = 3, 2, 12, 8  # small enough that every query and sample is looked at


def whole(logits):
    """(B, H, T, S), -inf where masked: entropy of each head, mean of ln(allowed), largest logit."""
    weights = torch.softmax(logits.double(), -1)
    entropy = -(weights * torch.where(weights > 0, weights.log(), 0.0)).sum(-1).mean((0, 2))
    most = (logits > -math.inf).sum(-1).double().log().mean()
    return entropy, float(most), float(logits.max())


def same(found, logits):
    entropy, most, largest = whole(logits)
    assert found is not None
    assert torch.allclose(found.entropy.double(), entropy, rtol=1e-5)
    assert float(found.most) == pytest.approx(most, rel=1e-5)
    assert float(found.logit) == pytest.approx(largest, rel=1e-5)


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return [2 * torch.randn(B, H, T, D) for _ in range(3)]


def test_without_a_mask(qkv):
    q, k, v = qkv
    out = F.scaled_dot_product_attention(q, k, v)
    found = attention.seen("scaled_dot_product_attention", (q, k, v), {}, out)
    same(found, q @ k.transpose(-1, -2) / math.sqrt(D))


def test_causal(qkv):
    q, k, v = qkv
    found = attention.seen(
        "scaled_dot_product_attention", (q, k, v), {"is_causal": True, "scale": 0.7}, None
    )
    later = torch.ones(T, T).triu(1).bool()
    same(found, (q @ k.transpose(-1, -2) * 0.7).masked_fill(later, -math.inf))


@pytest.mark.parametrize("shape", [(T, T), (B, 1, T, T), (B, H, T, T), (B, 1, 1, T)])
@pytest.mark.parametrize("added", [False, True])
def test_masks(qkv, shape, added):
    q, k, v = qkv
    allowed = torch.rand(shape) > 0.3
    allowed[..., 0] = True
    mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min) if added else allowed
    found = attention.seen("scaled_dot_product_attention", (q, k, v, mask), {}, None)
    same(found, (q @ k.transpose(-1, -2) / math.sqrt(D)).masked_fill(~allowed, -math.inf))


def test_fewer_heads_of_keys_and_three_dimensions(qkv):
    q, k, v = qkv
    found = attention.seen(
        "scaled_dot_product_attention", (q, k[:, :1], v[:, :1]), {"enable_gqa": True}, None
    )
    same(found, q @ k[:, :1].transpose(-1, -2) / math.sqrt(D))
    found = attention.seen("scaled_dot_product_attention", (q[:, 0], k[:, 0], v[:, 0]), {}, None)
    same(found, (q[:, :1] @ k[:, :1].transpose(-1, -2)) / math.sqrt(D))


def test_weights_that_are_written_out_and_a_softmax_that_is_none(qkv):
    q, k, _ = qkv
    logits = q @ k.transpose(-1, -2)
    found = attention.seen("softmax", (logits,), {"dim": -1}, torch.softmax(logits, -1))
    same(found, logits)
    assert attention.seen("softmax", (logits,), {"dim": 1}, torch.softmax(logits, 1)) is None
    flat = logits.flatten(0, 1)
    assert attention.seen("softmax", (flat,), {"dim": -1}, torch.softmax(flat, -1)) is None


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("masked", ["no", "causal", "padding"])
@pytest.mark.parametrize("bias", [False, True])
def test_torchs_module(batch_first, masked, bias, tmp_path):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(H * D, H, bias=bias, batch_first=batch_first)

        def forward(self, x, **masks):
            return self.attend(x, x, x, need_weights=False, **masks)[0]

    net = Net()
    with torch.no_grad():
        net.attend.in_proj_weight *= 3
    x = torch.randn(B, T, H * D) if batch_first else torch.randn(T, B, H * D)
    masks = {}
    if masked == "causal":
        masks["attn_mask"] = torch.ones(T, T).triu(1).bool()
    elif masked == "padding":
        masks["key_padding_mask"] = torch.arange(T)[None] >= torch.tensor([12, 9, 5])[:, None]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with watch(net, optimizer, every=1, to=tmp_path / "run.sp"):
        net(x, **masks).square().sum().backward()
        optimizer.step()
    rows = x if batch_first else x.transpose(0, 1)
    q, k, _ = F.linear(rows, net.attend.in_proj_weight, net.attend.in_proj_bias).chunk(3, -1)
    q, k = (t.reshape(B, T, H, D).transpose(1, 2) for t in (q, k))
    logits = (q @ k.transpose(-1, -2) / math.sqrt(D)).detach()
    if masked == "causal":
        logits = logits.masked_fill(masks["attn_mask"], -math.inf)
    elif masked == "padding":
        logits = logits.masked_fill(masks["key_padding_mask"][:, None, None], -math.inf)
    entropy, most, largest = whole(logits)
    with Run(tmp_path / "run.sp") as run:
        got = {
            name: float(run.values(name, "attend").mean[0, 0])
            for name in run.statistics
            if name.startswith("attention")
        }
    assert got["attention_entropy"] == pytest.approx(float(entropy.mean()), rel=1e-4)
    assert got["attention_entropy_lowest"] == pytest.approx(float(entropy.min()), rel=1e-4)
    assert got["attention_entropy_most"] == pytest.approx(most, rel=1e-4)
    assert got["attention_logit"] == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_a_transformer_of_another_library(how, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16, attn_implementation=how
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    model.eval()  # no dropout
    ids = torch.randint(50, (3, 12))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, every=1, to=tmp_path / "run.sp") as watched:
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    assert watched.failed is None
    with Run(tmp_path / "run.sp") as run:
        entropy = run.values("attention_entropy").mean[0]
        most = run.values("attention_entropy_most").mean[0]
    assert np.isfinite(entropy).sum() == 2
    expected = sum(math.log(k) for k in range(1, 13)) / 12  # causal
    assert most[np.isfinite(most)] == pytest.approx([expected] * 2, rel=1e-3)
    assert (entropy[np.isfinite(entropy)] < expected + 1e-6).all()
