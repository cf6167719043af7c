"""Models with massive activations, as most real ones have: an early MLP writes something large that the last one takes back.

Two dimensions of the residual stream are set apart. Every token's embedding lights the first, which fires one neuron of the
first MLP; that neuron writes `size` into the second. The second fires one neuron of the last MLP, which takes all of it back.
Between them every component's direct effect is small, and those two MLPs' are hundreds of logits that cancel.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

LIT, LARGE = 0, 1
"""Dimensions of the residual stream: what every token lights, and what is written and taken back."""
N_HEADS, N_LAYERS, WIDTH, VOCAB = 4, 4, 32, 50

_SIZES = {"num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "hidden_size": WIDTH, "intermediate_size": 48}
_POSITIONS = {"max_position_embeddings": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, **_POSITIONS, "num_key_value_heads": 2},
    "gpt2": {"n_layer": N_LAYERS, "n_head": N_HEADS, "n_embd": WIDTH, "n_inner": 48, "n_positions": 32},
    "gpt_neox": {**_SIZES, **_POSITIONS},
    "qwen3": {**_SIZES, **_POSITIONS, "num_key_value_heads": 2, "head_dim": 8},
}


def massive_model(family: str, size: float, gain: float = 1.0, seed: int = 1) -> PreTrainedModel:
    """A random float64 model whose first MLP writes about ``size`` into `LARGE`, and whose last takes it back.

    Args:
        family: One of `CONFIGS`.
        size: What is written; other entries of the residual are about one.
        gain: What the unembedding is multiplied by.
        seed: Of all other weights.
    """
    torch.manual_seed(seed)
    tokens = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    config = AutoConfig.for_model(family, **tokens, **CONFIGS[family], tie_word_embeddings=False)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 1:
                parameter.copy_(parameter.mean().round() + 0.1 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
        hf.get_output_embeddings().weight.mul_(gain)
        embedding = hf.get_input_embeddings().weight
        embedding[:, LIT], embedding[:, LARGE] = 3.0, 0.0
        if family == "gpt2":
            hf.transformer.wpe.weight[:, :2] = 0
        blocks = _blocks(hf)
        for block in blocks:
            _write_nothing_into(block, [LIT, LARGE])
        for block, dim in ((blocks[0], LIT), (blocks[-1], LARGE)):
            _fire_neuron(block, dim)
        _last_linear(blocks[0])[LARGE, 0] = 1.0
        written = _entering(hf, blocks[1], LARGE).mean()
        _last_linear(blocks[0])[LARGE, 0] = size / written
        before, neuron = _entering(hf, blocks[-1], LARGE).mean(), _first_neuron(hf, blocks[-1]).mean()
        _last_linear(blocks[-1])[LARGE, 0] = -before / neuron
    return hf


def _blocks(hf: Any) -> list[Any]:
    base = hf.base_model
    return list(base.h if hasattr(base, "h") else base.layers)


def _mlp_down(block: Any) -> Any:
    return next(
        getattr(block.mlp, name) for name in ("c_proj", "dense_4h_to_h", "down_proj") if hasattr(block.mlp, name)
    )


def _output_by_input(linear: Any) -> Tensor:
    """The weight as [output, input], a view: GPT-2 keeps it the other way."""
    return linear.weight if isinstance(linear, nn.Linear) else linear.weight.T


def _last_linear(block: Any) -> Tensor:
    return _output_by_input(_mlp_down(block))


def _write_nothing_into(block: Any, dims: list[int]) -> None:
    attention = next(getattr(block, name) for name in ("self_attn", "attn", "attention") if hasattr(block, name))
    out = next(getattr(attention, name) for name in ("o_proj", "c_proj", "dense") if hasattr(attention, name))
    for linear in (out, _mlp_down(block)):
        _output_by_input(linear)[dims] = 0
        if linear.bias is not None:
            linear.bias[dims] = 0


def _fire_neuron(block: Any, dim: int) -> None:
    """Neuron 0 of a block's MLP reads ``dim`` alone."""
    norm = next(getattr(block, name) for name in ("post_attention_layernorm", "ln_2") if hasattr(block, name))
    norm.weight[dim] = 1.0
    mlp = block.mlp
    for name, weight in (("gate_proj", 6.0), ("up_proj", 1.0), ("c_fc", 6.0), ("dense_h_to_4h", 6.0)):
        if hasattr(mlp, name):
            linear = getattr(mlp, name)
            _output_by_input(linear)[0] = 0
            _output_by_input(linear)[0, dim] = weight
            if linear.bias is not None:
                linear.bias[0] = 0
    _last_linear(block)[:, 0] = 0


def _tokens() -> Tensor:
    return torch.randint(VOCAB, (4, 16), generator=torch.Generator().manual_seed(0))


def _seen(hf: PreTrainedModel, module: nn.Module) -> Tensor:
    """A module's first input in a run of some prompts."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        hf(input_ids=_tokens(), use_cache=False)
    finally:
        hook.remove()
    return seen[0]


def _entering(hf: PreTrainedModel, block: Any, dim: int) -> Tensor:
    return _seen(hf, block)[..., dim]


def _first_neuron(hf: PreTrainedModel, block: Any) -> Tensor:
    return _seen(hf, _mlp_down(block))[..., 0]
