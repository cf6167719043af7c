"""A Llama with weights set by hand in which one head is repaired by the final norm alone.

Two layers of two heads, uniform attention (no queries or keys), every norm weight one. Each token has a direction of its own,
which the embedding writes, the unembedding reads, and head 0 of layer 0 copies. Prompts repeat one token, so that both predict
the right one. Where the head is gone the embedding still predicts it, from a shorter residual: the final norm divides by less.

Head 1 of layer 0 turns a feature that only `LIVE` tokens have into another, which the MLPs and head 0 of layer 1 read. They
have weights like any other, but nothing to read with `QUIET` tokens, so that they write nothing there, ablated or not.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from selfrepair.snapshots.manifest import publish, staging

QUIET, LIVE = range(6), range(6, 8)
HEAD = (0, 0)
"""The head that the final norm repairs."""
D_MODEL, D_HEAD, VOCAB, EPS = 16, 8, 8, 1e-6
FEATURE, READ, FILLER = 8, 9, 10
"""Coordinates of the residual beside the tokens' own: what live tokens have, what later components read, what nothing reads."""
EMBED, COPY, UNEMBED = 1.0, 0.8, 6.0


def filler(token: int) -> float:
    """What the embedding writes that nothing reads: it sets how much the head counts in the final scale."""
    return 0.5 + 0.25 * token


def planted_model(dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    """The model in memory."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        rms_norm_eps=EPS,
        attn_implementation="sdpa",
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        token = torch.arange(VOCAB)
        model.model.embed_tokens.weight[token, token] = EMBED
        model.model.embed_tokens.weight[:, FILLER] = torch.tensor([filler(number) for number in range(VOCAB)]).to(dtype)
        model.model.embed_tokens.weight[list(LIVE), FEATURE] = 1.0
        model.lm_head.weight[token, token] = UNEMBED
        first, second = model.model.layers
        first.self_attn.v_proj.weight[token, token] = 1.0
        first.self_attn.o_proj.weight[token, token] = COPY
        first.self_attn.v_proj.weight[D_HEAD, FEATURE] = 1.0
        first.self_attn.o_proj.weight[READ, D_HEAD] = 1.0
        second.self_attn.v_proj.weight[0, READ] = 1.0
        second.self_attn.o_proj.weight[list(LIVE), 0] = 0.5
        for layer in (first, second):
            layer.mlp.gate_proj.weight[:, READ] = 1.0
            layer.mlp.up_proj.weight[:, READ] = 1.0
            layer.mlp.down_proj.weight[list(LIVE), 0] = 0.7
    return model


def save_planted_model(folder: Path) -> Path:
    """Save the model as a snapshot; gives its manifest."""
    manifest = folder / "manifest.json"
    with staging(manifest) as partial:
        planted_model().save_pretrained(partial)
        publish(manifest, partial, {"kind": "model", "source": "tests", "license": "none", "weights": "set by hand"})
    return manifest


def by_hand(token: int) -> dict[str, float]:
    """What zero ablation of `HEAD` gives with a quiet token, from the weights above alone."""
    first_scale = np.sqrt((EMBED**2 + filler(token) ** 2) / D_MODEL + EPS)
    copied = COPY * EMBED / first_scale
    scale = np.sqrt(((EMBED + copied) ** 2 + filler(token) ** 2) / D_MODEL + EPS)
    ablated_scale = np.sqrt((EMBED**2 + filler(token) ** 2) / D_MODEL + EPS)
    # Centred over the vocabulary, the token's own direction counts for all but its share of the mean.
    centred = UNEMBED * (1 - 1 / VOCAB)
    return {
        "direct_effect": centred * copied / scale,
        "logit_change": centred * (EMBED / ablated_scale - (EMBED + copied) / scale),
        "self_repair": centred * EMBED * (1 / ablated_scale - 1 / scale),
        "clean_scale": scale,
        "ablated_scale": ablated_scale,
    }
