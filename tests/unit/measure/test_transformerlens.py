"""Agreement with a plain hooked TransformerLens run: the ablated forward pass whole, with every component cached."""

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
from selfrepair.quantities import ABLATION_KINDS

from conftest import CONFIGS, VOCAB, random_model

# TransformerLens picks an architecture's adapter by a name it knows; weights and sizes are those of the model given.
NAMES = {"gpt2": "gpt2", "gpt_neox": "EleutherAI/pythia-14m", "llama": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def bridge_of(name: str, hf: PreTrainedModel, folder: Path) -> TransformerBridge:
    # The bridge wraps the modules of the model it is given, so it gets one of its own. It asks the hub for a tokenizer unless
    # it has one; this one is never used, as prompts are token ids.
    words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(VOCAB)}, unk_token="w0"))
    fast = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w0")
    fast.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TransformerBridge.boot_transformers(
        NAMES[name], hf_model=copy.deepcopy(hf), tokenizer=tokenizer, dtype=torch.float64
    )


class Reference:
    """The quantities of docs/definitions.md from TransformerLens caches and the model's own weights."""

    def __init__(self, name: str, hf: PreTrainedModel, tokens: np.ndarray, folder: Path) -> None:
        self.bridge = bridge_of(name, hf, folder)
        self.tokens = torch.from_numpy(tokens)
        self.layers, self.heads = range(CONFIGS[name].num_hidden_layers), CONFIGS[name].num_attention_heads
        self.clean = self.run()

    def run(self, hooks: list[tuple[str, Any]] | None = None) -> dict[str, torch.Tensor]:
        wanted = ("hook_z", "hook_mlp_out", "ln_final.hook_scale", "ln_final.hook_in", "unembed.hook_out")
        with self.bridge.hooks(fwd_hooks=hooks or []), torch.no_grad():
            _, cache = self.bridge.run_with_cache(self.tokens, names_filter=lambda name: name.endswith(wanted))
        return dict(cache.items())

    def correct_logit(self, run: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = run["unembed.hook_out"][:, :-1]
        logits = logits - logits.mean(-1, keepdim=True)
        return logits.gather(-1, self.tokens[:, 1:, None])[..., 0]

    def direct_effects(self, run: dict[str, torch.Tensor], model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Heads [layer, head, prompt, pos] and MLPs [layer, prompt, pos], from outputs in d_model, at the clean scale."""
        d = model.direction(self.tokens[:, 1:])
        scale = self.clean["ln_final.hook_scale"][:, :-1, 0]
        heads, mlps = [], []
        for layer in self.layers:
            z = run[f"blocks.{layer}.attn.hook_z"][:, :-1]
            z = z.reshape(*z.shape[:2], self.heads, -1) - model.value_constant[layer]
            written = torch.einsum("pthd,hdm->hptm", z, model.W_O[layer])
            heads.append((written * d).sum(-1) / scale)
            mlps.append((run[f"blocks.{layer}.hook_mlp_out"][:, :-1] * d).sum(-1) / scale)
        return torch.stack(heads), torch.stack(mlps)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_engine_equals_transformerlens_head_by_head(
    name: str, tokens: np.ndarray, donors: np.ndarray, tmp_path: Path
) -> None:
    hf = random_model(name)
    model = selfrepair.load_model(hf, dtype="float64")
    reference = Reference(name, hf, tokens, tmp_path)
    donor_run = Reference(name, hf, donors, tmp_path).clean
    clean_heads, clean_mlps = reference.direct_effects(reference.clean, model)
    for kind in ABLATION_KINDS:
        dataset = selfrepair.ablate_heads(model, tokens, donors if kind == "resample" else None, kind=kind)
        tolerance = 1e-10 if name == "gpt2" else 2e-6  # transformers makes rotary tables and RMSNorms in float32
        assert np.allclose(dataset["clean_scale"], reference.clean["ln_final.hook_scale"][:, :-1, 0], atol=tolerance)
        for row in range(dataset.sizes["head"]):
            layer, head = int(dataset["layer"][row]), int(dataset["head_index"][row])

            def ablate(
                z: torch.Tensor, hook: Any, layer: int = layer, head: int = head, kind: str = kind
            ) -> torch.Tensor:
                by_head = z.reshape(*z.shape[:2], reference.heads, -1).clone()
                if kind == "resample":
                    other = donor_run[f"blocks.{layer}.attn.hook_z"]
                    by_head[:, :, head] = other.reshape(by_head.shape)[:, :, head]
                elif kind == "mean":
                    by_head[:, :, head] = by_head[:, :, head].mean((0, 1))
                else:
                    by_head[:, :, head] = model.value_constant[layer, head]
                return by_head.reshape(z.shape)

            run = reference.run([(f"blocks.{layer}.attn.hook_z", ablate)])
            logit_change = reference.correct_logit(run) - reference.correct_logit(reference.clean)
            heads, mlps = reference.direct_effects(run, model)
            change = heads - clean_heads
            own = change[layer, head].clone()
            change[layer, head] = 0
            wanted = {
                "direct_effect": clean_heads[layer, head],
                "ablated_direct_effect": clean_heads[layer, head] + own,
                "logit_change": logit_change,
                "self_repair": logit_change - own,
                "self_repair_from_heads": change.sum((0, 1)),
                "self_repair_from_mlps": (mlps - clean_mlps).sum(0),
                "ablated_scale": run["ln_final.hook_scale"][:, :-1, 0],
            }
            for quantity, value in wanted.items():
                assert np.allclose(dataset[quantity][row], value, atol=tolerance), (kind, layer, head, quantity)
