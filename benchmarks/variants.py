"""What each idea to speed the sweep up gains or costs: docs/performance.md, What was tried.

Run by `make variants` on the default model and text. Each variant is timed in a process of its own with one thread, all of them
in turn and several times, so that a slow minute of the machine meets every one. Prints a table and writes
results/benchmarks/variants.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch import nn

import selfrepair
from selfrepair.engine.clean import prompt_chunks, run_clean
from selfrepair.engine.sweep import sweep
from selfrepair.files.hdf5 import open_hdf5
from selfrepair.model import loading
from selfrepair.model import model as models
from selfrepair.model.calls import Call
from selfrepair.model.model import Model
from selfrepair.workflow.progress import Progress

PROMPTS = 8
HEADS = 4
PLAIN, LAYERS_ALONE = "as it is", "layers alone"
FREED, HUGE_PAGES, OWN_NORM, COMPILED = (
    "freed memory goes back",
    "huge pages",
    "RMSNorm of torch",
    "layers alone, compiled",
)
BATCHES = {f"batches of {size} tokens": size for size in (512, 2048, 4096)}
BASELINES = dict.fromkeys((FREED, HUGE_PAGES, OWN_NORM, *BATCHES), PLAIN) | {COMPILED: LAYERS_ALONE}
"""What each variant is compared with."""


def heads_of_a_layer(model: Model, tokens: torch.Tensor) -> Callable[[], Any]:
    """Ablate heads of the middle layer, the clean runs known."""
    heads = [(model.n_layers // 2, head) for head in range(HEADS)]
    parts = [tokens[chunk] for chunk in prompt_chunks(model, *tokens.shape)]
    runs = [(ids, run_clean(model, ids), run_clean(model, ids.roll(1, 0)).z) for ids in parts]

    def work() -> None:
        for ids, clean, donor_z in runs:
            with Progress(len(heads), "", "head", show=False) as bar:
                sweep(model, ids, clean, donor_z.__getitem__, heads, bar)

    return work


def layers_alone(model: Model, tokens: torch.Tensor, compiled: bool) -> Callable[[], Any]:
    """Run the layers after the middle one, nothing measured."""

    def step(layer: torch.nn.Module, call: Call, hidden: torch.Tensor) -> torch.Tensor:
        return call.replay(layer, hidden)

    run = torch.compile(step, dynamic=False) if compiled else step
    first = model.n_layers // 2 + 1
    start = run_clean(model, tokens).resid_pre[first][:, :-1].clone()
    calls = model.layer_calls(tokens.shape[1], cut=1)

    def work() -> None:
        hidden = start
        with torch.no_grad():
            for layer in range(first, model.n_layers):
                hidden = run(model.layers[layer], calls[layer], hidden)

    return work


def norms_of_torch(hf: nn.Module) -> None:
    """Put torch's own RMSNorm in the place of each of transformers'."""
    for name, module in list(hf.named_modules()):
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            weight = cast(nn.Parameter, module.weight)
            norm = nn.RMSNorm(weight.shape, eps=float(cast(float, module.variance_epsilon)), dtype=weight.dtype)
            norm.weight = weight
            parent, _, leaf = name.rpartition(".")
            setattr(hf.get_submodule(parent), leaf, norm)


def time_variant(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one variant in this process, and of its first call, which may compile."""
    torch.set_num_threads(1)
    name = options.variant
    if name == FREED:
        loading.keep_freed_memory = lambda: False
    models.BATCH_TOKENS = BATCHES.get(name, models.BATCH_TOKENS)
    model = selfrepair.load_model(options.model)
    if name == OWN_NORM:
        norms_of_torch(model.hf)
    with open_hdf5(options.tokens, "tokens") as file:
        tokens = torch.from_numpy(file["tokens"].values[:PROMPTS].astype(np.int64))
    if name in (LAYERS_ALONE, COMPILED):
        work = layers_alone(model, tokens, compiled=name == COMPILED)
    else:
        work = heads_of_a_layer(model, tokens)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return {"first": times[0], "seconds": min(times[1:])}


def in_own_process(options: argparse.Namespace, name: str, cache: str) -> dict[str, float]:
    """Time a variant in a process of its own; compiled code is kept in ``cache``."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache}
    if name == HUGE_PAGES:
        env["THP_MEM_ALLOC_ENABLE"] = "1"
    command = [sys.executable, __file__, str(options.model), str(options.tokens), "--variant", name]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return json.loads(out)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All variants: seconds, and the time of their baseline against theirs."""
    names = dict.fromkeys((PLAIN, *BASELINES.values(), *BASELINES))
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(options.repeats):
            for name in names:
                seen[name].append(in_own_process(options, name, cache))
    seconds = {name: statistics.median(run["seconds"] for run in runs) for name, runs in seen.items()}
    # Round by round, as the machine drifts.
    gains = {
        name: statistics.median(
            before["seconds"] / after["seconds"] - 1 for before, after in zip(seen[baseline], seen[name], strict=True)
        )
        for name, baseline in BASELINES.items()
    }
    first = [run["first"] - run["seconds"] for run in seen[COMPILED]]
    return {
        "gain": gains,
        "seconds": seconds,
        "compiling_seconds": {"cold": first[0], "with_cache": statistics.median(first[1:])},
        "repeats": options.repeats,
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model snapshot folder")
    parser.add_argument("tokens", type=Path, help="tokens file")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variant", help="time this one alone, in this process")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.variant:
        print(json.dumps(time_variant(options)))  # noqa: T201
        return
    figures = measure(options)
    for name, gain in figures["gain"].items():
        print(f"{name:<28}{gain:+.1%} against {BASELINES[name]}")  # noqa: T201
    cold, warm = figures["compiling_seconds"].values()
    print(f"compiling takes {cold:.0f} s, {warm:.0f} s with what an earlier process compiled")  # noqa: T201
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
