"""Entropy and largest logit of attention weights, from a sample of the queries.

Where a network calls a fused kernel, its weights exist nowhere; they are made again for a few
queries, which costs a hundredth of the attention itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: queries and samples that are looked at, spread evenly
QUERIES, SAMPLES = 16, 4
#: torch functions that are looked at
SEEN = frozenset({"scaled_dot_product_attention", "softmax", "multi_head_attention_forward"})


@dataclass(frozen=True, eq=False)
class Attention:
    """Sums over the passes of a step.

    Attributes:
        entropy: (heads,), mean entropy of the weights over the queries, in nats.
        most: mean over the queries of ln(positions they may attend to), in nats.
        logit: largest logit; a scalar.
        passes: how many passes were added.
    """

    entropy: Tensor
    most: Tensor
    logit: Tensor
    passes: float = 1

    def plus(self, other: Attention) -> Attention:
        """Both together."""
        if self.entropy.shape != other.entropy.shape:
            return self
        return Attention(
            self.entropy + other.entropy,
            self.most + other.most,
            torch.maximum(self.logit, other.logit),
            self.passes + other.passes,
        )


def seen(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Attention | None:
    """What a call of a torch function tells.

    Args:
        name: of the function, one of `SEEN`.
        args: of the call.
        kwargs: of the call.
        out: what it returned.

    Returns:
        None where it is no attention (a softmax over anything but the keys).
    """
    device = args[0].device.type if args and isinstance(args[0], Tensor) else "cpu"
    with torch.no_grad(), torch.autocast(device, enabled=False):
        if name == "softmax":
            return _of_softmax(args, kwargs, out)
        if name == "scaled_dot_product_attention":
            return _of_sdpa(*args, **kwargs)
        return _of_multi_head(args, kwargs)


def _some(size: int, most: int) -> slice:
    step = max(1, size // most)
    return slice(step // 2 if size > most else 0, None, step)


def _of_softmax(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Attention | None:
    """Weights written out: (batch, heads, queries, keys), softmax over the last dimension."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(out, Tensor) or out.ndim != 4 or dim not in (-1, 3) or out.shape[-1] < 2:
        return None
    few = (_some(out.shape[0], SAMPLES), slice(None), _some(out.shape[2], QUERIES))
    return _of_weights(out.detach()[few].float(), args[0].detach()[few].float())


def _of_weights(weights: Tensor, logits: Tensor) -> Attention:
    entropy = torch.special.entr(weights).sum(-1)
    allowed = (weights > 0).sum(-1).clamp(min=1)
    return Attention(entropy.mean((0, 2)), allowed.float().log().mean(), logits.max())


def _of_logits(logits: Tensor) -> Attention:
    """(batch, heads, queries, keys), -inf where masked."""
    weights = torch.softmax(logits, -1).nan_to_num(0.0)  # a query that may attend to nothing
    entropy = torch.special.entr(weights).sum(-1)
    allowed = (logits > -math.inf).sum(-1).clamp(min=1)
    return Attention(entropy.mean((0, 2)), allowed.float().log().mean(), logits.max())


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
    if query.ndim < 3 or query.shape[-2] < 1 or key.shape[-2] < 2:
        return None
    query, key = query.detach(), key.detach()
    if query.ndim == 3:
        query, key = query[:, None], key[:, None]
        attn_mask = (
            attn_mask[:, None] if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
        )
    while query.ndim > 4:
        query, key = query.flatten(0, 1), key.flatten(0, 1)
        attn_mask = (
            attn_mask.flatten(0, 1) if attn_mask is not None and attn_mask.ndim > 4 else attn_mask
        )
    batch, heads, length, width = query.shape
    rows = _some(batch, SAMPLES)
    places = torch.arange(length, device=query.device)[_some(length, QUERIES)]
    q, k = query[rows][:, :, places].float(), key[rows].float()
    if k.shape[1] != heads:
        k = k.repeat_interleave(heads // k.shape[1], dim=1)
    logits = (q @ k.transpose(-1, -2)) * (scale if scale is not None else 1 / math.sqrt(width))
    if is_causal:
        later = torch.arange(k.shape[-2], device=q.device) > places[:, None]
        logits = logits.masked_fill(later, -math.inf)
    if attn_mask is not None:
        mask = attn_mask.detach()
        if mask.ndim >= 2 and mask.shape[-2] == length:
            mask = mask[..., places, :]
        if mask.ndim == 4 and mask.shape[0] == batch:
            mask = mask[rows]
        if mask.dtype is torch.bool:
            logits = logits.masked_fill(~mask, -math.inf)
        else:  # a mask of very negative numbers rather than -inf
            mask = mask.float()
            logits = (logits + mask).masked_fill(mask < -1e4, -math.inf)
    return _of_logits(logits)


def _of_multi_head(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Attention | None:
    """See `torch.nn.functional.multi_head_attention_forward`: queries and keys made again."""
    names = (
        "query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v "
        "add_zero_attn dropout_p out_proj_weight out_proj_bias training key_padding_mask "
        "need_weights attn_mask use_separate_proj_weight q_proj_weight k_proj_weight "
        "v_proj_weight static_k static_v average_attn_weights is_causal"
    ).split()
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    query, key, heads = given["query"].detach(), given["key"].detach(), given["num_heads"]
    if query.ndim == 2:
        query, key = query[:, None], key[:, None]
    length, batch, width = query.shape
    if given.get("use_separate_proj_weight"):
        of_q, of_k = given["q_proj_weight"], given["k_proj_weight"]
    else:
        of_q, of_k = given["in_proj_weight"][:width], given["in_proj_weight"][width : 2 * width]
    bias = given.get("in_proj_bias")
    of_bias = (
        (None, None) if bias is None else (bias[:width].float(), bias[width : 2 * width].float())
    )
    rows = _some(batch, SAMPLES)
    places = torch.arange(length, device=query.device)[_some(length, QUERIES)]
    q = F.linear(query[places][:, rows].float(), of_q.detach().float(), of_bias[0])
    k = F.linear(key[:, rows].float(), of_k.detach().float(), of_bias[1])
    q, k = (x.reshape(*x.shape[:2], heads, -1).permute(1, 2, 0, 3) for x in (q, k))
    if k.shape[-2] < 2:
        return None
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    mask = given.get("attn_mask")
    if mask is not None:
        if mask.ndim == 3:
            mask = mask.reshape(batch, heads, *mask.shape[1:])[rows]
        mask = mask[..., places, :]
        logits = _masked(logits, mask)
    padding = given.get("key_padding_mask")
    if padding is not None:
        padding = padding.reshape(batch, -1)[rows][:, None, None]
        logits = _masked(logits, padding)
    return _of_logits(logits)


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    """Of `nn.MultiheadAttention`: true is left out, numbers are added."""
    if mask.dtype is torch.bool:
        return logits.masked_fill(mask, -math.inf)
    mask = mask.float()
    return (logits + mask).masked_fill(mask < -1e4, -math.inf)
