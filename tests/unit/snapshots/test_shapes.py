"""How large a model is, read from its files alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from selfrepair.snapshots.shapes import Shape, shape_differences, shape_of_folder, shape_of_settings

pytestmark = pytest.mark.filterwarnings("error")

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (
        GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=32, vocab_size=301, bos_token_id=1, eos_token_id=2),
        {"layers": 3, "heads": 4, "d_model": 64, "d_mlp": 256, "vocabulary": 301, "tied": True},
    ),
    "gpt_neox": (
        GPTNeoXConfig(
            **{"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 96},
            **{"vocab_size": 301, "max_position_embeddings": 32},
        ),
        {"layers": 3, "heads": 4, "d_model": 64, "d_mlp": 96, "vocabulary": 301, "parallel": True},
    ),
    "llama": (
        LlamaConfig(
            **{"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64},
            **{"intermediate_size": 96, "vocab_size": 301, "max_position_embeddings": 32, "head_dim": 32},
        ),
        {
            "layers": 3,
            "heads": 4,
            "kv_heads": 2,
            "d_head": 32,
            "d_model": 64,
            "d_mlp": 96,
            "vocabulary": 301,
            "gated": True,
        },
    ),
}
"""A config of each kind of shape, and how the project's config says it."""


def saved(folder: Path, name: str) -> Shape:
    model = AutoModelForCausalLM.from_config(MODELS[name][0], dtype=torch.float16)
    model.save_pretrained(folder)
    found = shape_of_folder(folder)
    assert found is not None
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_and_the_config_give_the_same_sizes(tmp_path: Path, name: str) -> None:
    found, named = saved(tmp_path, name), shape_of_settings(MODELS[name][1])
    assert found.stored_bytes == 2 * found.parameters
    for size in ("layers", "heads", "kv_heads", "d_model", "d_head", "d_mlp", "vocabulary", "parallel"):
        assert getattr(found, size) == getattr(named, size), size
    assert found.layer_parameters == named.layer_parameters
    assert found.mlp_parameters == named.mlp_parameters
    assert named.parameters == pytest.approx(found.parameters, rel=0.05)


def test_a_shape_that_is_not_the_models_is_said(tmp_path: Path) -> None:
    found, named = saved(tmp_path, "llama"), MODELS["llama"][1]
    assert shape_differences(named, found) == []
    assert shape_differences({**named, "layers": 4, "d_mlp": 100}, found) == [
        "is layers 4 and d_mlp 100, but the model has layers 3 and d_mlp 96: correct layers, d_mlp"
    ]
    [told] = shape_differences({**named, "gated": False}, found)
    assert told.endswith(": correct gated, tied")


def test_what_is_no_model_has_no_shape(tmp_path: Path) -> None:
    assert shape_of_folder(tmp_path / "nowhere") is None
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert shape_of_folder(tmp_path) is None


def test_another_model_in_the_same_folder_is_seen(tmp_path: Path) -> None:
    first = saved(tmp_path, "llama")
    assert saved(tmp_path, "gpt_neox") != first
