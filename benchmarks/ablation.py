"""Throughput of the ablation engine against a plain TransformerLens sweep of the same quantities, in one process.

Run by `make bench` on the default model and text. Prints a table and writes results/benchmarks/ablation.json. Machines are
noisy: quote the ratios, which are of interleaved runs, rather than the seconds.
"""

import argparse
import json
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import selfrepair
from selfrepair.ablation import sweep
from selfrepair.clean import prompt_chunks, run_clean
from selfrepair.flops import head_flops, sweep_flops
from selfrepair.models import Model
from selfrepair.progress import Progress
from selfrepair.selection import top_tokens

MATMUL_SIZE = 2048
TOP_FRACTION = 0.02
DEFAULT_PROMPTS = 32
"""Prompts of the default run, over which top tokens are chosen."""
TOLERANCE = 1e-3
"""Logits that engine and TransformerLens may differ by, in float32."""


class TransformerLensSweep:
    """One full hooked forward pass a head, with what the definitions need cached and the rest left out.

    Competent, not naive: the clean run is done once, only the hooks that are read are cached, and direct effects come from
    projected directions. What it cannot do is start at the ablated layer or share a pass between heads.
    """

    def __init__(self, folder: Path, model: Model, tokens: np.ndarray, donors: np.ndarray) -> None:
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.bridge = TransformerBridge.boot_transformers(
            "HuggingFaceTB/SmolLM2-135M-Instruct", hf_model=hf, tokenizer=tokenizer
        )
        self.model, self.tokens = model, torch.from_numpy(tokens).long()
        d = model.direction(self.tokens[:, 1:])
        self.clean = self.run(self.tokens)
        self.donor = self.run(torch.from_numpy(donors).long())
        self.scale = self.clean["ln_final.hook_scale"][:, :-1, 0]
        self.direction = d / self.scale[..., None]
        self.projected = [torch.einsum("ptm,hdm->pthd", self.direction, W_O) for W_O in model.W_O]
        self.clean_heads, self.clean_mlps = self.direct_effects(self.clean)
        self.clean_logit = self.logit(self.clean)

    def run(self, tokens: torch.Tensor, hooks: list[tuple[str, Any]] | None = None) -> dict[str, torch.Tensor]:
        """Cache what the definitions need of one forward pass."""
        wanted = ("hook_z", "hook_mlp_out", "ln_final.hook_scale", "ln_final.hook_in")
        with self.bridge.hooks(fwd_hooks=hooks or []), torch.inference_mode():
            _, cache = self.bridge.run_with_cache(
                tokens, return_type=None, names_filter=lambda name: name.endswith(wanted)
            )
        return dict(cache.items())

    def logit(self, run: dict[str, torch.Tensor]) -> torch.Tensor:
        """Correct logits without their constant."""
        at_clean_scale = (run["ln_final.hook_in"][:, :-1] * self.direction).sum(-1)
        return at_clean_scale * self.scale / run["ln_final.hook_scale"][:, :-1, 0]

    def direct_effects(self, run: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Direct effects of heads [layer, prompt, pos-1, head] and MLPs [layer, prompt, pos-1]."""
        heads, mlps = [], []
        for layer in range(self.model.n_layers):
            z = run[f"blocks.{layer}.attn.hook_z"][:, :-1]
            z = z.reshape(*z.shape[:2], self.model.n_heads, -1)
            heads.append((z * self.projected[layer]).sum(-1))
            mlps.append((run[f"blocks.{layer}.hook_mlp_out"][:, :-1] * self.direction).sum(-1))
        return torch.stack(heads), torch.stack(mlps)

    def ablate(self, layer: int, head: int) -> dict[str, torch.Tensor]:
        """The quantities of one resample-ablated head [prompt, pos-1]."""
        name = f"blocks.{layer}.attn.hook_z"

        def replace(z: torch.Tensor, hook: Any) -> torch.Tensor:
            by_head = z.reshape(*z.shape[:2], self.model.n_heads, -1).clone()
            by_head[:, :, head] = self.donor[name].reshape(by_head.shape)[:, :, head]
            return by_head.reshape(z.shape)

        run = self.run(self.tokens, [(name, replace)])
        heads, mlps = self.direct_effects(run)
        change = heads - self.clean_heads
        own = change[layer, ..., head].clone()
        change[layer, ..., head] = 0
        logit_change = self.logit(run) - self.clean_logit
        return {
            "logit_change": logit_change,
            "self_repair": logit_change - own,
            "self_repair_from_heads": change.sum((0, -1)),
            "self_repair_from_mlps": (mlps - self.clean_mlps).sum(0),
            "ablated_scale": run["ln_final.hook_scale"][:, :-1, 0],
        }


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def matmul_rate() -> float:
    """Floating-point operations a second of a large matrix product, with this process's threads."""
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE) for _ in range(2))
    a @ b
    return 2 * MATMUL_SIZE**3 / min(seconds(lambda: a @ b) for _ in range(5))


def check_equal(engine: xr.Dataset, reference: TransformerLensSweep, layer: int, head: int) -> float:
    """Largest difference between the engine and TransformerLens on a head; an error beyond the tolerance."""
    row = int(np.flatnonzero((engine["layer"] == layer) & (engine["head_index"] == head))[0])
    wanted = reference.ablate(layer, head)
    off = {}
    for name, value in wanted.items():
        size = np.abs(value.numpy()).max() if name == "ablated_scale" else 1.0
        off[name] = float(np.abs(engine[name].values[row] - value.numpy()).max() / size)
    if max(off.values()) > TOLERANCE:
        raise SystemExit(f"engine and TransformerLens differ at layer {layer}, head {head}: {off}")
    return max(off.values())


def default_top_tokens(model: Model, tokens: np.ndarray, n_prompts: int) -> np.ndarray:
    """Which tokens of the first ``n_prompts`` are top tokens of each head over all of ``tokens`` [head, prompt, pos-1]."""
    chunks = prompt_chunks(model, *tokens.shape)
    effects = [run_clean(model, torch.from_numpy(tokens[chunk])).head_direct_effect for chunk in chunks]
    by_head = torch.cat(effects, dim=1).movedim(-1, 1).flatten(0, 1).numpy()
    flat = by_head.reshape(len(by_head), -1)
    selected = np.zeros(flat.shape, bool)
    np.put_along_axis(selected, top_tokens(flat, int(TOP_FRACTION * flat.shape[1])), True, axis=1)
    return selected.reshape(by_head.shape)[:, :n_prompts]


def top_tokens_ratio(model: Model, tokens: np.ndarray, donors: np.ndarray, selected: np.ndarray) -> tuple[float, float]:
    """Time of a whole sweep of top tokens alone against one of all tokens, and the largest difference of what both give.

    The two take turns layer by layer, so that a slow minute of the machine meets both.
    """
    ids = torch.from_numpy(tokens)
    clean, donor = run_clean(model, ids), run_clean(model, torch.from_numpy(donors))
    times = {False: 0.0, True: 0.0}
    off = 0.0
    for layer in range(model.n_layers):
        heads = [(layer, head) for head in range(model.n_heads)]
        chosen = selected[layer * model.n_heads : (layer + 1) * model.n_heads]
        results = {}
        for only_selected in times:
            start = time.perf_counter()
            with Progress(len(heads), "", "head", show=False) as bar:
                results[only_selected] = sweep(
                    model, ids, clean, donor.z.__getitem__, heads, bar, chosen, only_selected
                )["self_repair"].values[chosen]
            times[only_selected] += time.perf_counter() - start
        off = max(off, float(np.abs(results[False] - results[True]).max(initial=0)))
    return times[True] / times[False], off


def share_by_operator(work: Callable[[], Any]) -> dict[str, float]:
    """Share of the time of each operator of torch that takes a hundredth of it or more, largest first, and of the rest.

    Time outside of any operator (Python, hooks) is not seen by the profiler and left out.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        work()
    times = {row.key.removeprefix("aten::"): row.self_cpu_time_total for row in profiler.key_averages()}
    total = sum(times.values())
    large = {
        name: value / total for name, value in sorted(times.items(), key=lambda item: -item[1]) if value > 0.01 * total
    }
    return {**large, "rest": 1 - sum(large.values())}


def measure(folder: Path, tokens_file: Path, n_prompts: int, repeats: int) -> dict[str, Any]:
    """All figures of the benchmark."""
    model = selfrepair.load_model(folder)
    with xr.open_dataset(tokens_file, engine="h5netcdf") as file:
        default = file["tokens"].values[:DEFAULT_PROMPTS].astype(np.int64)
    tokens = default[:n_prompts]
    donors = np.roll(tokens, 1, axis=0)
    length = tokens.shape[1]
    per_1024 = 1024 / tokens.size
    layers = {"early": 1, "middle": model.n_layers // 2, "late": model.n_layers - 2}
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]

    # The whole sweep first, cold: what a job pays, its warm-up and its clean run included.
    rates = [matmul_rate()]
    whole = seconds(lambda: selfrepair.ablate_heads(model, tokens, donors))
    rates.append(matmul_rate())
    whole_flops = sweep_flops(model, heads, len(tokens), length)
    engine_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    # Then parts of it, their clean run known, beside the plain sweep.
    ids = torch.from_numpy(tokens)
    clean, donor = run_clean(model, ids), run_clean(model, torch.from_numpy(donors))
    reference = TransformerLensSweep(folder, model, tokens, donors)
    of_layer: dict[str, list[float]] = {name: [] for name in layers}
    plain: list[float] = []
    differences = []
    for repeat in range(repeats):
        for name, layer in layers.items():
            chosen = [(layer, head) for head in range(model.n_heads)]
            start = time.perf_counter()
            with Progress(len(chosen), "", "head", show=False) as bar:
                result = sweep(model, ids, clean, donor.z.__getitem__, chosen, bar)
            of_layer[name].append((time.perf_counter() - start) / len(chosen) * per_1024)
            head = repeat % model.n_heads
            plain.append(seconds(lambda layer=layer, head=head: reference.ablate(layer, head)) * per_1024)
            differences.append(check_equal(result, reference, layer, head))
        rates.append(matmul_rate())
    rate = statistics.median(rates)
    middle = [(layers["middle"], head) for head in range(model.n_heads)]
    with Progress(len(middle), "", "head", show=False) as bar:
        operators = share_by_operator(lambda: sweep(model, ids, clean, donor.z.__getitem__, middle, bar))
    ratio, top_difference = top_tokens_ratio(model, tokens, donors, default_top_tokens(model, default, n_prompts))
    per_head = whole / len(heads) * per_1024
    return {
        "seconds_per_head_per_1024_tokens": {
            "whole_sweep": per_head,
            **{name: statistics.median(values) for name, values in of_layer.items()},
            "transformerlens": statistics.median(plain),
        },
        "fraction_of_matmul_rate": whole_flops / whole / statistics.median(rates[:2]),
        "fraction_of_matmul_rate_by_layer": {
            name: head_flops(model, layer, length) * len(tokens) * per_1024 / statistics.median(of_layer[name]) / rate
            for name, layer in layers.items()
        },
        "share_by_operator": operators,
        "speedup_over_transformerlens": statistics.median(plain) / per_head,
        "top_tokens_time_ratio": ratio,
        "peak_memory_gib": engine_peak,
        "matmul_gflops": rate / 1e9,
        "largest_difference": max(differences),
        "largest_difference_of_top_tokens": top_difference,
        "threads": torch.get_num_threads(),
        "prompts": len(tokens),
        "prompt_length": length,
        "heads": len(heads),
        "repeats": repeats,
        "torch": torch.__version__,
    }


def show(figures: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [f"{figures['prompts']} prompts of {figures['prompt_length']} tokens, {figures['threads']} threads"]
    for name, value in figures.items():
        if isinstance(value, dict):
            lines.append(name)
            lines += [f"  {key:<32}{entry:.3g}" for key, entry in value.items()]
        elif isinstance(value, float):
            lines.append(f"{name:<34}{value:.3g}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model snapshot folder")
    parser.add_argument("tokens", type=Path, help="tokens file")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    figures = measure(options.model, options.tokens, options.prompts, options.repeats)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(show(figures))  # noqa: T201


if __name__ == "__main__":
    main()
