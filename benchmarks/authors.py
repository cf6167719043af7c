"""What the procedure of the authors' code costs for one head, on the default model, with a TransformerLens of the paper's time.

Run by `make bench-authors` in an environment of its own (benchmarks/authors-requirements.txt). The procedure is that of
GOOD_breakdown_self_repair.py in github.com/starship006/backup_research, in our words: for each head four whole forward passes
(the donors and the patched prompts, each once for the cache and once for the logits), everything cached, every head's output
formed, and their direct effects taken through the final norm. Writes results/benchmarks/authors.json, and prints how long it
takes beside what `make bench` found for the engine.
"""

import argparse
import ctypes
import json
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor
from transformer_lens import ActivationCache, HookedTransformer, HookedTransformerConfig
from transformer_lens.loading_from_pretrained import convert_mistral_weights
from transformers import LlamaForCausalLM

MATMUL_SIZE = 2048
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""


def hooked_transformer(folder: Path) -> HookedTransformer:
    """The snapshot's model, its final norm's weight folded, its unembedding centred, the outputs of its heads hooked."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = HookedTransformerConfig(
        n_layers=config["num_hidden_layers"],
        d_model=config["hidden_size"],
        n_heads=config["num_attention_heads"],
        n_key_value_heads=config["num_key_value_heads"],
        d_head=config["head_dim"],
        d_mlp=config["intermediate_size"],
        d_vocab=config["vocab_size"],
        n_ctx=2048,
        eps=config["rms_norm_eps"],
        act_fn="silu",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=config["head_dim"],
        rotary_base=int(config["rope_parameters"]["rope_theta"]),
        final_rms=True,
        gated_mlp=True,
        device="cpu",
        dtype=torch.float32,
    )
    model = HookedTransformer(settings)
    hf = LlamaForCausalLM.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    weights = convert_mistral_weights(hf, settings)  # a Llama with grouped queries
    # This version folds LayerNorms alone, no RMSNorm.
    weights["unembed.W_U"] = weights["ln_final.w"][:, None] * weights["unembed.W_U"]
    weights["ln_final.w"] = torch.ones_like(weights["ln_final.w"])
    model.load_and_process_state_dict(weights, fold_ln=False, center_writing_weights=False, center_unembed=True)
    model.set_use_attn_result(True)
    return model


def direct_effects(model: HookedTransformer, cache: ActivationCache, tokens: Tensor, clean: ActivationCache) -> tuple:
    """Direct effects of heads [layer, head, prompt, pos-1] and MLPs [layer, prompt, pos-1], through the clean norm."""
    directions = model.tokens_to_residual_directions(tokens)[:, 1:]
    heads = cache.stack_head_results(layer=-1)
    mlps = torch.stack([cache["mlp_out", layer] for layer in range(model.cfg.n_layers)])
    # This version's apply_ln_to_stack leaves an RMSNorm out.
    scaled = ((stack / clean["ln_final.hook_scale"])[..., :-1, :] for stack in (heads, mlps))
    of_heads, of_mlps = (torch.einsum("cptm,ptm->cpt", stack, directions) for stack in scaled)
    return of_heads.unflatten(0, (model.cfg.n_layers, model.cfg.n_heads)), of_mlps


def correct_logits(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits of the tokens that follow [prompt, pos-1]."""
    return logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


class Procedure:
    """Ablates one head at a time as the authors' code does."""

    def __init__(self, model: HookedTransformer, tokens: Tensor, donors: Tensor) -> None:
        self.model, self.tokens, self.donors = model, tokens, donors
        self.logits, self.cache = model.run_with_cache(tokens)
        self.heads, self.mlps = direct_effects(model, self.cache, tokens, self.cache)

    def patched(self, layer: int, head: int, cached: bool) -> ActivationCache | Tensor:
        """Run the donors, then the prompts with the head's z replaced: everything cached, or the logits."""
        name = f"blocks.{layer}.attn.hook_z"
        _, donor = self.model.run_with_cache(self.donors, return_type=None)

        def replace(z: Tensor, hook: Any) -> Tensor:
            z[:, :, head] = donor[name][:, :, head]
            return z

        with self.model.hooks(fwd_hooks=[(name, replace)]):
            if cached:
                return self.model.run_with_cache(self.tokens, return_type=None)[1]
            return self.model(self.tokens)

    def ablate(self, layer: int, head: int) -> dict[str, Tensor]:
        """The quantities of one resample-ablated head [prompt, pos-1], in logits."""
        ablated, logits = (self.patched(layer, head, cached) for cached in (True, False))
        tokens = self.tokens
        heads, mlps = direct_effects(self.model, ablated, tokens, self.cache)
        change = heads - self.heads
        own = change[layer, head]
        logit_change = correct_logits(logits, tokens) - correct_logits(self.logits, tokens)
        from_heads, from_mlps = change.sum((0, 1)) - own, (mlps - self.mlps).sum(0)
        return {
            "logit_change": logit_change,
            "self_repair": logit_change - own,
            "self_repair_from_heads": from_heads,
            "self_repair_from_mlps": from_mlps,
            "self_repair_from_layernorm": logit_change - own - from_heads - from_mlps,
        }


def seconds(work: Any) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model snapshot folder")
    parser.add_argument("tokens", type=Path, help="tokens file")
    parser.add_argument("engine", type=Path, help="what `make bench` wrote")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if platform.libc_ver()[0] == "glibc":
        # Freed memory is kept, as the engine keeps its own: how fast a system hands out gigabytes is not what is compared.
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, 2**30)
    with h5py.File(options.tokens) as file:
        tokens = torch.from_numpy(file["tokens"][: options.prompts].astype("int64"))
    procedure = Procedure(hooked_transformer(options.model), tokens, tokens.roll(1, 0))
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE) for _ in range(2))
    times, rates = [], []
    for repeat in range(options.repeats + 1):
        rates.append(2 * MATMUL_SIZE**3 / min(seconds(lambda: a @ b) for _ in range(5)))
        times.append(seconds(lambda head=repeat: procedure.ablate(15, head)))
    engine = json.loads(options.engine.read_text(encoding="utf-8"))
    per_head = statistics.median(times[1:]) * 1024 / tokens.numel()
    # One process has all cores here; the engine's figure is of one process of as many as there are cores.
    engine_per_head = engine["seconds_per_head_per_1024_tokens"]["whole_sweep"] / engine["cores"]
    figures = {
        "seconds_per_head_per_1024_tokens": per_head,
        "engine_seconds_per_head_per_1024_tokens": engine_per_head,
        "speedup_over_authors": per_head / engine_per_head,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "matmul_gflops": statistics.median(rates) / 1e9,
        "engine_matmul_gflops": engine["matmul_gflops"] * engine["cores"],
        "threads": torch.get_num_threads(),
        "prompts": len(tokens),
        "repeats": options.repeats,
        "torch": torch.__version__,
    }
    options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for name, value in figures.items():
        print(f"{name:<42}{value:.3g}" if isinstance(value, float) else f"{name:<42}{value}")  # noqa: T201


if __name__ == "__main__":
    main()
