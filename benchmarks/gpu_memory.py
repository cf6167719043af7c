"""GPU memory of every measurement of a shard, beside what its rule asks for, for random Llamas.

python benchmarks/gpu_memory.py 1.1B:float32 7B:bfloat16
"""

import argparse
import copy
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from accelerator import SIZES, load

from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.ablations import measure_ablations
from selfrepair.measure.activations import cache_activations
from selfrepair.measure.donor_noise import measure_donor_noise
from selfrepair.measure.frozen_layernorm import measure_frozen_layernorm
from selfrepair.measure.layer_ablations import measure_layer_ablations
from selfrepair.measure.moved_residual import measure_moved_residual
from selfrepair.measure.neurons import measure_neurons
from selfrepair.measure.other_donor import measure_other_donor
from selfrepair.measure.reinforcement import measure_reinforcement
from selfrepair.measure.shard import open_shard
from selfrepair.measure.thresholds import find_thresholds
from selfrepair.measure.tokens import assign_donors
from selfrepair.model.model import Model
from selfrepair.snapshots.shapes import shape_of_settings
from selfrepair.workflow.resources import Costs

VOCABULARY = 32000
CONFIG = Path(__file__).parents[1] / "config" / "config.yaml"
NOTHING: dict[str, Any] = {"provenance": {}}


def costs(size: str, weights: str | None, options: argparse.Namespace) -> tuple[Costs, list[list[int]]]:
    """The formulas for a model, and the heads of two layers that are swept."""
    shape = SIZES[size]
    layers, heads = shape["num_hidden_layers"], shape["num_attention_heads"]
    swept = [[layer, head] for layer in (layers // 2, layers // 2 + 1) for head in range(min(8, heads))]
    config = copy.deepcopy(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))
    config["tokens"] |= {"prompts": options.prompts, "prompts_per_shard": options.prompts}
    config["tokens"]["prompt_length"] = options.length
    config["compute"] = {"device": options.device, "dtype": "float32", "center_unembed": True}
    config["compute"] |= {} if weights is None else {"weights": weights}
    config["cache"]["keep"] = options.keep
    config["ablations"] = {"resample": {"heads": swept}}
    config["analyses"]["heads"] = swept[:4]
    settings = {
        **{"layers": layers, "heads": heads, "kv_heads": shape.get("num_key_value_heads", heads), "gated": True},
        **{"d_model": shape["hidden_size"], "d_mlp": shape["intermediate_size"], "vocabulary": VOCABULARY},
    }
    return Costs(shape_of_settings(settings), config), swept


@contextmanager
def made_once(model: Model) -> Iterator[None]:
    """Measurements take this model, and load none."""
    with (
        mock.patch("selfrepair.measure.activations.load_model", return_value=model),
        mock.patch("selfrepair.measure.shard.load_model", return_value=model),
    ):
        yield


def measurements(swept: list[list[int]], folder: Path) -> dict[str, Callable[[Any], object]]:
    """What is measured of an open shard, by rule."""
    heads = [(layer, head) for layer, head in swept]
    chosen, each = heads[:4], {"out": folder / "measured.h5", **NOTHING}
    return {
        "ablate_heads": lambda shard: measure_ablations(shard, kind="resample", heads=heads, which="all", **each),
        "freeze_layernorm": lambda shard: measure_frozen_layernorm(shard, kind="resample", heads=chosen, **each),
        "measure_neurons": lambda shard: measure_neurons(
            shard, kind="resample", heads=chosen, neuron_layer=None, top_neurons=50, **each
        ),
        "project_other_donor": lambda shard: measure_other_donor(shard, **each),
        "measure_donor_noise": lambda shard: measure_donor_noise(shard, heads=chosen, donors=4, **each),
        "reinforce_heads": lambda shard: measure_reinforcement(shard, scales=[1, 3, 5], seed=0, **each),
        "move_residual": lambda shard: measure_moved_residual(shard, heads=chosen, **each),
        "ablate_layers": lambda shard: measure_layer_ablations(shard, **each),
    }


def watched(rule: str, kind: str | None, of: Costs, run: Callable[[], object]) -> None:
    """Run a measurement and print its peak, as allocated and as the GPU has it, beside the formula."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run()
    took = time.perf_counter() - start
    allocated, reserved = (
        (torch.cuda.max_memory_allocated() / 1e6, torch.cuda.max_memory_reserved() / 1e6) if on_gpu else (0.0, 0.0)
    )
    need = of.of(rule, kind)
    line = [
        rule,
        *(f"{mb:,.0f}" for mb in (allocated, reserved, need.gpu_mb)),
        f"{need.gpu_mb / max(allocated, 1):.2f}",
    ]
    parts = ", ".join(f"{part} {size / 1e6:,.0f}" for part, size in need.gpu_memory.items())
    print(f"| {' | '.join(line)} | {took:.1f} | {parts} |", flush=True)  # noqa: T201


def measure(size: str, weights: str | None, options: argparse.Namespace) -> None:
    """The lines of a model."""
    gc.collect()  # what is left of the model before
    of, swept = costs(size, weights, options)
    model = load(size, weights, options.device)
    generator = np.random.default_rng(0)
    title = f"{size}, {weights or 'float32'}, {options.prompts} prompts of {options.length} tokens, MB"
    columns = "| rule | allocated | reserved | asked for | of that | seconds | by formula |"
    print(f"\n{title}\n\n{columns}\n|---|---|---|---|---|---|---|")  # noqa: T201
    with tempfile.TemporaryDirectory() as name, made_once(model):
        folder = Path(name)
        with write_hdf5(
            folder / "tokens.h5", kind="tokens", attrs={"prompts_per_shard": options.prompts}, **NOTHING
        ) as file:
            file.dims(prompt=options.prompts, pos=options.length, donor=1)
            tokens = generator.integers(3, VOCABULARY, (options.prompts, options.length))
            file.put("tokens", ("prompt", "pos"), tokens)
            file.put("donors", ("prompt", "donor"), assign_donors(options.prompts, options.prompts, 1))
        prompts, activations, thresholds = (0, options.prompts), folder / "activations.h5", folder / "thresholds.h5"
        inputs = {
            "model": folder / "model" / "manifest.json",
            "tokens": folder / "tokens.h5",
            "activations": activations,
        }
        shared = {"prompts": prompts, "compute": {}}
        watched(
            "cache_activations",
            None,
            of,
            lambda: cache_activations(
                model_manifest=inputs["model"],
                tokens=inputs["tokens"],
                out=activations,
                keep=options.keep,
                **shared,
                **NOTHING,
            ),
        )
        find_thresholds(shards=[activations], out=thresholds, top_fraction=0.02, first_position=0, **NOTHING)
        for rule, run in measurements(swept, folder).items():

            def job(run: Callable[[Any], object] = run) -> None:
                with open_shard({**inputs, "thresholds": thresholds}, **shared) as shard:
                    run(shard)

            watched(rule, "resample", of, job)


def main() -> None:
    """Print a table a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help=f"size:type, of {', '.join(SIZES)} and float32 or bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--let-go", dest="keep", action="store_false", help="as cache.keep: false")
    options = parser.parse_args()
    for each in options.models:
        size, weights = each.split(":")
        measure(size, None if weights == "float32" else weights, options)


if __name__ == "__main__":
    main()
