"""Formulas of what jobs need; tests/workflow/test_resources.py holds those of memory to real jobs."""

from pathlib import Path
from typing import Any

import pytest
import torch

import selfrepair
from selfrepair.model import flops, model
from selfrepair.snapshots.shapes import shape_of_folder, shape_of_settings
from selfrepair.workflow import resources
from selfrepair.workflow.config import read_configs
from selfrepair.workflow.resources import Costs, model_shape, share_of_cores

from conftest import REPOSITORY, random_model

pytestmark = pytest.mark.filterwarnings("error")

LLAMA_7B = {"layers": 32, "heads": 32, "d_model": 4096, "d_mlp": 11008, "vocabulary": 32000, "gated": True}
SMOLLM2 = {
    **{"layers": 30, "heads": 9, "kv_heads": 3, "d_model": 576, "d_mlp": 1536, "vocabulary": 49152},
    **{"gated": True, "tied": True},
}


CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def config() -> dict[str, Any]:
    return read_configs(REPOSITORY / "config" / "config.yaml", [])


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gpt_neox_sequential", "llama", "qwen3", "mistral", "phi"])
def test_operations_are_those_that_the_model_does(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Held to `selfrepair.model.flops`, which is held to what torch counts."""
    hf = random_model(name, torch.float32)
    hf.save_pretrained(tmp_path)
    shape, loaded = shape_of_folder(tmp_path), selfrepair.load_model(hf)
    assert shape is not None
    costs = Costs(shape, config)
    length = costs.length
    for layer in range(shape.layers):
        assert costs.layer_operations(length) == flops.layer_flops(loaded, layer, length)
        assert costs.head_operations(layer) == flops.head_flops(loaded, layer, length)
    heads = [(layer, head) for layer in range(shape.layers) for head in range(shape.heads)]
    assert costs.sweep_operations("resample", 5) == flops.sweep_flops(loaded, heads, 5, length)


def test_batches_are_those_of_the_model() -> None:
    assert resources.BATCH_TOKENS == model.BATCH_TOKENS
    assert resources.ACCELERATOR_BATCH_TOKENS == model.ACCELERATOR_BATCH_TOKENS


def test_bytes_are_those_of_the_files(config: dict[str, Any]) -> None:
    """README: 138 kB a token for the default."""
    costs = Costs(shape_of_settings(SMOLLM2), config)
    a_token = costs.activations / (costs.in_shard * costs.length)
    assert a_token == pytest.approx(30 * (576 + 9 * 64) * 4, rel=0.02)


def test_bfloat16_takes_half_and_offloading_leaves_a_weight_on_the_gpu(config: dict[str, Any]) -> None:
    def gpu_memory(**options: Any) -> float:
        compute = {**config["compute"], "device": "cuda", **options}
        need = Costs(shape_of_settings(LLAMA_7B), {**config, "compute": compute}).of("ablate_heads", "resample")
        return need.gpu_memory["weights"] / 1e9

    assert gpu_memory() == pytest.approx(27, rel=0.02)
    assert gpu_memory(weights="bfloat16") == pytest.approx(13.5, rel=0.02)
    assert gpu_memory(weights="bfloat16", offload=True) < 1


def test_weights_that_are_dequantised_take_their_memory(config: dict[str, Any]) -> None:
    """Measured: 1.2 GB for the default's 135 million weights."""
    shape = shape_of_settings(SMOLLM2)
    taken, asked = (Costs(shape, config, gguf).of("snapshot_model").mem_mb for gguf in (False, True))
    assert taken < 600
    assert 1200 <= asked <= 1.6 * 1200


def test_time_limits_are_generous_and_no_days(config: dict[str, Any]) -> None:
    """The default's job of the sweep takes some ten minutes, Llama-7B's on a GPU hours."""
    need = Costs(shape_of_settings(SMOLLM2), config).of("ablate_heads", "resample")
    assert 20 <= need.minutes(CPU) <= 90
    assert need.minutes(CPU, threads=4) < need.minutes(CPU)
    assert need.minutes({**CPU, "dtype": "float64"}) > need.minutes(CPU)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("prompts_per_shard", 400, "results of a shard"),
        ("prompt_length", 2048, "a batch of prompts"),
    ],
)
def test_what_takes_the_memory_is_named(config: dict[str, Any], key: str, value: int, part: str) -> None:
    shape = shape_of_settings(SMOLLM2)
    before = Costs(shape, config).of("ablate_heads", "resample")
    config["tokens"][key] = value
    after = Costs(shape, config).of("ablate_heads", "resample")
    assert after.mem_mb > before.mem_mb
    assert max(after.memory, key=lambda name: after.memory[name] - before.memory.get(name, 0)) == part


def test_a_gpu_holds_what_batches_take(config: dict[str, Any]) -> None:
    shape = shape_of_settings({**LLAMA_7B, "stored": "float16"})
    on_cpu = Costs(shape, config).of("ablate_heads", "resample")
    config["compute"]["device"] = "cuda"
    need = Costs(shape, config).of("ablate_heads", "resample")
    assert on_cpu.gpu_mb == 0
    # 6.7 billion weights of four bytes, and the files that they are read from.
    assert 27_000 < need.gpu_mb < 80_000
    assert 40_000 < need.mem_mb < 80_000


def test_jobs_at_a_time_fit_in_memory() -> None:
    for cores in range(1, 33):
        for mem_mb in (500, 1500, 7000, 20_000, 90_000):
            threads = share_of_cores(mem_mb, 64_000, cores)
            assert 1 <= threads <= cores
            assert cores // threads * mem_mb <= max(64_000, mem_mb)
    assert share_of_cores(1500, 64_000, 16) == 1


def test_every_rule_has_its_need(config: dict[str, Any]) -> None:
    from selfrepair.workflow.plan import run_jobs

    costs = Costs(shape_of_settings(SMOLLM2), config)
    for rule, kind, _ in run_jobs(config):
        need = costs.of(rule, kind)
        assert need.mem_mb >= 40, rule
        assert need.disk_mb >= 1, rule
        assert need.minutes(CPU) >= 5, rule


def test_a_model_whose_size_nothing_says_is_not_guessed(tmp_path: Path) -> None:
    settings = {"source": f"hub:a/b@{'0' * 40}"}
    assert model_shape(settings, tmp_path / "manifest.json") is None
    assert model_shape({**settings, "shape": LLAMA_7B}, tmp_path / "manifest.json") == shape_of_settings(LLAMA_7B)


LLAMAS = {
    "1.1B": {
        **{
            "layers": 22,
            "heads": 32,
            "kv_heads": 4,
            "d_model": 2048,
            "d_mlp": 5632,
            "vocabulary": 32000,
            "gated": True,
        },
    },
    "7B": {**LLAMA_7B, "kv_heads": 32},
}
PEAKS = {
    ("1.1B", "float32", 32): {
        **{"cache_activations": (6355, 6663), "ablate_heads": (7191, 7841), "freeze_layernorm": (7207, 8097)},
        **{"measure_neurons": (7528, 8521), "project_other_donor": (4765, 4792), "measure_donor_noise": (7284, 8097)},
        **{"reinforce_heads": (4783, 5211), "move_residual": (4987, 5214), "ablate_layers": (6123, 6325)},
    },
    ("1.1B", "bfloat16", 32): {
        **{"cache_activations": (4042, 4186), "ablate_heads": (4441, 5050), "freeze_layernorm": (4598, 5402)},
        **{"measure_neurons": (4964, 5400), "project_other_donor": (2641, 2760), "measure_donor_noise": (4826, 5289)},
        **{"reinforce_heads": (2888, 3204), "move_residual": (2945, 3358), "ablate_layers": (4011, 4438)},
    },
    ("7B", "float32", 16): {
        **{"cache_activations": (29574, 29773), "ablate_heads": (31786, 32114), "freeze_layernorm": (30074, 30482)},
        **{"measure_neurons": (30807, 31420), "project_other_donor": (27592, 27613)},
        **{"measure_donor_noise": (30505, 30937), "reinforce_heads": (27652, 29564)},
        **{"move_residual": (27757, 27802), "ablate_layers": (29407, 29618)},
    },
    ("7B", "bfloat16", 16): {
        **{"cache_activations": (16251, 16299), "ablate_heads": (17361, 18063), "freeze_layernorm": (16447, 17396)},
        **{"measure_neurons": (17361, 17757), "project_other_donor": (14325, 14439)},
        **{"measure_donor_noise": (17089, 17408), "reinforce_heads": (15163, 15649)},
        **{"move_residual": (15098, 15506), "ablate_layers": (16239, 16370)},
    },
}
"""MB that torch allocated, and that it held of the GPU, on an H100 (benchmarks/gpu_memory.py, torch 2.11).

By model, type of the matrices and prompts of 128 tokens.
"""


@pytest.mark.parametrize(("size", "weights", "prompts"), PEAKS)
def test_gpu_memory_is_what_an_h100_was_seen_to_take(
    config: dict[str, Any], size: str, weights: str, prompts: int
) -> None:
    config["tokens"] |= {"prompts": prompts, "prompts_per_shard": prompts}
    config["compute"] = {"device": "cuda", "dtype": "float32"}
    config["compute"] |= {} if weights == "float32" else {"weights": weights}
    costs = Costs(shape_of_settings(LLAMAS[size]), config)
    for rule, (allocated, held) in PEAKS[size, weights, prompts].items():
        assert held <= costs.of(rule, "resample").gpu_mb <= 1.6 * allocated, rule


def test_without_activations_on_disk_jobs_hold_those_of_their_layers(config: dict[str, Any]) -> None:
    kept = Costs(shape_of_settings(SMOLLM2), config)
    let_go = Costs(shape_of_settings(SMOLLM2), {**config, "cache": {"keep": False}})
    assert let_go.activations < 0.02 * kept.activations
    part = "activations of a shard"
    for rule in ("ablate_heads", "ablate_layers"):
        # Residuals and z of every layer.
        held = let_go.of(rule, "resample").memory[part]
        assert held == pytest.approx(kept.activations - let_go.activations)
        assert let_go.of(rule, "resample").operations > kept.of(rule, "resample").operations
        assert part not in kept.of(rule, "resample").memory
    # Four heads of four layers at most.
    few = let_go.of("ablate_heads", "mean").memory[part]
    assert few == 4 * 8 * 128 * (8 * 576 + 4 * 576)


def test_a_table_of_all_heads_does_not_shrink_with_those_that_are_ablated(config: dict[str, Any]) -> None:
    """288 MB for the 704 heads of a Llama of 1.17 billion weights, 16 of which were ablated."""
    shape = shape_of_settings(LLAMAS["1.1B"])
    config["tokens"] |= {"prompts": 4, "prompts_per_shard": 4, "prompt_length": 32}
    every = Costs(shape, config).of("tabulate_reinforcement", "resample").mem_mb
    config["ablations"] = {"resample": {"heads": [[10, head] for head in range(16)]}}
    assert 288 <= Costs(shape, config).of("tabulate_reinforcement", "resample").mem_mb == every <= 1.6 * 288
