"""Architectures: where each keeps the parts that the definitions name, and which ones the definitions do not cover."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its parts, as attribute paths.

    Attributes:
        layers: From the model to the list of decoder layers.
        final_norm: From the model to the norm before the unembedding.
        attention: From a layer to its attention module.
        attention_out: From a layer to the attention's output projection, whose input is every head's ``z``.
        mlp: From a layer to the module whose output is what the MLP writes.
        mlp_out: From a layer to the MLP's output projection, whose input is what its neurons give; a layer without it is a
            mixture of experts.
        parallel: Attention and MLP read the same residual, unless ``parallel_option`` says otherwise. This counts operations
            alone; a model that is measured is looked at.
        parallel_option: The config's key for it, where the architecture has one.
    """

    layers: str
    final_norm: str
    attention: str = "self_attn"
    attention_out: str = "self_attn.o_proj"
    mlp: str = "mlp"
    mlp_out: str = "mlp.down_proj"
    parallel: bool = False
    parallel_option: str | None = None


_LLAMA = Family(layers="model.layers", final_norm="model.norm")
_GPT2 = Family(
    layers="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn",
    attention_out="attn.c_proj",
    mlp_out="mlp.c_proj",
)
_GPT_NEOX = Family(
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attention="attention",
    attention_out="attention.dense",
    mlp_out="mlp.dense_4h_to_h",
)
_OPT = Family(
    layers="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    attention_out="self_attn.out_proj",
    mlp="fc2",
    mlp_out="fc2",
)
_GPTJ = replace(_GPT2, attention_out="attn.out_proj", mlp_out="mlp.fc_out", parallel=True)
FAMILIES = {
    **dict.fromkeys(
        (
            *("arcee", "apertus", "cwm", "ernie4_5", "gemma", "glm", "granite", "granite_swa", "helium"),
            *("hunyuan_v1_dense", "hyperclovax", "internlm3", "iquestcoder", "jais2", "llama", "minicpm3", "ministral"),
            *("ministral3", "mistral", "nemotron", "olmo", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "youtu"),
            # What they write is normalised, or their logits are capped, or both: seen on the model.
            *("exaone4", "gemma2", "gemma3_text", "glm4", "olmo2", "olmo3", "vaultgemma"),
        ),
        _LLAMA,
    ),
    **dict.fromkeys(
        (
            *("afmoe", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe"),
            *(
                "hunyuan_v1_moe",
                "mellum",
                "minimax_m2",
                "mixtral",
                "olmoe",
                "phimoe",
                "qwen2_moe",
                "qwen3_moe",
                "solar_open",
            ),
        ),
        _LLAMA,
    ),
    "llama4_text": replace(_LLAMA, mlp="feed_forward", mlp_out="feed_forward.down_proj"),
    "granitemoe": replace(_LLAMA, mlp="block_sparse_moe"),
    **dict.fromkeys(("cohere", "cohere2"), replace(_LLAMA, parallel=True)),
    "biogpt": replace(_OPT, layers="biogpt.layers", final_norm="biogpt.layer_norm"),
    **dict.fromkeys(("codegen", "gptj"), _GPTJ),
    "falcon": Family(
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="self_attention",
        attention_out="self_attention.dense",
        mlp_out="mlp.dense_4h_to_h",
        parallel_option="parallel_attn",
    ),
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": replace(_GPT2, attention_out="attn.attention.out_proj"),
    "gpt_neox": replace(_GPT_NEOX, parallel=True, parallel_option="use_parallel_residual"),
    "mpt": Family(
        layers="transformer.blocks",
        final_norm="transformer.norm_f",
        attention="attn",
        attention_out="attn.out_proj",
        mlp="ffn.down_proj",
        mlp_out="ffn.down_proj",
    ),
    "nanochat": replace(_LLAMA, mlp_out="mlp.fc2"),
    "opt": _OPT,
    "persimmon": replace(
        _LLAMA,
        final_norm="model.final_layernorm",
        attention_out="self_attn.dense",
        mlp_out="mlp.dense_4h_to_h",
    ),
    "phi": replace(
        _LLAMA,
        final_norm="model.final_layernorm",
        attention_out="self_attn.dense",
        mlp_out="mlp.fc2",
        parallel=True,
    ),
    "stablelm": replace(_LLAMA, parallel_option="use_parallel_residual"),
    "starcoder2": replace(_LLAMA, mlp_out="mlp.c_proj"),
    "xglm": replace(_OPT, layers="model.layers", final_norm="model.layer_norm"),
}
"""The architectures that tests hold to the definitions, by transformers' ``model_type``."""

_NO_HEADS = "it has no attention heads"
_FEW_HEADS = "some of its layers have no attention heads"
_NORMED_Z = "it normalises z over all heads before they write, so that no head's write is its own"
REFUSED = {
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"), _NO_HEADS),
    **dict.fromkeys(
        (
            *("bamba", "falcon_h1", "granitemoehybrid", "jamba", "lfm2", "lfm2_moe", "minimax", "nemotron_h"),
            *("qwen3_next", "recurrent_gemma", "zamba", "zamba2"),
        ),
        _FEW_HEADS,
    ),
    "bitnet": _NORMED_Z,
    "diffllama": "each of its heads is a difference of two, normalised before it writes",
    "gpt_oss": "its attention has sinks, so that rows do not sum to one",
    "gemma3n_text": "its residual stream is several, predicted from one another (AltUp)",
    "openai-gpt": "it normalises the residual stream itself",
    "bloom": "its attention adds the residual stream to its own output, so that it cannot be replayed alone",
}
"""Architectures known not to fit the definitions, with the reason."""


def refuse_architecture(model_type: str, name: str) -> None:
    """Refuse what the definitions do not cover.

    Args:
        model_type: transformers' name of the architecture.
        name: What the error calls the model.

    Raises:
        ValueError: It is not one of `FAMILIES`, with the reason.
    """
    if model_type in FAMILIES:
        return
    reason = REFUSED.get(model_type, "no test holds it to the definitions yet")
    raise ValueError(
        f"{name} is a {model_type} model, which the definitions do not cover: {reason}. "
        f"Covered: {', '.join(sorted(FAMILIES))}."
    )


def is_parallel(config: Any) -> bool:
    """Whether attention and MLP of a layer read the same residual, as a transformers config claims."""
    family = FAMILIES[config.model_type]
    return bool(getattr(config, family.parallel_option, family.parallel)) if family.parallel_option else family.parallel
