"""What rules ask for is what their jobs take: memory of real jobs on three sizes of models; what will not fit is refused."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from selfrepair.workflow.config import read_configs
from selfrepair.workflow.plan import run_jobs
from workflow.conftest import TINY
from workflow.running import REPOSITORY, Space

from tiny_model import WORDS, save_tiny_model

pytestmark = pytest.mark.filterwarnings("error")

AT_MOST = 1.6
SIZES = {
    "medium": {
        **{"vocab_size": 16000, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6},
        **{"num_attention_heads": 6, "num_key_value_heads": 3, "max_position_embeddings": 64},
    },
    "large": {
        **{"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8},
        **{"num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 64},
    },
}
"""Models of 88 and 423 MB of weights; the tiny one is the third size."""
TABLES = (
    *(
        "checks",
        "selection_control_model",
        "repair_rows",
        "next_layer_heads",
        "neuron_share",
        "donor_noise",
        "layer_ablation",
    ),
    *(
        "self_reinforcement",
        "frozen_layernorm",
        "layernorm_scale_ratio",
        "layernorm_claim",
        "token_noise",
        "ablation_type",
    ),
)
PEAK = re.compile(r"peak memory: (\d+) MB of (\d+) MB asked for")


def peaks(space: Space) -> dict[str, tuple[int, int]]:
    """MB that each job took and asked for, by its log."""
    logs = space.work / "logs"
    found = {}
    for log in logs.rglob("*.log"):
        for took, asked in PEAK.findall(log.read_text(encoding="utf-8")):
            found[log.relative_to(logs).as_posix()] = (int(took), int(asked))
    return found


def refused(found: dict[str, tuple[int, int]]) -> list[str]:
    """Jobs that took more than they asked for, or asked for far more than they took."""
    return [
        f"{log} took {took} MB and asked for {asked}"
        for log, (took, asked) in found.items()
        if not took <= asked <= AT_MOST * took
    ]


def test_every_job_of_the_tiny_model_says_what_it_took(finished: Space) -> None:
    found = peaks(finished)
    assert len(found) == sum(1 for _ in (finished.work / "logs").rglob("*.log"))
    # Texts have no size that a formula knows.
    found = {log: of for log, of in found.items() if "corpora" not in log}
    assert not refused(found), "\n".join(refused(found))


@pytest.mark.parametrize("size", SIZES)
def test_memory_is_what_jobs_of_larger_models_take(size: str, tmp_path: Path) -> None:
    space = Space.new(tmp_path / "space")
    save_tiny_model(space.work / "model", **SIZES[size])
    tokenizer = AutoTokenizer.from_pretrained(space.work / "model")
    tokenizer.eos_token = "<s>"
    tokenizer.save_pretrained(space.work / "model")
    (space.work / "text").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        words = rng.choice(WORDS[2:], size=700)
        (space.work / "text" / f"{number}.txt").write_text(" ".join(words) + "\n", encoding="utf-8")
    heads = [[0, 0], [0, 1], [1, 2], [2, 1], [3, 0], [3, 3]]
    config: dict[str, Any] = {
        **TINY,
        # Whole batches of 1,024 tokens, two of them.
        "tokens": {"prompts": 32, "prompts_per_shard": 32, "prompt_length": 64},
        "ablations": {"resample": {"heads": heads}, "mean": {"heads": "chosen"}},
        "statistics": {"top_fraction": 0.05, "n_bootstrap": 50},
    }
    space.write_config(config)
    run = "results/tiny/words"
    space.make(*(f"{run}/tables/resample/{table}.parquet" for table in TABLES), f"{run}/ablations/mean/00000.h5")
    found = {log: of for log, of in peaks(space).items() if "corpora" not in log}
    ran = {Path(log).parts[2].removesuffix(".log") for log in found if "words" in log}
    assert ran >= {
        "cache_activations",
        "ablate_heads",
        "measure_neurons",
        "reinforce_heads",
        "move_residual",
        "ablate_layers",
    }
    assert not refused(found), "\n".join(refused(found))


def test_a_plan_counts_the_jobs_that_snakemake_would_run(fresh: Space) -> None:
    planned: Counter[str] = Counter()
    for rule, _, count in run_jobs(merged(fresh)):
        planned[rule] += count
    jobs = Counter({"snapshot_corpus": -1})
    for rule, count in fresh.jobs().items():
        jobs["draw_figure" if rule.startswith("draw_") else rule] += count
    assert +jobs == planned


def test_a_model_that_does_not_fit_is_refused_before_anything_runs(fresh: Space, tmp_path: Path) -> None:
    space = fresh.copy(tmp_path / "space")
    save_huge_model(space.work / "model")
    done = space.snakemake()
    assert done.returncode != 0
    assert "this run does not fit" in done.stdout
    assert re.search(r"of tiny needs [\d.]+ TB of memory, .* are here: set compute.weights", done.stdout), done.stdout
    assert not (space.work / "results").exists()


def test_memory_that_the_user_sets_by_hand_is_taken(fresh: Space, tmp_path: Path) -> None:
    """A formula may be wrong; the user's word goes over it, rule by rule."""
    space = fresh.copy(tmp_path / "space")
    save_huge_model(space.work / "model")
    rules = {rule for rule, _, _ in run_jobs(merged(space))} - {"draw_figure"}
    # Not refused here, but by the snapshot, for what is wrong with such weights.
    done = space.snakemake("--set-resources", *(f"{rule}:mem_mb=100 * attempt" for rule in rules))
    assert done.returncode != 0
    assert "this run does not fit" not in done.stdout
    assert "Error in rule snapshot_model" in done.stdout


def merged(space: Space) -> dict[str, Any]:
    return read_configs(REPOSITORY / "config" / "config.yaml", [space.work / "config.yaml"])


def save_huge_model(folder: Path) -> None:
    """Weights of 2 TB that take no disk: a header, and a hole in the place of the numbers."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "vocab_size": 10**6}), encoding="utf-8")
    size = 4 * 10**12 // 8
    header = {"lm_head.weight": {"dtype": "F32", "shape": [size // 4, 4], "data_offsets": [0, 4 * size]}}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 4 * size)


@pytest.mark.parametrize(
    ("profile", "arguments", "wanted"),
    [
        ("default", (), 1),
        ("default", ("--resources", "mem_mb=8000"), 1),
        ("default", ("--jobs", "3"), 1),
        ("default", ("--resources", "gpu=4"), 4),
        ("slurm", (), None),
    ],
)
def test_one_job_at_a_time_has_the_gpu(
    fresh: Space, tmp_path: Path, profile: str, arguments: tuple[str, ...], wanted: int | None
) -> None:
    """Unless more are said to be there, or a scheduler has them; another bound on the command line changes nothing."""
    space = fresh.copy(tmp_path / "space")
    space.change("compute.device", "cuda")
    around = space.work / "around.smk"
    around.write_text(
        f'include: "{space.repo}/Snakefile"\ngpu = workflow.global_resources.get("gpu")\n'
        'print("GPUs:", gpu and gpu.value)\n',
        encoding="utf-8",
    )
    command = space.command("--dry-run", *arguments)
    command[command.index("--workflow-profile") + 1] = str(space.repo / "profiles" / profile)
    command[command.index("--snakefile") + 1] = str(around)
    done = space.execute(command)
    assert done.returncode == 0, done.stdout
    assert f"GPUs: {wanted}\n" in done.stdout
