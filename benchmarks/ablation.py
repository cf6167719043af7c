"""Throughput of the ablation engine against a plain TransformerLens sweep of the same quantities, in one process.

Run by `make bench` on the default model and text. Prints a table and writes results/benchmarks/ablation.json. The process has
one thread and every other core is kept busy with the same sweep, as in the workflow, which runs one job a core. Machines are
noisy: quote the ratios, which are of interleaved runs, rather than the seconds.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import xarray as xr
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import selfrepair
from selfrepair.engine import replay
from selfrepair.engine.clean import CleanRun, prompt_chunks, run_clean
from selfrepair.engine.sweep import sweep
from selfrepair.files.hdf5 import open_hdf5
from selfrepair.measure.largest import Largest
from selfrepair.model.flops import head_flops, sweep_flops
from selfrepair.model.model import Model
from selfrepair.workflow.progress import Progress

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
    largest, more = Largest(), True
    while more:
        largest.look(flat)
        more = largest.narrow(int(TOP_FRACTION * flat.shape[1]))
    return largest.pick(flat).reshape(by_head.shape)[:, :n_prompts]


def top_tokens_ratio(case: "Case", selected: np.ndarray) -> tuple[float, float]:
    """Time of a whole sweep of top tokens alone against one of all tokens, and the largest difference of what both give.

    The two take turns layer by layer, so that a slow minute of the machine meets both.
    """
    times = {False: 0.0, True: 0.0}
    off = 0.0
    for layer in range(case.model.n_layers):
        chosen = selected[layer * case.model.n_heads : (layer + 1) * case.model.n_heads]
        results = {}
        for only_selected in times:
            start = time.perf_counter()
            results[only_selected] = case.sweep(layer, chosen, only_selected)["self_repair"].values[chosen]
            times[only_selected] += time.perf_counter() - start
        off = max(off, float(np.abs(results[False] - results[True]).max(initial=0)))
    return times[True] / times[False], off


class Stopwatch:
    """Time spent in some functions, each without what it spends in another of them.

    A clock around calls, not the profiler of torch: what that one allocates between activations makes the allocator ask the
    system for new memory, so that elementwise work looks several times slower than it is.
    """

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._inner: list[float] = []

    def of(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time counted as that of ``part``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                self.spent[part] = self.spent.get(part, 0.0) + elapsed - self._inner.pop()
                if self._inner:
                    self._inner[-1] += elapsed

        return timed


def share_by_part(model: Model, layer: int, work: Callable[[], Any]) -> dict[str, float]:
    """Share of the time of each part of the layers after ``layer`` while its heads are ablated by ``work``."""
    watch = Stopwatch()
    with ExitStack() as patched:

        def time_calls(owner: Any, name: str, part: str) -> None:
            patched.enter_context(mock.patch.object(owner, name, watch.of(part, getattr(owner, name))))

        for at in range(layer + 1, model.n_layers):
            for module in model.layers[at].modules():
                if isinstance(module, nn.Linear):
                    time_calls(module, "forward", "linear maps")
                elif "Norm" in type(module).__name__:
                    time_calls(module, "forward", "norms")
            time_calls(model.attention(at), "forward", "attention besides its linear maps")
            time_calls(model.mlp(at), "forward", "MLP besides its linear maps")
            time_calls(model.layers[at], "forward", "residual additions")
        for hook in ("_see_heads", "_see_mlp"):
            time_calls(replay._Changes, hook, "measuring")
        work()
    total = sum(watch.spent.values())
    return {part: spent / total for part, spent in sorted(watch.spent.items(), key=lambda item: -item[1])}


@contextmanager
def busy_cores(options: argparse.Namespace, processes: int) -> Iterator[None]:
    """Let other processes sweep, one thread each, as long as the block runs."""
    command = [sys.executable, __file__, *map(str, (options.model, options.tokens, options.out)), "--companion"]
    companions = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(processes)]
    try:
        for companion in companions:
            assert companion.stdout is not None
            if not companion.stdout.readline():
                raise SystemExit("a companion process failed: see above")
        yield
    finally:
        for companion in companions:
            companion.kill()
            companion.wait()


def accompany(model: Model, tokens: np.ndarray) -> None:
    """Sweep for ever, to keep a core busy; ends with the process that started this one."""
    parent = os.getppid()
    print("ready", flush=True)  # noqa: T201
    while os.getppid() == parent:
        for head in range(model.n_heads):
            selfrepair.ablate_heads(model, tokens, np.roll(tokens, 1, axis=0), heads=[(model.n_layers // 2, head)])


@dataclass(frozen=True)
class Case:
    """What is timed: the model, prompts, their donors, and their clean runs."""

    model: Model
    tokens: np.ndarray
    donors: np.ndarray
    clean: CleanRun
    donor: CleanRun

    @classmethod
    def of(cls, model: Model, tokens: np.ndarray) -> "Case":
        """A case of some prompts, each one's donor being the one before it."""
        donors = np.roll(tokens, 1, axis=0)
        runs = (run_clean(model, torch.from_numpy(ids)) for ids in (tokens, donors))
        return cls(model, tokens, donors, *runs)

    def sweep(self, layer: int, selected: np.ndarray | None = None, only_selected: bool = False) -> xr.Dataset:
        """Ablate the heads of a layer, the clean runs known."""
        heads = [(layer, head) for head in range(self.model.n_heads)]
        ids = torch.from_numpy(self.tokens)
        with Progress(len(heads), "", "head", show=False) as bar:
            return sweep(self.model, ids, self.clean, self.donor.z.__getitem__, heads, bar, selected, only_selected)

    def fraction(self, layer: int, per_layer: float, rate: float) -> float:
        """Share of a matmul rate that a sweep of a layer in ``per_layer`` seconds reaches."""
        flops = head_flops(self.model, layer, self.tokens.shape[1]) * len(self.tokens) * self.model.n_heads
        return flops / per_layer / rate


def measure_one_job(options: argparse.Namespace, model: Model, tokens: np.ndarray) -> dict[str, Any]:
    """Figures of one process with one thread, every other core busy."""
    length = tokens.shape[1]
    layers = {"early": 1, "middle": model.n_layers // 2, "late": model.n_layers - 2}
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    per_head = 1024 / tokens.size / model.n_heads

    # The whole sweep first, cold: what a job pays, its warm-up and its clean runs included.
    rates = [matmul_rate()]
    whole = seconds(lambda: selfrepair.ablate_heads(model, tokens, np.roll(tokens, 1, axis=0)))
    rates.append(matmul_rate())
    whole_flops = sweep_flops(model, heads, len(tokens), length)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    # Then layers of it, their clean run known, beside the plain sweep.
    case = Case.of(model, tokens)
    reference = TransformerLensSweep(options.model, model, tokens, case.donors)
    of_layer: dict[str, list[float]] = {name: [] for name in layers}
    plain, differences = [], []
    for repeat in range(options.repeats):
        for name, layer in layers.items():
            start = time.perf_counter()
            result = case.sweep(layer)
            of_layer[name].append(time.perf_counter() - start)
            head = repeat % model.n_heads
            plain.append(seconds(partial(reference.ablate, layer, head)) * 1024 / tokens.size)
            differences.append(check_equal(result, reference, layer, head))
        rates.append(matmul_rate())
    rate = statistics.median(rates)
    medians = {name: statistics.median(times) for name, times in of_layer.items()}
    whole_per_head = whole / len(heads) * 1024 / tokens.size
    return {
        "seconds_per_head_per_1024_tokens": {
            "whole_sweep": whole_per_head,
            **{name: value * per_head for name, value in medians.items()},
            "transformerlens": statistics.median(plain),
        },
        "fraction_of_matmul_rate": whole_flops / whole / statistics.median(rates[:2]),
        "fraction_of_matmul_rate_by_layer": {
            name: case.fraction(layer, medians[name], rate) for name, layer in layers.items()
        },
        "speedup_over_transformerlens": statistics.median(plain) / whole_per_head,
        "peak_memory_gib": peak,
        "matmul_gflops": rate / 1e9,
        "largest_difference": max(differences),
        "share_by_part": share_by_part(model, layers["middle"], lambda: case.sweep(layers["middle"])),
    }


def measure_all_cores(
    options: argparse.Namespace, model: Model, tokens: np.ndarray, default: np.ndarray
) -> dict[str, Any]:
    """Figures of one process with a thread a core, as a notebook runs it, and ratios of ways to run."""
    middle = model.n_layers // 2
    case = Case.of(model, tokens)
    rounded = Case.of(selfrepair.load_model(options.model, weights="bfloat16"), tokens)
    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    rates = []
    for _ in range(options.repeats):
        rates.append(matmul_rate())
        for name, of in (("float32", case), ("bfloat16", rounded)):
            start = time.perf_counter()
            result = of.sweep(middle)["self_repair"].values
            times[name].append(time.perf_counter() - start)
            if name == "float32":
                exact = result
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio, difference = top_tokens_ratio(case, default_top_tokens(model, default, len(tokens)))
    return {
        "all_cores_in_one_process": {
            "threads": torch.get_num_threads(),
            "fraction_of_matmul_rate": case.fraction(middle, medians["float32"], statistics.median(rates)),
            "seconds_per_head_per_1024_tokens": medians["float32"] / model.n_heads * 1024 / tokens.size,
        },
        "bfloat16": {
            "time_ratio": medians["bfloat16"] / medians["float32"],
            "mean_difference": float(np.abs(result - exact).mean()),
            "mean_self_repair": float(np.abs(exact).mean()),
        },
        "top_tokens_time_ratio": ratio,
        "largest_difference_of_top_tokens": difference,
    }


def show(figures: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [f"{figures['prompts']} prompts of {figures['prompt_length']} tokens, {figures['cores']} cores"]
    for name, value in figures.items():
        if isinstance(value, dict):
            lines.append(name)
            lines += [f"  {key:<32}{entry:.3g}" for key, entry in value.items()]
        elif isinstance(value, float):
            lines.append(f"{name:<34}{value:.3g}")
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of the benchmark; first those of one thread, then those of as many as there are cores."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    model = selfrepair.load_model(options.model)
    default = prompts(options.tokens)
    tokens = default[: options.prompts]
    with busy_cores(options, cores - 1):
        figures = measure_one_job(options, model, tokens)
    torch.set_num_threads(cores)
    figures |= measure_all_cores(options, model, tokens, default)
    return figures | {
        "cores": cores,
        "prompts": len(tokens),
        "prompt_length": tokens.shape[1],
        "heads": model.n_layers * model.n_heads,
        "repeats": options.repeats,
        "torch": torch.__version__,
    }


def prompts(tokens_file: Path) -> np.ndarray:
    """Token ids [prompt, pos] of the default run."""
    with open_hdf5(tokens_file, "tokens") as file:
        return file["tokens"].values[:DEFAULT_PROMPTS].astype(np.int64)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model snapshot folder")
    parser.add_argument("tokens", type=Path, help="tokens file")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--companion", action="store_true", help="only keep a core busy, until the starting process ends"
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.companion:
        torch.set_num_threads(1)
        accompany(selfrepair.load_model(options.model), prompts(options.tokens)[: options.prompts])
        return
    figures = measure(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(show(figures))  # noqa: T201


if __name__ == "__main__":
    main()
