"""Entropy and largest logit of attention, from sampled queries, against all of it written out."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention.bias import causal_lower_right
from torch.overrides import TorchFunctionMode

from signalprop.watching.file.reader import Run
from signalprop.watching.passes import attention
from signalprop.watching.watch import watch

B, H, T, D = 3, 2, 12, 8  # small enough that every query and sample is looked at


def whole(logits):
    """(B, H, T, S), -inf where masked: entropy of each head, mean of ln(allowed), largest logit."""
    weights = torch.softmax(logits.double(), -1).nan_to_num(0.0)
    entropy = -(weights * torch.where(weights > 0, weights.log(), 0.0)).sum(-1).mean((0, 2))
    most = (logits > -math.inf).sum(-1).clamp(min=1).double().log().mean()
    return entropy, float(most), float(logits.max())


def same(found, logits):
    entropy, most, largest = whole(logits)
    assert found is not None
    assert isinstance(found.entropy, np.ndarray)  # of a CPU
    assert isinstance(found.most, float)
    assert isinstance(found.logit, float)
    assert torch.allclose(torch.from_numpy(found.entropy).double(), entropy, rtol=1e-5)
    assert float(found.most) == pytest.approx(most, rel=1e-5)
    assert float(found.logit) == pytest.approx(largest, rel=1e-5)


@pytest.fixture(params=["numpy", "torch"], autouse=True)
def way(request, monkeypatch):
    """Few numbers are read by numpy, many by torch."""
    if request.param == "torch":
        monkeypatch.setattr(attention, "ALONE", 0)
    attention._sample.cache_clear()
    yield
    attention._sample.cache_clear()


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


def sdpa(*args, **kwargs):
    return attention.seen("scaled_dot_product_attention", args, kwargs, None)


@pytest.mark.parametrize("size", [30.0, 1e-3])
def test_large_and_small_logits(qkv, size):
    q, k, v = qkv
    same(sdpa(q, k, v, scale=size), q @ k.transpose(-1, -2) * size)


def test_logits_far_below_zero(qkv):
    q, k, v = qkv
    mask = torch.full((T, T), -400.0)  # added, and nothing left out
    same(sdpa(q, k, v, mask), q @ k.transpose(-1, -2) / math.sqrt(D) - 400)


@pytest.mark.parametrize("added", [False, True])
def test_a_query_that_may_attend_to_nothing(qkv, added):
    q, k, v = qkv
    allowed = torch.rand(B, 1, T, T) > 0.3
    allowed[1, 0, 3:6] = False
    mask = torch.where(allowed, 0.0, -math.inf) if added else allowed
    logits = q @ k.transpose(-1, -2) / math.sqrt(D)
    same(sdpa(q, k, v, mask), logits.masked_fill(~allowed, -math.inf))


def test_a_mask_that_is_learned_and_one_for_all_keys(qkv):
    q, k, v = qkv
    logits = q @ k.transpose(-1, -2) / math.sqrt(D)
    bias = nn.Parameter(torch.randn(H, T, T))
    same(sdpa(q, k, v, bias), logits + bias.detach())
    allowed = torch.arange(T)[:, None] > 3
    same(sdpa(q, k, v, allowed), logits.masked_fill(~allowed, -math.inf))


def test_more_dimensions(qkv):
    q, k, v = (torch.stack([x, 2 * x]) for x in qkv)
    allowed = torch.rand(2, 1, 1, 1, T) > 0.3  # broadcast over the second
    allowed[..., 0] = True
    logits = (q @ k.transpose(-1, -2) / math.sqrt(D)).masked_fill(~allowed, -math.inf)
    same(sdpa(q, k, v, allowed), logits.flatten(0, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_with_and_without_autocast(qkv, dtype):
    q, k, v = (x.to(dtype) for x in qkv)
    mask = torch.randn(T, T).to(dtype)
    logits = q.float() @ k.float().transpose(-1, -2) / math.sqrt(D) + mask.float()
    same(sdpa(q, k, v, mask), logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(sdpa(q, k, v, mask), logits)


def test_keys_of_one_sample_for_all(qkv):
    q, k, v = qkv
    same(sdpa(q, k[:1], v[:1]), q @ k[:1].transpose(-1, -2) / math.sqrt(D))


def test_a_sample_of_many_queries():
    torch.manual_seed(0)
    q, k = torch.randn(9, H, 100, D), torch.randn(9, H, 50, D)
    found = sdpa(q, k, k, is_causal=True)
    later = torch.arange(50) > torch.arange(100)[:, None]
    logits = (q @ k.transpose(-1, -2) / math.sqrt(D)).masked_fill(later, -math.inf)
    same(found, logits[1::2, :, 3::6])


def test_what_is_not_read(qkv):
    q, k, v = qkv
    nested = torch.nested.nested_tensor(list(q), layout=torch.jagged)
    assert sdpa(nested, nested, nested) is None
    assert sdpa(q, k, v, causal_lower_right(T, T)) is None
    assert sdpa(q[:, :, :0], k, v) is None
    assert sdpa(q, k[:, :, :1], v[:, :, :1]) is None
    assert sdpa(*(x.to("meta") for x in qkv)) is None


def test_what_is_not_finite_is_not_hidden(qkv):
    q, k, v = (x.clone() for x in qkv)
    q[0, 1, 2] = math.nan
    found = sdpa(q, k, v)
    assert np.isnan(found.entropy).tolist() == [False, True]
    assert math.isnan(found.logit)


def test_passes_are_added(qkv):
    q, k, v = qkv
    one, other = sdpa(q, k, v), sdpa(q, k, v, scale=2.0)
    both = one.plus(other)
    assert np.allclose(both.entropy, one.entropy + other.entropy)
    assert (both.most, both.passes) == (one.most + other.most, 2)
    assert both.logit == other.plus(one).logit == max(one.logit, other.logit)
    assert sdpa(q[:, :1], k[:, :1], v[:, :1]).plus(one).passes == 1  # other heads
    nothing = sdpa(q * math.nan, k, v)
    assert math.isnan(one.plus(nothing).logit)
    assert math.isnan(nothing.plus(one).logit)


def test_no_number_is_asked_of_an_accelerator(monkeypatch):
    monkeypatch.setattr(attention, "PLAIN", (torch.Tensor, nn.Parameter, FakeTensor))
    monkeypatch.setattr(attention, "ALONE", 0)
    with FakeTensorMode():  # has no numbers: a question raises
        q, k = torch.randn(8, 4, 64, 16, dtype=torch.bfloat16), torch.randn(8, 2, 64, 16)
        barred = torch.zeros(8, 1, 64, 64, dtype=torch.bool)
        found = [
            sdpa(q, q, q),
            sdpa(q, k, k, is_causal=True),
            sdpa(q, k, k, barred),
            sdpa(q, k, k, barred.float()),
            attention.seen("softmax", (q,), {"dim": -1}, torch.softmax(q, -1)),
        ]
        module = nn.MultiheadAttention(64, 4)
        x = torch.randn(64, 8, 64)
        for trained in (True, False):
            module.requires_grad_(trained)
            found += called(module, x, attn_mask=barred[0, 0], key_padding_mask=barred[:, 0, 0])
    for one in found:
        assert isinstance(one.entropy, FakeTensor)
        assert one.entropy.shape == (4,)
        assert isinstance(one.plus(one).logit, FakeTensor)


def called(module, x, **kwargs):
    """What the calls of torch's function tell."""
    found = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.__name__ in attention.SEEN:
                with torch._C.DisableTorchFunction():
                    found.append(attention.seen(func.__name__, args, kwargs or {}, out))
            return out

    with Mode():
        module(x, x, x, **kwargs)
    return found


@pytest.mark.parametrize("own", ["no", "add_bias_kv", "add_zero_attn"])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("how", ["kept", "frozen", "packed", "unknown"])
def test_what_autograd_keeps_of_torchs_module(own, need_weights, dropout, how, monkeypatch):
    torch.manual_seed(0)
    options = {own: True} if own != "no" else {}
    module = nn.MultiheadAttention(H * D, H, dropout=dropout, batch_first=True, **options)
    x = torch.randn(B, T, H * D)
    barred = torch.arange(T)[None] >= torch.tensor([12, 9, 5])[:, None]
    masks = {"attn_mask": torch.ones(T, T).triu(1).bool(), "key_padding_mask": barred}
    with torch.no_grad():
        module.in_proj_weight *= 3
        module.eval()
        slow = module(x, x, x, average_attn_weights=False, **masks)[1].double()
        module.train()
    made = []
    again = attention._made_again
    monkeypatch.setattr(attention, "_made_again", lambda *a: made.append(1) or again(*a))
    if how == "frozen":
        module.requires_grad_(False)
    elif how == "unknown":  # an older torch does not say whether it is packed
        monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks", raising=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: None, lambda x: pytest.fail("read"))
    with hooks if how == "packed" else nullcontext():
        (found,) = called(module, x, need_weights=need_weights, **masks)  # once, not for its parts
    assert len(made) == (how != "kept")
    entropy = torch.special.entr(slow).sum(-1).mean((0, 2))
    assert torch.allclose(torch.from_numpy(found.entropy).double(), entropy, rtol=1e-5)
    assert found.most == pytest.approx(float((slow > 0).sum(-1).double().log().mean()), rel=1e-5)


def test_weights_that_are_written_out_and_a_softmax_that_is_none(qkv):
    q, k, _ = qkv
    logits = q @ k.transpose(-1, -2)
    found = attention.seen("softmax", (logits,), {"dim": -1}, torch.softmax(logits, -1))
    same(found, logits)
    given = {"input": logits, "dim": -1}
    same(attention.seen("softmax", (), given, torch.softmax(logits, -1)), logits)
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
