"""Every option of every covered architecture: the numbers of a plain hooked run of the whole model, or a refusal.

The reference (tests/reference.py) shares no code with the package and never cuts a prompt, so each of these configurations,
small and random, is either measured as docs/definitions.md says, on every path that cuts prompts too, or refused with a reason.
"""

import copy
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import selfrepair
from selfrepair.engine import proof
from selfrepair.engine.batches import cut_batches
from selfrepair.engine.clean import run_clean
from selfrepair.engine.heads import group_by_layer
from selfrepair.engine.replay import SuffixReplay
from selfrepair.engine.single_attention import Attentions
from selfrepair.engine.sweep import sweep
from selfrepair.families import FAMILIES
from selfrepair.families import REFUSED as REFUSED_FAMILIES
from selfrepair.measure.frozen_layernorm import frozen_layernorm_change
from selfrepair.measure.layer_ablations import ablate_layers, mlp_output
from selfrepair.measure.neurons import neuron_effects, reads_head
from selfrepair.model import model as models
from selfrepair.model.model import COMPONENTS, Model
from selfrepair.quantities import ABLATION_KINDS, CHOSEN_EXPERTS
from selfrepair.workflow.progress import Progress
from unit.model.models_table import Line, architectures, write

from conftest import REPOSITORY, in_bfloat16
from reference import Measured, Reference

pytestmark = pytest.mark.usefixtures("less_room_for_rounding")

LAYERS, HEADS, D_HEAD, VOCAB, POSITIONS = 3, 3, 8, 37, 64
LENGTH = 19
"""A length whose cuts (multiples of 8) are shorter than it, and longer than every window and boundary in the table."""
DTYPES = ("float64", "float32")
EVERY_LENGTH = (2, POSITIONS, LENGTH)
"""The shortest prompts, the longest that the models take, and those of the other cases."""


@pytest.fixture(scope="module", autouse=True)
def _table() -> Iterator[None]:
    """Write docs/models.md where `make models` asks for it."""
    yield
    path = os.environ.get("WRITE_MODELS")
    if path is None:
        return
    for family, line in LINES.items():
        cases = {name: case for name, case in CASES.items() if case.family == family}
        line.tried = [name.removeprefix(family).strip(" ,") for name, case in cases.items() if case.refused is None]
        line.tried = [what for what in line.tried if what not in ("", *DTYPES)]
        line.tried += [f"refused: {name.removeprefix(family).strip()}" for name, case in cases.items() if case.refused]
        line.but = {"self-reinforcement (some)" for case in cases.values() if case.own_masks}
        models = [load(name)[0] for name, case in cases.items() if case.refused is None]
        if any(weight is None for model in models for weight in model.W_out):
            line.but.add("neurons (of experts)")
        if any(mixtures(model) and not model.most_chosen for model in models):
            line.but.add("change of experts")
    write(Path(path), LINES)


@pytest.fixture(autouse=True)
def _unchecked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests check shapes at every call, which would take most of this file's time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@dataclass(frozen=True)
class Case:
    """A configuration and what is right for it.

    Attributes:
        family: transformers' model_type.
        options: Of its config, beside `sizes`.
        lengths: Tokens a prompt.
        attention: "sdpa" or "eager".
        dtype: Of the model; the reference is float64 always.
        change: Done to the model before it is loaded.
        own_masks: Its attentions make masks by where tokens lie, so that positions cannot be changed one at a time.
        refused: What the ValueError says that load_model or ablate_heads raises; None where the numbers must be right.
    """

    family: str
    options: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = (LENGTH,)
    attention: str = "sdpa"
    dtype: str = "float64"
    change: Callable[[Any], None] = lambda _: None
    own_masks: bool = False
    refused: str | None = None


def rope(kind: str, **options: Any) -> dict[str, Any]:
    """Options of a rotary embedding of another type, with a boundary at 12 positions where it has one."""
    defaults: dict[str, dict[str, Any]] = {
        "default": {},
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 4.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 12},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 12,
        },
        "longrope": {
            "short_factor": [1.0] * 4,
            "long_factor": [1.0, 2.0, 4.0, 8.0],
            "factor": 4.0,
            "original_max_position_embeddings": 12,
        },
    }
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **defaults[kind], **options}}


BOUNDARY = (13, LENGTH)
"""Lengths about a boundary of 12: past it but for the last position, and past it but for what is cut."""


def attention_flag(hf: Any) -> None:
    """Non-causal by the attention modules' own flag, which sdpa reads."""
    for module in hf.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False


def one_attention_flag(hf: Any) -> None:
    """The same in the last layer alone."""
    last = [module for module in hf.modules() if hasattr(module, "is_causal")][-1]
    last.is_causal = False


def config_says_not_causal(hf: Any) -> None:
    """Non-causal by the config, which the masks read."""
    hf.config.is_causal = False


def ran_longer_before(hf: Any) -> None:
    """Dynamic frequencies grow with the longest prompt seen, and stay so until a short prompt comes."""
    with torch.no_grad():
        hf(input_ids=torch.zeros(1, 40, dtype=torch.long))


def wrong_parallel_flag(hf: Any) -> None:
    """A config that was edited after the model was made."""
    hf.config.use_parallel_residual = not hf.config.use_parallel_residual


CASES = {
    # --- gpt2 ---
    "gpt2": Case("gpt2", lengths=EVERY_LENGTH),
    "gpt2 eager": Case("gpt2", attention="eager"),
    "gpt2 float32": Case("gpt2", dtype="float32"),
    "gpt2 scale by inverse layer": Case("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2 scores not scaled": Case("gpt2", {"scale_attn_weights": False}),
    "gpt2 upcast, sdpa": Case("gpt2", {"reorder_and_upcast_attn": True}),
    "gpt2 upcast, eager": Case("gpt2", {"reorder_and_upcast_attn": True}, attention="eager", dtype="float32"),
    "gpt2 untied": Case("gpt2", {"tie_word_embeddings": False}),
    "gpt2 narrow MLP, relu": Case("gpt2", {"n_inner": 11, "activation_function": "relu"}),
    "gpt2 exact gelu, large eps": Case("gpt2", {"activation_function": "gelu", "layer_norm_epsilon": 0.3}),
    "gpt2 odd d_head": Case("gpt2", {"n_embd": 21}),
    "gpt2 one layer": Case("gpt2", {"n_layer": 1}),
    "gpt2 one head": Case("gpt2", {"n_head": 1}),
    "gpt2 d_head of one": Case("gpt2", {"n_head": 12, "n_embd": 12}),
    "gpt2 with a stray parallel flag": Case("gpt2", {"use_parallel_residual": True}),
    "gpt2 not causal by its config": Case("gpt2", change=config_says_not_causal, refused="causal"),
    "gpt2 not causal by its modules": Case("gpt2", change=attention_flag, refused="causal"),
    # --- gpt_neox ---
    "gpt_neox": Case("gpt_neox", lengths=EVERY_LENGTH),
    "gpt_neox sequential": Case("gpt_neox", {"use_parallel_residual": False}),
    "gpt_neox eager": Case("gpt_neox", attention="eager"),
    "gpt_neox float32": Case("gpt_neox", dtype="float32"),
    "gpt_neox all rotary": Case("gpt_neox", {"rotary_pct": 1.0}),
    "gpt_neox half rotary, odd d_head": Case("gpt_neox", {"hidden_size": 27, "rotary_pct": 0.5}),
    "gpt_neox no attention bias": Case("gpt_neox", {"attention_bias": False}),
    "gpt_neox tied": Case("gpt_neox", {"tie_word_embeddings": True}),
    "gpt_neox gelu_new, large eps": Case("gpt_neox", {"hidden_act": "gelu_new", "layer_norm_eps": 0.2}),
    "gpt_neox linear rope": Case("gpt_neox", rope("linear", partial_rotary_factor=0.5), BOUNDARY),
    "gpt_neox yarn": Case("gpt_neox", rope("yarn", partial_rotary_factor=1.0), BOUNDARY),
    "gpt_neox longrope": Case("gpt_neox", rope("longrope", partial_rotary_factor=1.0), BOUNDARY),
    "gpt_neox sequential longrope": Case(
        "gpt_neox", {**rope("longrope", partial_rotary_factor=1.0), "use_parallel_residual": False}, BOUNDARY
    ),
    "gpt_neox one layer": Case("gpt_neox", {"num_hidden_layers": 1}),
    "gpt_neox not causal by its config": Case("gpt_neox", change=config_says_not_causal, refused="causal"),
    "gpt_neox flag changed after it was made": Case("gpt_neox", change=wrong_parallel_flag),
    "gpt_neox sequential, flag changed": Case("gpt_neox", {"use_parallel_residual": False}, change=wrong_parallel_flag),
    # --- opt ---
    "opt": Case("opt", lengths=EVERY_LENGTH),
    "opt eager": Case("opt", attention="eager"),
    "opt float32": Case("opt", dtype="float32"),
    "opt no biases": Case("opt", {"enable_bias": False}),
    "opt norms without weights": Case("opt", {"layer_norm_elementwise_affine": False}),
    "opt gelu": Case("opt", {"activation_function": "gelu"}),
    "opt untied": Case("opt", {"tie_word_embeddings": False}),
    "opt odd d_head": Case("opt", {"hidden_size": 15, "word_embed_proj_dim": 15}),
    "opt norm after": Case("opt", {"do_layer_norm_before": False}, refused="norm"),
    "opt no final norm": Case("opt", {"_remove_final_layer_norm": True}, refused="no final norm"),
    "opt embeddings projected": Case("opt", {"word_embed_proj_dim": 12}, refused="projection"),
    "opt not causal by its modules": Case("opt", change=attention_flag, refused="causal"),
    # --- phi ---
    "phi": Case("phi", lengths=EVERY_LENGTH),
    "phi eager": Case("phi", attention="eager"),
    "phi float32": Case("phi", dtype="float32"),
    "phi qk norm": Case("phi", {"qk_layernorm": True}),
    "phi one key-value head": Case("phi", {"num_key_value_heads": 1}),
    "phi all rotary, tied": Case("phi", {"partial_rotary_factor": 1.0, "tie_word_embeddings": True}),
    "phi odd d_head": Case("phi", {"hidden_size": 27, "partial_rotary_factor": 0.25}),
    "phi longrope": Case("phi", rope("longrope", partial_rotary_factor=1.0), BOUNDARY),
    "phi with a stray parallel flag": Case("phi", {"use_parallel_residual": False}),
    "phi silu, large eps": Case("phi", {"hidden_act": "silu", "layer_norm_eps": 0.2}),
    # --- stablelm ---
    "stablelm": Case("stablelm", lengths=EVERY_LENGTH),
    "stablelm parallel": Case("stablelm", {"use_parallel_residual": True}),
    "stablelm parallel, flag changed": Case("stablelm", {"use_parallel_residual": True}, change=wrong_parallel_flag),
    "stablelm flag changed": Case("stablelm", change=wrong_parallel_flag),
    "stablelm eager, biases": Case("stablelm", {"use_qkv_bias": True}, attention="eager"),
    "stablelm qk norm": Case("stablelm", {"qk_layernorm": True}),
    "stablelm parallel qk norm": Case("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "stablelm one key-value head": Case("stablelm", {"num_key_value_heads": 1, "use_qkv_bias": True}),
    "stablelm longrope": Case("stablelm", rope("longrope", partial_rotary_factor=1.0), BOUNDARY),
    "stablelm tied, half rotary": Case("stablelm", {"tie_word_embeddings": True, "partial_rotary_factor": 0.5}),
    # --- olmo ---
    "olmo": Case("olmo", lengths=EVERY_LENGTH),
    "olmo eager": Case("olmo", attention="eager"),
    "olmo float32": Case("olmo", dtype="float32"),
    "olmo clipped": Case("olmo", {"clip_qkv": 0.8}),
    "olmo clipped, biases too": Case("olmo", {"clip_qkv": 0.3, "attention_bias": True}),
    "olmo grouped, tied, biases": Case(
        "olmo", {"num_key_value_heads": 1, "tie_word_embeddings": True, "attention_bias": True}
    ),
    "olmo longrope": Case("olmo", rope("longrope"), BOUNDARY),
    # --- gemma ---
    "gemma": Case("gemma", lengths=EVERY_LENGTH),
    "gemma eager, one key-value head": Case("gemma", {"num_key_value_heads": 1}, attention="eager"),
    "gemma wide heads, untied": Case("gemma", {"head_dim": 20, "tie_word_embeddings": False}),
    "gemma biases": Case("gemma", {"attention_bias": True}),
    "gemma longrope": Case("gemma", rope("longrope"), BOUNDARY),
    "gemma large eps": Case("gemma", {"rms_norm_eps": 0.2}),
    "gemma bidirectional": Case("gemma", {"use_bidirectional_attention": True}, refused="causal"),
    "gemma bidirectional, eager": Case(
        "gemma", {"use_bidirectional_attention": True, "is_causal": False}, attention="eager", refused="causal"
    ),
    # --- llama ---
    "llama": Case("llama", lengths=EVERY_LENGTH),
    "llama eager": Case("llama", attention="eager"),
    "llama float32": Case("llama", dtype="float32"),
    "llama float32, longrope": Case("llama", rope("longrope"), (12, 13, LENGTH), dtype="float32"),
    "llama one key-value head": Case("llama", {"num_key_value_heads": 1}),
    "llama biases": Case("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama tied": Case("llama", {"tie_word_embeddings": True}),
    "llama wide heads": Case("llama", {"head_dim": 14}),
    "llama narrow heads": Case("llama", {"head_dim": 2}),
    "llama linear rope": Case("llama", rope("linear"), BOUNDARY),
    "llama dynamic rope": Case("llama", rope("dynamic"), EVERY_LENGTH),
    "llama dynamic rope at its boundary": Case(
        "llama", {**rope("dynamic"), "max_position_embeddings": LENGTH}, (LENGTH - 1, LENGTH)
    ),
    "llama dynamic rope, ran longer before": Case(
        "llama", {**rope("dynamic"), "max_position_embeddings": LENGTH}, (LENGTH - 1, LENGTH), change=ran_longer_before
    ),
    "llama dynamic rope past its boundary": Case(
        "llama", {**rope("dynamic"), "max_position_embeddings": 12}, refused="takes at most 12"
    ),
    "llama yarn": Case("llama", rope("yarn"), BOUNDARY),
    "llama yarn, scaled": Case("llama", rope("yarn", attention_factor=1.7), BOUNDARY),
    "llama llama3 rope": Case("llama", rope("llama3"), BOUNDARY),
    "llama longrope": Case("llama", rope("longrope"), (12, *BOUNDARY)),
    "llama longrope, eager": Case("llama", rope("longrope"), BOUNDARY, attention="eager"),
    "llama gelu, large eps": Case("llama", {"hidden_act": "gelu", "rms_norm_eps": 0.2}),
    "llama one layer, one head": Case("llama", {"num_hidden_layers": 1, "num_attention_heads": 1}),
    "llama with a stray parallel flag": Case("llama", {"use_parallel_residual": True}),
    "llama not causal by its config": Case("llama", {"is_causal": False}, refused="causal"),
    "llama not causal by its config, eager": Case("llama", {"is_causal": False}, attention="eager", refused="causal"),
    "llama not causal in its last layer": Case("llama", change=one_attention_flag, refused="causal"),
    # --- mistral ---
    "mistral": Case("mistral", lengths=EVERY_LENGTH),
    "mistral window": Case("mistral", {"sliding_window": 5}),
    "mistral window, eager": Case("mistral", {"sliding_window": 5}, attention="eager"),
    "mistral window of one": Case("mistral", {"sliding_window": 1}),
    "mistral window as long as the prompt": Case("mistral", {"sliding_window": LENGTH - 1}, (18, 19, 20)),
    "mistral wide heads, grouped": Case("mistral", {"head_dim": 10, "num_key_value_heads": 1}),
    "mistral window, longrope": Case("mistral", {**rope("longrope"), "sliding_window": 5}, BOUNDARY),
    "mistral with a stray parallel flag": Case("mistral", {"use_parallel_residual": True}),
    "mistral window, not causal": Case("mistral", {"sliding_window": 5, "is_causal": False}, refused="causal"),
    # --- qwen2 ---
    "qwen2": Case("qwen2", lengths=EVERY_LENGTH),
    "qwen2 window after the first layer": Case(
        "qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    ),
    "qwen2 window by layer types": Case(
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        attention="eager",
    ),
    "qwen2 yarn, tied": Case("qwen2", {**rope("yarn"), "tie_word_embeddings": True}, BOUNDARY),
    "qwen2 longrope, window": Case(
        "qwen2", {**rope("longrope"), "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}, BOUNDARY
    ),
    "qwen2 not causal": Case("qwen2", {"is_causal": False}, refused="causal"),
    # --- qwen3 ---
    "qwen3": Case("qwen3", lengths=EVERY_LENGTH),
    "qwen3 eager, biases, one key-value head": Case(
        "qwen3", {"attention_bias": True, "num_key_value_heads": 1}, attention="eager"
    ),
    "qwen3 wide heads": Case("qwen3", {"head_dim": 16}),
    "qwen3 window": Case("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3 float32": Case("qwen3", dtype="float32"),
    "qwen3 yarn, tied": Case("qwen3", {**rope("yarn"), "tie_word_embeddings": True}, BOUNDARY),
    "qwen3 longrope": Case("qwen3", rope("longrope"), BOUNDARY),
    # --- smollm3 ---
    "smollm3": Case("smollm3", lengths=EVERY_LENGTH),
    "smollm3 no rope in the middle": Case("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "smollm3 no rope at all, eager": Case("smollm3", {"no_rope_layers": [0, 0, 0]}, attention="eager"),
    "smollm3 window where there is no rope": Case(
        "smollm3", {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 5}
    ),
    "smollm3 longrope, untied, biases": Case(
        "smollm3",
        {
            **rope("longrope"),
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
            "no_rope_layer_interval": 2,
        },
        BOUNDARY,
    ),
    "smollm3 one key-value head": Case("smollm3", {"num_key_value_heads": 1}),
    # --- as Llama, or nearly ---
    "apertus": Case("apertus"),
    "apertus one key-value head, biases": Case("apertus", {"num_key_value_heads": 1, "attention_bias": True}),
    "arcee": Case("arcee"),
    "arcee biases": Case("arcee", {"attention_bias": True, "mlp_bias": True}),
    "cwm": Case("cwm"),
    "cwm window": Case(
        "cwm", {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    ),
    "ernie4_5": Case("ernie4_5"),
    "ernie4_5 biases, one key-value head": Case("ernie4_5", {"use_bias": True, "num_key_value_heads": 1}),
    "glm": Case("glm"),
    "glm biases, half rotary": Case("glm", {"attention_bias": True, **rope("default", partial_rotary_factor=0.5)}),
    "helium": Case("helium"),
    "helium float32, biases": Case("helium", {"attention_bias": True, "mlp_bias": True}, dtype="float32"),
    "hunyuan_v1_dense": Case("hunyuan_v1_dense"),
    "hunyuan_v1_dense biases, one key-value head": Case(
        "hunyuan_v1_dense", {"attention_bias": True, "num_key_value_heads": 1}
    ),
    "internlm3": Case("internlm3"),
    "internlm3 biases": Case("internlm3", {"qkv_bias": True, "use_bias": True, "bias": True}),
    "iquestcoder": Case("iquestcoder"),
    "jais2": Case("jais2"),
    "jais2 one key-value head": Case("jais2", {"num_key_value_heads": 1}),
    "ministral": Case("ministral"),
    "ministral window": Case("ministral", {"sliding_window": 5}),
    "ministral3": Case("ministral3"),
    "ministral3 window": Case("ministral3", {"sliding_window": 5}),
    "phi3": Case("phi3"),
    "phi3 window": Case("phi3", {"sliding_window": 5}),
    "phi3 longrope": Case("phi3", {**rope("longrope"), "original_max_position_embeddings": 12}, BOUNDARY),
    "phi3 tied, one key-value head": Case("phi3", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "seed_oss": Case("seed_oss"),
    "seed_oss biases": Case("seed_oss", {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True}),
    "starcoder2": Case("starcoder2"),
    "starcoder2 no biases, window": Case("starcoder2", {"use_bias": False, "sliding_window": 5}),
    "youtu": Case("youtu"),
    "youtu float32": Case("youtu", dtype="float32"),
    # --- with paths of their own ---
    "biogpt": Case("biogpt"),
    "biogpt embeddings scaled": Case("biogpt", {"scale_embedding": False}),
    "falcon": Case("falcon", lengths=EVERY_LENGTH),
    "falcon parallel, biases": Case("falcon", {"parallel_attn": True, "bias": True}),
    "falcon one key-value head": Case("falcon", {"multi_query": True}),
    "falcon parallel, one key-value head, eager": Case(
        "falcon", {"multi_query": True, "parallel_attn": True}, attention="eager"
    ),
    "falcon new decoder": Case(
        "falcon", {"new_decoder_architecture": True, "parallel_attn": True, "num_kv_heads": 1}, lengths=(LENGTH,)
    ),
    "falcon new decoder, one norm": Case(
        "falcon",
        {
            "new_decoder_architecture": True,
            "parallel_attn": True,
            "num_kv_heads": HEADS,
            "num_ln_in_parallel_attn": 1,
        },
    ),
    "falcon alibi": Case("falcon", {"alibi": True}),
    "gpt_bigcode": Case("gpt_bigcode"),
    "gpt_bigcode several key-value heads": Case("gpt_bigcode", {"multi_query": False}),
    "persimmon": Case("persimmon"),
    "persimmon no query and key norms": Case("persimmon", {"qk_layernorm": False}),
    # --- eager attention alone ---
    "codegen": Case("codegen", attention="eager", lengths=EVERY_LENGTH),
    "gpt_neo": Case("gpt_neo", {"window_size": 2048, "max_position_embeddings": 2048}, attention="eager"),
    "gpt_neo window": Case("gpt_neo", attention="eager", lengths=EVERY_LENGTH, own_masks=True),
    "gpt_neo float32": Case("gpt_neo", attention="eager", dtype="float32", own_masks=True),
    "gptj": Case("gptj", attention="eager", lengths=EVERY_LENGTH),
    "gptj float32": Case("gptj", attention="eager", dtype="float32"),
    "mpt": Case("mpt", attention="eager", lengths=EVERY_LENGTH, own_masks=True),
    "xglm": Case("xglm", attention="eager"),
    # --- mixtures of experts ---
    "deepseek_v2": Case("deepseek_v2"),
    "deepseek_v3": Case("deepseek_v3", lengths=EVERY_LENGTH),
    "deepseek_v3 dense": Case("deepseek_v3", {"first_k_dense_replace": LAYERS}),
    "dots1": Case("dots1"),
    "ernie4_5_moe": Case("ernie4_5_moe"),
    "exaone_moe": Case("exaone_moe"),
    "glm4_moe": Case("glm4_moe"),
    "granitemoe": Case("granitemoe"),
    "granitemoe multipliers": Case("granitemoe", {"residual_multiplier": 0.3, "logits_scaling": 3.0}),
    "hunyuan_v1_moe": Case("hunyuan_v1_moe"),
    "llama4_text": Case("llama4_text", lengths=EVERY_LENGTH),
    "llama4_text every second layer, chunks": Case(
        "llama4_text", {"interleave_moe_layer_step": 2, "attention_chunk_size": 5, "no_rope_layers": [1, 0, 1]}
    ),
    "mellum": Case("mellum"),
    "minimax_m2": Case("minimax_m2"),
    "mixtral": Case("mixtral", lengths=EVERY_LENGTH),
    "mixtral float32, window": Case("mixtral", {"sliding_window": 5}, dtype="float32"),
    "olmoe": Case("olmoe"),
    "phimoe": Case("phimoe"),
    "qwen2_moe": Case("qwen2_moe", lengths=EVERY_LENGTH),
    "qwen2_moe dense in the middle": Case("qwen2_moe", {"mlp_only_layers": [1]}),
    "qwen3_moe": Case("qwen3_moe"),
    "qwen3_moe float32": Case("qwen3_moe", dtype="float32"),
    "qwen3_moe every second layer": Case("qwen3_moe", {"decoder_sparse_step": 2}),
    "solar_open": Case("solar_open"),
    # --- factors and offsets ---
    "cohere": Case("cohere"),
    "cohere query and key norms": Case("cohere", {"use_qk_norm": True, "logit_scale": 0.3}),
    "cohere float32": Case("cohere", {"logit_scale": 0.3}, dtype="float32"),
    "cohere2": Case("cohere2"),
    "cohere2 window": Case("cohere2", {"sliding_window": 5}),
    "granite": Case("granite"),
    "granite multipliers": Case(
        "granite",
        {
            "residual_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "logits_scaling": 3.0,
            "attention_multiplier": 0.2,
        },
    ),
    "granite multipliers, float32": Case(
        "granite", {"residual_multiplier": 0.37, "logits_scaling": 7.0}, dtype="float32"
    ),
    "granite_swa": Case("granite_swa", {"residual_multiplier": 0.3, "logits_scaling": 3.0}, attention="eager"),
    "hyperclovax": Case("hyperclovax", {"use_post_norm": False, "residual_multiplier": 0.4, "logits_scaling": 0.3}),
    "minicpm3": Case("minicpm3", {"scale_depth": 1.4, "scale_emb": 3, "dim_model_base": 7}),
    "minicpm3 float32": Case("minicpm3", {"scale_depth": 1.4, "dim_model_base": 7}, dtype="float32"),
    # --- post-norms and capped logits ---
    "afmoe": Case("afmoe"),
    "exaone4": Case("exaone4", lengths=EVERY_LENGTH),
    "exaone4 window": Case("exaone4", {"sliding_window": 5, "sliding_window_pattern": 2}),
    "flex_olmo": Case("flex_olmo"),
    "gemma2": Case("gemma2", attention="eager", lengths=EVERY_LENGTH),
    "gemma2 float32": Case("gemma2", attention="eager", dtype="float32"),
    "gemma2 low caps": Case(
        "gemma2", {"final_logit_softcapping": 1.5, "attn_logit_softcapping": 0.7}, attention="eager"
    ),
    "gemma2 no caps, one key-value head, biases": Case(
        "gemma2",
        {
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "num_key_value_heads": 1,
            "attention_bias": True,
        },
        attention="eager",
    ),
    "gemma2 with a stray flag of both directions": Case(
        "gemma2", {"use_bidirectional_attention": True}, attention="eager"
    ),
    "gemma3_text": Case("gemma3_text", lengths=EVERY_LENGTH),
    "gemma3_text float32": Case("gemma3_text", dtype="float32"),
    "gemma3_text eager, capped": Case("gemma3_text", {"final_logit_softcapping": 2.0}, attention="eager"),
    "gemma3_text window, one key-value head": Case(
        "gemma3_text", {"sliding_window": 5, "sliding_window_pattern": 2, "num_key_value_heads": 1}
    ),
    "gemma3_text large eps": Case("gemma3_text", {"rms_norm_eps": 0.2}),
    "gemma3_text bidirectional": Case("gemma3_text", {"use_bidirectional_attention": True}, refused="causal"),
    "glm4": Case("glm4"),
    "glm4 biases, float32": Case("glm4", {"attention_bias": True}, dtype="float32"),
    "hyperclovax post-norms": Case(
        "hyperclovax", {"use_post_norm": True, "residual_multiplier": 0.4, "logits_scaling": 0.3}
    ),
    "nanochat": Case("nanochat", lengths=EVERY_LENGTH),
    "nanochat float32, low cap": Case("nanochat", {"final_logit_softcapping": 2.5}, dtype="float32"),
    "nanochat no cap": Case("nanochat", {"final_logit_softcapping": None}),
    "olmo2": Case("olmo2", lengths=EVERY_LENGTH),
    "olmo2 float32, biases": Case("olmo2", {"attention_bias": True}, dtype="float32"),
    "olmo2 one layer": Case("olmo2", {"num_hidden_layers": 1}),
    "olmo3": Case("olmo3"),
    "olmo3 window": Case("olmo3", {"sliding_window": 5}),
    "vaultgemma": Case("vaultgemma", attention="eager"),
    "vaultgemma low cap": Case("vaultgemma", {"final_logit_softcapping": 1.5}, attention="eager"),
    "nemotron": Case("nemotron"),
    "nemotron biases, one key-value head": Case(
        "nemotron", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}
    ),
}
UNSEEN_CHOICE = ("llama4_text",)
"""Mixtures whose experts are called with no list of those that are chosen."""

LINES = defaultdict(Line)
"""What is found of each architecture, for docs/models.md."""
MEASURED = [name for name, case in CASES.items() if case.refused is None]
REFUSED = [name for name, case in CASES.items() if case.refused is not None]


def sizes(family: str) -> dict[str, Any]:
    """The sizes of a family's small config."""
    shared = {
        "vocab_size": VOCAB,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "hidden_size": HEADS * D_HEAD,
        "intermediate_size": 30,
        "max_position_embeddings": POSITIONS,
    }
    return {**shared, **OWN_SIZES.get(family, {})}


_WIDE = {"head_dim": D_HEAD}
_LATENT = {"q_lora_rank": 10, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": D_HEAD}
_EVEN = {"num_attention_heads": 4, "hidden_size": 4 * D_HEAD}
_EXPERTS = {
    "intermediate_size": 32,  # experts in groups ask for multiples of 16 bytes
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **{
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 12,
        "head_dim": D_HEAD,
    },
}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0, "n_inner": 30},
    "biogpt": {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "activation_dropout": 0, "layerdrop": 0},
    "codegen": {"n_inner": 30, "rotary_dim": 4, "num_key_value_heads": 4, **_EVEN},
    "falcon": {"alibi": False, "new_decoder_architecture": False, "multi_query": False, "parallel_attn": False},
    "gpt_bigcode": {"n_inner": 30},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 5},
    "gptj": {"n_inner": 30, "rotary_dim": 4},
    "mpt": {"d_model": HEADS * D_HEAD, "n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": POSITIONS},
    "opt": {"ffn_dim": 30, "word_embed_proj_dim": HEADS * D_HEAD},
    "xglm": {"d_model": HEADS * D_HEAD, "attention_heads": HEADS, "num_layers": LAYERS, "ffn_dim": 30},
    "minicpm3": _LATENT,
    "youtu": _LATENT,
    "deepseek_v2": {**_EXPERTS, **_LATENT, "head_dim": 4},
    "deepseek_v3": {**_EXPERTS, **_LATENT, "head_dim": 4},
    **dict.fromkeys(
        (
            *(
                "afmoe",
                "dots1",
                "flex_olmo",
                "exaone_moe",
                "glm4_moe",
                "granitemoe",
                "mellum",
                "minimax_m2",
                "mixtral",
                "olmoe",
                "phimoe",
            ),
            *("qwen2_moe", "qwen3_moe", "solar_open"),
        ),
        _EXPERTS,
    ),
    "ernie4_5_moe": {
        **_EXPERTS,
        **{"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
        **{"moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_layer_interval": 1},
    },
    "llama4_text": {**_EXPERTS, "intermediate_size_mlp": 30, "num_experts_per_tok": 1, "attention_chunk_size": 64},
    "hunyuan_v1_moe": {**_EXPERTS, "moe_topk": 2, "num_shared_expert": 1},
    **dict.fromkeys(
        (
            *("apertus", "arcee", "cohere2", "cwm", "ernie4_5", "gemma", "gemma2", "gemma3_text"),
            *("glm", "glm4", "granite_swa", "helium", "vaultgemma"),
            *(
                "hunyuan_v1_dense",
                "internlm3",
                "iquestcoder",
                "ministral",
                "ministral3",
                "nemotron",
                "olmo3",
                "qwen3",
                "seed_oss",
            ),
        ),
        _WIDE,
    ),
}


def make(case: Case) -> PreTrainedModel:
    """A random model whose attention is sharp enough that positions matter, with no weight that is zero or one by default."""
    options = {**sizes(case.family), **case.options}
    if options.get("num_attention_heads") == 1 and "num_key_value_heads" in options:
        options["num_key_value_heads"] = 1
    torch.manual_seed(0)
    config = AutoConfig.for_model(case.family, **options)
    config._experts_implementation = "eager"  # the other has no float64
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation=case.attention).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + float(parameter.mean().round()))
            else:
                wide = 0.7 if "embed" in name or "wte" in name or "wpe" in name else 1.5 * parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn_like(parameter) * wide)
    # What the config asks for in another type (a gate's weight in bfloat16) too.
    return hf.to(getattr(torch, case.dtype))


def prompts(length: int) -> tuple[Tensor, Tensor]:
    """Three prompts with one first token, as with BOS, and their donors."""
    tokens = torch.randint(3, VOCAB, (3, length), generator=torch.Generator().manual_seed(length))
    tokens[:, 0] = 1
    return tokens, tokens.roll(1, 0)


@pytest.fixture(scope="module", params=MEASURED)
def name(request: pytest.FixtureRequest) -> str:
    """Each case that is measured; all its tests run before the next case's, so that it is loaded once."""
    return request.param


@lru_cache(maxsize=1)
def load(name: str) -> tuple[Model, PreTrainedModel]:
    """A case's loaded model, and the same in float64 for the reference."""
    case = CASES[name]
    hf = make(case)
    exact = copy.deepcopy(hf).double()
    if case.dtype != "float64" and exact._supports_sdpa:
        exact.set_attn_implementation("sdpa")  # the same sums; GPT-2's own upcast attention knows no float64
    case.change(hf)
    return selfrepair.load_model(hf, dtype=case.dtype), exact


@lru_cache(maxsize=3)
def reference(name: str, length: int) -> tuple[Reference, dict[tuple[int, int, str], Measured]]:
    """The reference's numbers by layer, head and kind."""
    _, exact = load(name)
    found = Reference(exact, *prompts(length))
    n_layers, n_heads = len(found.blocks), found.n_heads
    return found, {
        (layer, head, kind): found.ablate_head(layer, head, kind)
        for layer, head in some_heads(n_layers, n_heads)
        for kind in kinds(name, length)
    }


def mixtures(model: Model) -> list[int]:
    """Layers that are mixtures of experts."""
    return [layer for layer, weight in enumerate(model.W_out) if weight is None]


def some_heads(n_layers: int, n_heads: int) -> list[tuple[int, int]]:
    """A head of the first, a middle and the last layer."""
    return list(dict.fromkeys([(0, n_heads - 1), (n_layers // 2, n_heads // 2), (n_layers - 1, 0)]))


def kinds(name: str, length: int) -> tuple[str, ...]:
    """All kinds of ablation at the longest length, one at the others."""
    return tuple(ABLATION_KINDS) if length == CASES[name].lengths[-1] else ("resample",)


def tolerance(name: str) -> float:
    """What rounding explains, relative to the largest of the values compared: several times what was found."""
    return 2e-5 if CASES[name].dtype == "float32" else 1e-12


class Comparison:
    """The largest difference of each quantity of a case, relative to its largest value or to one logit."""

    def __init__(self, name: str) -> None:
        self.name, self.allowed = name, tolerance(name)
        self.off: dict[str, float] = {}

    def add(self, label: str, got: Any, wanted: Tensor) -> None:
        """Compare some values."""
        got = np.asarray(got, dtype=float)
        assert got.shape == tuple(wanted.shape), label
        size = max(1.0, float(wanted.abs().max()))
        off = float(np.abs(got - wanted.detach().numpy()).max()) / size
        self.off[label] = max(self.off.get(label, 0.0), off if np.isfinite(off) else np.inf)

    def check(self) -> None:
        """Fail with every quantity that is off."""
        wrong = {label: f"{off:.2g}" for label, off in self.off.items() if not off <= self.allowed}
        assert self.off
        of_dtype = LINES[CASES[self.name].family].off
        dtype = CASES[self.name].dtype
        of_dtype[dtype] = max(of_dtype.get(dtype, 0.0), *self.off.values())
        assert not wrong, f"off by more than {self.allowed:.0e}: {wrong}"


def chosen_tokens(heads: int, length: int) -> np.ndarray:
    """Selected tokens [head, prompt, pos-1]: early ones in some prompts, so that runs are cut, and none in one."""
    selected = np.random.default_rng(length).random((heads, 3, length - 1)) < 0.3
    selected[:, 1, 6:] = False
    selected[0, 2] = False
    selected[0, 0, -1] = selected[-1, 1, 0] = True
    return selected


def test_ablations_give_the_numbers_of_a_hooked_run(name: str) -> None:
    """`ablate_heads`, every kind and quantity, at every length of the table."""
    model, _ = load(name)
    compared = Comparison(name)
    heads = some_heads(model.n_layers, model.n_heads)
    for length in CASES[name].lengths:
        tokens, donors = prompts(length)
        found, wanted = reference(name, length)
        compared.add("clean_scale", run_clean(model, tokens).scale, found.scale)
        for kind in kinds(name, length):
            given = donors if kind == "resample" else None
            dataset = selfrepair.ablate_heads(model, tokens, given, heads=heads, kind=kind)
            for row, (layer, head) in enumerate(heads):
                for quantity in (*model.quantities, "ablated_scale"):
                    label = f"{quantity}, {kind}, {length} tokens"
                    compared.add(label, dataset[quantity].values[row], wanted[layer, head, kind].values[quantity])
    compared.check()
    largest = max(float(one.values["logit_change"].abs().max()) for one in wanted.values())
    assert largest > 1e-2, "nothing changes in this model"
    if mixtures(model) and CASES[name].family not in UNSEEN_CHOICE:
        assert [layer for layer, experts in enumerate(model.experts) if experts is not None] == mixtures(model)
        changes = [one.values[CHOSEN_EXPERTS] for one in wanted.values()]
        assert max(float(change.abs().max()) for change in changes) > 1e-3, "no other experts are chosen"
    else:
        assert CHOSEN_EXPERTS not in model.quantities


def test_prompts_that_are_cut_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Top tokens, repair by component, neurons and the frozen norm, at the longest length: each cuts prompts."""
    model, _ = load(name)
    # Few prompts in a batch, so that not all are as long as the longest.
    monkeypatch.setattr(models, "BATCH_TOKENS", LENGTH)
    compared = Comparison(name)
    heads = some_heads(model.n_layers, model.n_heads)
    length = CASES[name].lengths[-1]
    tokens, donors = prompts(length)
    clean, donor_z = run_clean(model, tokens), run_clean(model, donors).z
    found, by_kind = reference(name, length)
    wanted = [by_kind[layer, head, "resample"] for layer, head in heads]
    selected = chosen_tokens(len(heads), length)
    check_top_tokens(compared, model, tokens, heads, selected, wanted, donor_z)
    replay = SuffixReplay(model, tokens, clean)
    for layer, of_layer in group_by_layer(heads).items():
        rows = [heads.index((layer, head)) for head in of_layer]
        mask = torch.from_numpy(selected[rows])
        assert any(batch.cut for batch in cut_batches(of_layer, mask, model.batch_tokens)), "nothing is cut"
        frozen, _ = frozen_layernorm_change(replay, tokens, layer, of_layer, donor_z[layer], mask)
        for row, got in zip(rows, frozen, strict=True):
            at = selected[row]
            compared.add("frozen norm", got[at], wanted[row].values["frozen_layernorm_logit_change"][at])
    dense = {layer for layer, weight in enumerate(model.W_out) if weight is not None}
    for neuron_layer in dense & {model.n_layers - 1, model.n_layers // 2}:  # the last runs at the selected tokens alone
        reached = [row for row, (layer, _) in enumerate(heads) if reads_head(model, neuron_layer, layer)]
        if not reached:
            continue
        some = [heads[row] for row in reached]
        after_head: dict[int | None, Tensor] = {row: found.neurons(wanted[row].run, neuron_layer) for row in reached}
        after_head[None] = found.neurons(found.clean, neuron_layer)
        for effects in neuron_effects(model, tokens, clean, donor_z.__getitem__, some, selected[reached], neuron_layer):
            for at, (row, prompt, pos) in enumerate(zip(effects.row, effects.prompt, effects.pos, strict=True)):
                before, after = after_head[None], after_head[reached[int(row)]]
                compared.add("neurons, clean", effects.clean[at], before[prompt, pos])
                compared.add("neurons, ablated", effects.ablated[at], after[prompt, pos])
    compared.check()


def check_top_tokens(
    compared: Comparison,
    model: Model,
    tokens: Tensor,
    heads: list[tuple[int, int]],
    selected: np.ndarray,
    wanted: list[Measured],
    donor_z: Any,
) -> None:
    """`sweep` on selected tokens, cut after the last of them or not."""
    clean = run_clean(model, tokens)
    for only in (True, False):
        with Progress(len(heads), "", "head", show=False) as bar:
            dataset = sweep(model, tokens, clean, donor_z.__getitem__, heads, bar, selected, only)
        for row, measured in enumerate(wanted):
            at = torch.from_numpy(selected[row])
            for quantity in (*model.quantities, "ablated_scale"):
                compared.add(
                    f"{quantity}, top tokens",
                    dataset[quantity].values[row][selected[row]],
                    measured.values[quantity][at],
                )
            layer, head = heads[row]
            by_head = (measured.by_head * at).sum(-1).movedim(2, 0).clone()
            by_head[:, layer, head] = 0  # the ablated head's own change is no repair
            compared.add("repair by head", dataset["repair_by_head"].values[row], by_head)
            compared.add("repair by MLP", dataset["repair_by_mlp"].values[row], (measured.by_mlp * at).sum(-1).T)


def test_whole_layers_and_single_attentions_give_the_same(name: str) -> None:
    """Whole attentions and MLPs ablated, and an attention that reads one changed residual, at the longest length."""
    model, _ = load(name)
    compared = Comparison(name)
    length = CASES[name].lengths[-1]
    tokens, donors = prompts(length)
    found, _ = reference(name, length)
    run_clean(
        model, tokens[:, :4]
    )  # a model that ran longer before keeps those frequencies until a shorter prompt comes
    clean, donor = run_clean(model, tokens), run_clean(model, donors)
    with Progress(model.n_layers, "", "layer", show=False) as bar:
        values = ablate_layers(
            model, tokens, clean, donor.z.__getitem__, lambda layer: mlp_output(model, layer, donor), bar
        )
    for row, component in enumerate(COMPONENTS):
        for layer in {0, model.n_layers - 1}:
            wanted = found.ablate_component(layer, component).values
            for quantity in model.quantities:
                compared.add(f"{quantity}, whole {component}", values[quantity][row, layer], wanted[quantity])
    attentions = Attentions(model, length)
    positions = torch.tensor([length - 1, length // 2, 0])
    if CASES[name].own_masks:
        resid = clean.resid_pre[1][1]
        assert "makes masks of its own" in str(attentions.why_not_at(clean.resid_pre))
        with pytest.raises(ValueError, match="makes masks of its own"):
            attentions.z_at(1, resid, positions, resid[positions])
        return
    assert attentions.why_not_at(clean.resid_pre) is None
    for layer in range(model.n_layers):
        resid = clean.resid_pre[layer][1]
        changed = resid[positions].roll(1, 0)
        z = attentions.z_at(layer, resid, positions, changed)
        for row, pos in enumerate(positions.tolist()):
            compared.add("z of a changed residual", z[row], found.z_with(layer, 1, pos, changed[row].double()))
    compared.check()


def test_neurons_of_experts_are_refused_with_the_layers_that_have_some() -> None:
    model, _ = load("qwen3_moe every second layer")
    assert [weight is None for weight in model.W_out] == [False, True, False]
    assert model.why_no_neurons(0) is None
    with pytest.raises(
        ValueError, match=r"layer 1 is a mixture of experts: .*neuron_layer can name a dense layer \(0, 2\)"
    ):
        model.neurons_write(1)
    none, _ = load("mixtral")
    with pytest.raises(ValueError, match=r"layer 0 is a mixture of experts: its neurons differ from token to token$"):
        none.neurons_write(0)


def test_a_factor_after_the_experts_is_seen_and_counts() -> None:
    hf = make(CASES["mixtral"])
    mlp = hf.model.layers[1].mlp
    forward = mlp.forward
    mlp.forward = lambda hidden: 0.25 * forward(hidden)
    model = selfrepair.load_model(hf, dtype="float64")
    assert [seen.factor for seen in model.experts if seen is not None] == [1, 0.25, 1]
    clean = run_clean(model, prompts(LENGTH)[0])
    # Mixtral's MLP is its experts alone.
    torch.testing.assert_close(clean.expert_direct_effect.sum(-1), clean.mlp_direct_effect, rtol=0, atol=1e-12)


def test_experts_whose_choice_is_not_seen_have_no_quantity() -> None:
    hf = make(CASES["mixtral"])
    mlp = hf.model.layers[1].mlp

    def alone(hidden: Tensor) -> Tensor:
        flat = hidden.flatten(0, 1)
        _, weights, chosen = mlp.gate(flat)
        return mlp.experts.forward(flat, chosen, weights).view_as(hidden)

    mlp.forward = alone
    model = selfrepair.load_model(hf, dtype="float64")
    assert model.experts == [None] * LAYERS
    assert CHOSEN_EXPERTS not in model.quantities


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_ablations_in_bfloat16_are_proven(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every head on every prompt is within half of what rounding may explain; mixtures are refused.

    Near a tie, a router that is rounded chooses other experts than one that is not.
    """
    hf = in_bfloat16(make(CASES[family]).float())
    monkeypatch.setattr(proof, "SHARE", 100.0)
    monkeypatch.setattr(proof, "HEADS_A_PROMPT", 100)
    monkeypatch.setattr(proof, "REPEATED_ROUNDINGS", proof.REPEATED_ROUNDINGS // 2)
    monkeypatch.setattr(proof, "BFLOAT16_TIMES", proof.BFLOAT16_TIMES // 2)
    if mixtures(selfrepair.load_model(copy.deepcopy(hf).float())):
        with pytest.raises(ValueError, match=r"mixture of experts: rounding to bfloat16 .* leave weights"):
            selfrepair.load_model(hf, weights="bfloat16")
        return
    model = selfrepair.load_model(hf, weights="bfloat16")
    tokens, donors = prompts(LENGTH)
    found = selfrepair.ablate_heads(model, tokens, donors)
    assert found.attrs["proof_ablations"] == model.n_layers * model.n_heads * len(tokens)


@pytest.mark.parametrize("refused", REFUSED)
def test_what_cannot_hold_is_refused_with_its_reason(refused: str) -> None:
    case = CASES[refused]
    hf = make(case)
    case.change(hf)
    tokens, donors = prompts(LENGTH)
    with pytest.raises(ValueError, match=case.refused):
        selfrepair.ablate_heads(selfrepair.load_model(hf, dtype=case.dtype), tokens, donors)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_saved_model_is_read_as_it_was(family: str, tmp_path: Path) -> None:
    """Every weight of every covered architecture, the padding token's row too, and with torch's experts in groups."""
    hf = make(CASES[family]).float()
    hf.config._experts_implementation = "grouped_mm"
    hf.save_pretrained(tmp_path)
    read = selfrepair.load_model(tmp_path)
    tokens, _ = prompts(LENGTH)
    tokens[0, 3] = hf.config.pad_token_id or 0
    with torch.no_grad():
        torch.testing.assert_close(read.hf(input_ids=tokens).logits, hf(input_ids=tokens).logits, rtol=0, atol=1e-5)


def test_the_table_holds_every_family() -> None:
    assert len(CASES) >= 60
    measured = {CASES[name].family for name in MEASURED}
    assert measured == set(FAMILIES)


def test_the_page_of_models_is_current() -> None:
    page = REPOSITORY / "docs" / "models.md"
    assert architectures(page, "covered") == sorted(FAMILIES)
    assert architectures(page, "refused") == sorted(REFUSED_FAMILIES)
    assert not set(FAMILIES) & set(REFUSED_FAMILIES)
