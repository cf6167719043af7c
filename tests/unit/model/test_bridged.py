"""A TransformerBridge as a model: measured as the model that it wraps, and left as it was."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import selfrepair

from conftest import VOCAB, random_model

# Warnings of TransformerLens's own.
pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = {
    "gpt2": "gpt2",
    "gpt_neox": "EleutherAI/pythia-14m",
    "llama": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "qwen2": "Qwen/Qwen2-0.5B",
    "gemma2": "google/gemma-2-2b",
    "opt": "facebook/opt-125m",
    "phi": "microsoft/phi-1",
}
"""A name by which TransformerLens picks the adapter of an architecture; weights and sizes are those of the model given."""


def bridge_of(name: str, hf: PreTrainedModel, folder: Path) -> TransformerBridge:
    words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(VOCAB)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w0").save_pretrained(
        folder
    )
    return TransformerBridge.boot_transformers(
        NAMES[name], hf_model=copy.deepcopy(hf), tokenizer=AutoTokenizer.from_pretrained(folder), dtype=torch.float64
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_bridge_is_measured_as_its_model(name: str, tokens: np.ndarray, donors: np.ndarray, tmp_path: Path) -> None:
    hf = random_model(name)
    bridge = bridge_of(name, hf, tmp_path)
    before = {key: value.clone() for key, value in bridge.original_model.state_dict().items()}
    modules = [(key, type(module)) for key, module in bridge.original_model.named_modules()]
    logits = bridge(torch.from_numpy(tokens))
    heads = [(0, 1), (2, 3)]
    found = selfrepair.ablate_heads(selfrepair.load_model(bridge, dtype="float64"), tokens, donors, heads)
    wanted = selfrepair.ablate_heads(selfrepair.load_model(hf, dtype="float64"), tokens, donors, heads)
    for variable in wanted.data_vars:
        np.testing.assert_allclose(found[variable].values, wanted[variable].values, rtol=1e-9, atol=1e-9)
    assert np.abs(found["self_repair"].values).max() > 0.01
    # Bridge, weights and hooks are as they were.
    assert [(key, type(module)) for key, module in bridge.original_model.named_modules()] == modules
    assert all(torch.equal(value, before[key]) for key, value in bridge.original_model.state_dict().items())
    assert torch.equal(bridge(torch.from_numpy(tokens)), logits)


def test_no_weight_is_copied(tmp_path: Path) -> None:
    bridge = bridge_of("llama", random_model("llama"), tmp_path)
    held = {parameter.data_ptr() for parameter in bridge.original_model.parameters()}
    model = selfrepair.load_model(bridge, dtype="float64")
    assert {parameter.data_ptr() for parameter in model.hf.parameters()} <= held


def test_a_bridge_whose_weights_were_folded_is_refused(tmp_path: Path) -> None:
    bridge = bridge_of("llama", random_model("llama"), tmp_path)
    bridge.enable_compatibility_mode()
    with pytest.raises(
        ValueError, match="in compatibility mode, its weights folded and centred: pass one as boot_transformers"
    ):
        selfrepair.load_model(bridge, dtype="float64")


def _hook(bridge: TransformerBridge) -> None:
    bridge.add_hook("blocks.1.attn.hook_z", lambda z, hook: z * 0)


def _add(bridge: TransformerBridge) -> None:
    layer: Any = bridge.original_model.model.layers[0]
    layer.register_forward_hook(lambda module, args, out: out[0] + 1 if isinstance(out, tuple) else out + 1)


@pytest.mark.parametrize("change", [_hook, _add])
def test_a_bridge_that_runs_otherwise_than_its_weights_is_refused(change: Any, tmp_path: Path) -> None:
    bridge = bridge_of("llama", random_model("llama"), tmp_path)
    change(bridge)
    with pytest.raises(ValueError, match="gives other logits than the LlamaForCausalLM of its weights"):
        selfrepair.load_model(bridge, dtype="float64")


def test_a_bridge_of_another_dtype_is_told_so(tmp_path: Path) -> None:
    bridge = bridge_of("llama", random_model("llama"), tmp_path)
    with pytest.raises(ValueError, match=r"asked for torch\.float32"):
        selfrepair.load_model(bridge)
