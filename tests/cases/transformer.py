"""Transformers: torch's own, and the shapes of `transformers` with random weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.cases.base import (
    Built,
    adam,
    adamw,
    classes,
    collect,
    healthy,
    images,
    series,
    sick,
    tokens,
)
from torch import nn

VOCABULARY, STEPS, WIDTH = 40, 12, 32


def language() -> dict[str, torch.Tensor]:
    x = tokens(8, STEPS, VOCABULARY)
    return {"input_ids": x, "attention_mask": torch.ones_like(x), "labels": x.clone()}


@healthy("gpt2", adamw(3e-3))
def gpt2() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=STEPS,
        n_embd=WIDTH,
        n_layer=4,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config), language(), None


@healthy("llama", adamw(3e-3))
def llama() -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=STEPS,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config), language(), None


@healthy("bert", adamw(1e-3))
def bert() -> Built:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=STEPS,
        num_labels=3,
    )
    x = tokens(16, STEPS, VOCABULARY)
    mask = (torch.arange(STEPS) < torch.randint(6, STEPS + 1, (16, 1))).long()
    y = classes(F.one_hot(x[:, :3], VOCABULARY).float(), 3)
    batch = {"input_ids": x, "attention_mask": mask, "labels": y}
    return BertForSequenceClassification(config), batch, None


@healthy("vit", adamw(1e-3))
def vit() -> Built:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_labels=5,
    )
    x = images(8, 3, 16)
    y = classes(F.adaptive_avg_pool2d(x, 4), 5)
    return ViTForImageClassification(config), {"pixel_values": x, "labels": y}, None


@healthy("t5", adamw(3e-3), note="encoder and decoder: two paths into the loss")
def t5() -> Built:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=8,
        d_ff=2 * WIDTH,
        num_layers=3,
        num_heads=4,
        decoder_start_token_id=0,
    )
    x = tokens(8, STEPS, VOCABULARY)
    return T5ForConditionalGeneration(config), {"input_ids": x, "labels": x.flip(1)}, None


class Encoder(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0.1, batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


def task(model: nn.Module) -> Built:
    x = series(16, STEPS, WIDTH)
    return model, (x, classes(x.mean(1), 5)), F.cross_entropy


@healthy("transformer-encoder", adam(1e-3), note="all copies of one layer start equal")
def encoder() -> Built:
    return task(Encoder(norm_first=False))


@healthy("transformer-encoder-pre", adamw(1e-3))
def encoder_pre() -> Built:
    return task(Encoder(norm_first=True))


class OnlyAttention(nn.Module):
    """Attention without skip or feed-forward: the tokens become one."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(WIDTH, 4, batch_first=True) for _ in range(depth)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        for attention, norm in zip(self.attention, self.norm, strict=True):
            x = norm(attention(x, x, x, need_weights=False)[0])
        return self.head(x.mean(1))


@sick("attention-only", "SP108", optimizer=adamw(1e-3))
def attention_only() -> Built:
    return task(OnlyAttention(8))


CASES = collect(globals())
