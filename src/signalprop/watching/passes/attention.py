"""Entropy and largest logit of attention weights, from a sample of the queries.

Where a network calls a fused kernel, its weights exist nowhere; they are made again for a few
queries, which costs a hundredth of the attention itself. What counts in the middle of a pass is the
number of calls: a few numbers on a CPU are read by numpy, whose calls cost a fifth of torch's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from signalprop.capture.statistics import Scalar
from signalprop.compiled.sums import PLAIN

#: queries and samples that are looked at, spread evenly
QUERIES, SAMPLES = 16, 4
#: torch functions that are looked at
SEEN = frozenset({"scaled_dot_product_attention", "softmax", "multi_head_attention_forward"})
#: products in one head up to which numpy takes no threads of its own
ALONE = 1 << 18
#: a mask adds less than the first to leave a logit out, which is then the second: its exp is 0
LEFT_OUT, NOTHING = -1e4, -1e30
#: with sums of exponentials above the one, of logits below the other, none need be shifted
LOW, HIGH = 1e-7, 16.0
#: nodes of a product that is written out, and what they keep of it
_PRODUCTS = {"BmmBackward0": ("self", "mat2"), "BaddbmmBackward0": ("batch1", "batch2")}
_MULTI_HEAD = (
    "query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v "
    "add_zero_attn dropout_p out_proj_weight out_proj_bias training key_padding_mask "
    "need_weights attn_mask use_separate_proj_weight q_proj_weight k_proj_weight "
    "v_proj_weight static_k static_v average_attn_weights is_causal"
).split()
_EVERY = slice(None)

#: of numpy on a CPU, where there is little of it; else a tensor
Array = Any
#: which logits are left out, and what is added to the others
Mask = tuple[Array, Array | None]


@dataclass(frozen=True, eq=False)
class Attention:
    """Sums over the passes of a step. What lay on a CPU is in floats and arrays.

    Attributes:
        entropy: (heads,), mean entropy of the weights over the queries, in nats.
        most: mean over the queries of ln(positions they may attend to), in nats.
        logit: largest logit.
        passes: how many passes were added.
    """

    entropy: Array
    most: Scalar
    logit: Scalar
    passes: float = 1

    def plus(self, other: Attention) -> Attention:
        """Both together; this one alone where the other has not the same heads."""
        mine, theirs = self.entropy, other.entropy
        if mine.shape != theirs.shape or type(mine) is not type(theirs):
            return self
        a, b = self.logit, other.logit
        tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
        logit = torch.maximum(a, b) if tensors else float(np.maximum(a, b))
        passes = self.passes + other.passes
        return Attention(mine + theirs, self.most + other.most, logit, passes)


def seen(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Attention | None:
    """What a call of a torch function tells.

    Args:
        name: of the function, one of `SEEN`.
        args: of the call.
        kwargs: of the call.
        out: what it returned.

    Returns:
        None where it is no attention (a softmax over anything but the keys), or one that is not
        read (of nested tensors, or with a mask of a class of its own).
    """
    first = args[0] if args else kwargs.get("query", kwargs.get("input"))
    if not isinstance(first, Tensor) or first.is_nested or first.is_meta or not first.numel():
        return None
    device = "cpu" if first.is_cpu else first.device.type
    auto = torch.is_autocast_enabled(device)
    exact = torch.autocast(device, enabled=False) if auto else nullcontext()
    with np.errstate(all="ignore"), exact:  # what is not finite is a result here
        if name == "softmax":
            return _of_softmax(first, args, kwargs, out)
        if name == "scaled_dot_product_attention":
            return _of_sdpa(*args, **kwargs)
        given: dict[str, Any] = dict(zip(_MULTI_HEAD, args, strict=False))
        given.update(kwargs)
        return _of_multi_head(given, out)


# ---- what is looked at -----------------------------------------------------------------------


def _some(size: int, most: int) -> slice:
    step = max(1, size // most)
    return slice(step // 2 if size > most else 0, None, step)


@dataclass(eq=False, slots=True)
class _Sample:
    """Which samples and queries are looked at, and whether by numpy."""

    rows: slice
    places: slice
    length: int
    quick: bool

    def read(self, x: Tensor, *at: slice | None) -> Array:
        """A part of a tensor, in float32 or bool."""
        x = x.detach()
        exact = x.dtype is torch.float32 or x.dtype is torch.bool
        if self.quick and exact and not x.is_neg():
            return x.numpy()[at]
        x = x[at] if exact else x[at].float()
        return x.resolve_neg().numpy() if self.quick else x

    def mask(self, x: Tensor, *at: slice | None, bars: bool) -> Mask:
        """A part of a mask, of which true leaves out if it `bars`, and numbers are added."""
        found = self.read(x, *at)
        if x.dtype is torch.bool:
            return (found if bars else ~found), None
        return found < LEFT_OUT, found  # very negative numbers rather than -inf

    def later(self, keys: int, like: Array) -> Array:
        """(queries, keys), which keys come after a query."""
        if self.quick:
            return _causal(self.length, keys)[0]
        places = torch.arange(*self.places.indices(self.length), device=like.device)
        return torch.arange(keys, device=like.device) > places[:, None]


@lru_cache(maxsize=64)
def _sample(here: bool, batch: int, length: int, products: int) -> _Sample:
    """Of an attention, on a CPU or not, with so many products for one query of one head."""
    places = _some(length, QUERIES)
    few = len(range(*places.indices(length))) * products <= ALONE
    return _Sample(_some(batch, SAMPLES), places, length, here and few)


@lru_cache(maxsize=8)
def _causal(length: int, keys: int) -> tuple[NDArray[np.bool_], float]:
    """(queries, keys), which keys are later; and the mean of ln(those that are not)."""
    later = np.arange(keys) > np.arange(length)[_some(length, QUERIES), None]
    return later, _mean_log(keys - _sum(later))


def _is_plain(x: Tensor | None) -> bool:
    return x is None or (type(x) in PLAIN and x.ndim > 0)


# ---- the three functions ---------------------------------------------------------------------


def _of_softmax(
    logits: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
) -> Attention | None:
    """Weights written out: (batch, heads, queries, keys), softmax over the last dimension."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(out, Tensor) or out.ndim != 4 or dim not in (-1, 3) or out.shape[-1] < 2:
        return None
    sample = _sample(out.is_cpu and _is_plain(out), len(out), *out.shape[2:])
    weights = sample.read(out, sample.rows, _EVERY, sample.places)
    few = sample.read(logits, sample.rows, _EVERY, sample.places)
    if not sample.quick:
        allowed = (weights > 0).sum(-1).clamp_(min=1)
        return _attention(weights, allowed.log().mean(), few.max())
    terms = np.vecdot(weights, np.log(np.maximum(weights, 1e-38)))
    top = float(np.maximum.reduce(few, None))
    return Attention(_mean_of_heads(terms), _mean_log(_sum(weights > 0)), top)


def _of_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Attention | None:
    """See `torch.nn.functional.scaled_dot_product_attention`."""
    del value, dropout_p, enable_gqa  # GQA is told by the numbers of heads
    if query.ndim < 3 or key.shape[-2] < 2 or not _is_plain(attn_mask):
        return None
    query, key, mask = query.detach(), key.detach(), attn_mask
    if query.ndim == 3:
        query, key = query[:, None], key[:, None]
        mask = mask[:, None] if mask is not None and mask.ndim == 3 else mask
    elif query.ndim > 4:
        if mask is not None and mask.ndim > 3:
            mask = mask.expand(*query.shape[:-3], *mask.shape[-3:]).flatten(0, -4)
        query, key = query.flatten(0, -4), key.flatten(0, -4)
    (batch, heads, length, width), (others, groups, keys, _) = query.shape, key.shape
    if others not in (1, batch) or heads % groups:
        return None
    sample = _sample(query.is_cpu and _is_plain(query), batch, length, keys * width)
    q = sample.read(query, sample.rows, _EVERY, sample.places)
    k = sample.read(key, sample.rows if others == batch else _EVERY)
    masks: list[Mask] = []
    if mask is not None:
        rows = sample.rows if mask.ndim == 4 and mask.shape[0] == batch else _EVERY
        places = sample.places if mask.ndim > 1 and mask.shape[-2] == length else _EVERY
        masks.append(sample.mask(mask, *(rows, _EVERY, places)[4 - mask.ndim :], bars=False))
    scale = 1 / math.sqrt(width) if scale is None else scale
    return _of(sample, q, k, scale, masks, causal=is_causal)


def _of_multi_head(given: Mapping[str, Any], out: Any) -> Attention | None:
    """See `torch.nn.functional.multi_head_attention_forward`."""
    query, key, heads = given["query"].detach(), given["key"].detach(), given["num_heads"]
    mask, padding = given.get("attn_mask"), given.get("key_padding_mask")
    if given.get("static_k") is not None or not _is_plain(mask) or not _is_plain(padding):
        return None
    if query.ndim == 2:
        query, key = query[:, None], key[:, None]
    length, batch, width = query.shape
    each, plain = width // heads, query.is_cpu and _is_plain(query)
    sample = _sample(plain, batch, length, len(key) * each)
    kept = _kept(out[0], (batch, heads, length, each))
    if kept is None:
        q, k = _made_again(given, query, key, sample)
    else:
        q = sample.read(kept[0], sample.rows, _EVERY, sample.places)
        k = sample.read(kept[1], sample.rows)
    keys = k.shape[2]
    if keys < 2:
        return None
    masks: list[Mask] = []
    more = keys - len(key)  # keys of its own, which no mask leaves out
    if mask is not None:
        mask = F.pad(mask.detach(), (0, more)) if more else mask
        at = (sample.places,)
        if mask.ndim == 3:
            mask, at = mask.reshape(batch, heads, length, keys), (sample.rows, _EVERY, *at)
        masks.append(sample.mask(mask, *at, bars=True))
    if padding is not None:
        padding = F.pad(padding.detach(), (0, more)).reshape(batch, keys)
        masks.append(sample.mask(padding, sample.rows, None, None, bars=True))
    scaled = kept is not None and kept[2]
    return _of(sample, q, k, 1.0 if scaled else 1 / math.sqrt(each), masks)


def _kept(out: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, bool] | None:
    """What autograd keeps of torch's module for its backward pass: nothing is made again.

    Returns:
        Queries of this shape, keys, and whether they are scaled. None where nothing is kept; and
        where it is packed (checkpoints, offloading) or, in a torch that does not say, may be.
    """
    packed = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if packed is None or packed(True) is not None:
        return None
    node: Any = out.grad_fn
    softmax = False
    for _ in range(24):
        name = type(node).__name__
        if name.startswith("ScaledDotProduct"):
            q, k = node._saved_query, node._saved_key
            return (q, k, False) if q is not None and q.shape[:3] == shape[:3] else None
        if softmax and name in _PRODUCTS:
            q, k = (getattr(node, f"_saved_{operand}") for operand in _PRODUCTS[name])
            if q is None or k is None or q.numel() != math.prod(shape):
                return None
            k = k.detach().swapaxes(-1, -2)  # batch and heads are one dimension there
            return q.detach().reshape(shape), k.reshape(*shape[:2], -1, shape[3]), True
        softmax = softmax or "Softmax" in name
        following = getattr(node, "next_functions", ())
        behind = name.startswith("Addmm")  # its first is the bias
        if len(following) <= behind:
            return None
        node = following[behind][0]
    return None


def _made_again(
    given: Mapping[str, Any], query: Tensor, key: Tensor, sample: _Sample
) -> tuple[Array, ...]:
    """Queries and keys, (batch, heads, length, width), of what torch's module is given."""
    width, heads = query.shape[-1], given["num_heads"]
    if given.get("use_separate_proj_weight"):
        weights = given["q_proj_weight"], given["k_proj_weight"]
    else:
        weights = given["in_proj_weight"][:width], given["in_proj_weight"][width : 2 * width]
    of_q, of_k = (x.detach().float() for x in weights)
    bias, more = given.get("in_proj_bias"), given.get("bias_k")
    bias = (None, None) if bias is None else bias.detach().float().chunk(3)
    q = F.linear(query[sample.places, sample.rows].float(), of_q, bias[0])
    k = F.linear(key[:, sample.rows].float(), of_k, bias[1])
    if more is not None:
        k = torch.cat([k, more.detach().float().expand(1, k.shape[1], -1)])
    if given.get("add_zero_attn"):
        k = F.pad(k, (0, 0, 0, 0, 0, 1))
    both = [x.reshape(*x.shape[:2], heads, -1).permute(1, 2, 0, 3) for x in (q, k)]
    return tuple(x.numpy() if sample.quick else x for x in both)


def _of(
    sample: _Sample, q: Array, k: Array, scale: float, masks: list[Mask], *, causal: bool = False
) -> Attention:
    """Of queries and keys of some samples, (batch, heads, queries or keys, width)."""
    heads, (groups, keys) = q.shape[1], k.shape[1:3]
    if heads == groups:
        logits = q @ k.swapaxes(2, 3)
    else:  # several heads ask the same keys
        asked = q.reshape(len(q), groups, -1, q.shape[3])
        logits = (asked @ k.swapaxes(2, 3)).reshape(*q.shape[:3], keys)
    logits *= scale
    barred: Array = None
    most: Any = _causal(sample.length, keys)[1] if causal else math.log(keys)
    if causal:
        barred = sample.later(keys, q)
    for left_out, added in masks:
        if added is not None:
            logits += added
        barred = left_out if barred is None else barred | left_out
    if sample.quick:
        if masks:
            if barred.shape[-1] < keys:
                barred = np.broadcast_to(barred, (*barred.shape[:-1], keys))
            most = _mean_log(keys - _sum(barred))
        return _quickly(logits, barred, most)
    if masks:
        barred = barred.broadcast_to((*barred.shape[:-1], keys))
        most = (keys - barred.sum(-1)).clamp_(min=1).log().mean()
    if barred is not None:
        logits.masked_fill_(barred, NOTHING)
    weights = torch.softmax(logits, -1)
    if masks:  # of a query for which all is left out
        weights.masked_fill_(barred, 0.0)
    return _attention(weights, most, logits.max())


def _attention(weights: Tensor, most: Scalar, logit: Tensor) -> Attention:
    """Of (batch, heads, queries, keys)."""
    entropy = torch.special.entr(weights).sum((0, 2, 3)) / (len(weights) * weights.shape[2])
    if not entropy.is_cpu or type(entropy) is not Tensor:
        return Attention(entropy, most, logit)
    return Attention(entropy.numpy(), float(most), logit.item())


def _quickly(logits: NDArray[Any], barred: NDArray[Any] | None, most: float) -> Attention:
    if barred is not None:
        np.copyto(logits, NOTHING, where=barred)
    top = float(np.maximum.reduce(logits, None))
    weights = np.exp(logits)
    total = _sum(weights)
    if not (top < HIGH and np.minimum.reduce(total, None) > LOW):  # nan, too
        logits -= np.maximum.reduce(logits, -1, keepdims=True)
        weights = np.exp(logits)
        if barred is not None:  # of a query for which all is left out
            np.copyto(weights, 0.0, where=barred)
        total = np.maximum(_sum(weights), 1.0)
    terms = np.vecdot(weights, logits)
    terms /= total
    terms -= np.log(total)
    return Attention(_mean_of_heads(terms), most, top)


def _mean_of_heads(terms: NDArray[Any]) -> NDArray[Any]:
    """(heads,) of (batch, heads, queries): mean of the entropies, which come with a minus."""
    mean = np.add.reduce(terms, (0, 2))
    mean /= -(len(terms) * terms.shape[2])
    return np.maximum(mean, 0.0)


def _mean_log(counts: NDArray[Any]) -> float:
    logs = np.log(np.maximum(counts, 1.0))
    return float(np.add.reduce(logs, None)) / logs.size


def _sum(x: NDArray[Any]) -> NDArray[Any]:
    """Over the last dimension, by a product: half the time of a sum."""
    return x.astype(np.float32, copy=False) @ _ones(x.shape[-1])


@lru_cache(maxsize=8)
def _ones(size: int) -> NDArray[np.float32]:
    return np.ones(size, np.float32)
