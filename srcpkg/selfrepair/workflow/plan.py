"""What a run will take, before anything runs: jobs, operations, time, memory and disk of each stage, and what will not fit."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from math import floor, log2
from pathlib import Path
from typing import Any

from selfrepair.workflow.config import main_kind
from selfrepair.workflow.machine import shortage
from selfrepair.workflow.resources import MB, Amount, Costs, Need, costs_of

SHARE = 0.8
"""Of the rate of large matrix products, what a sweep reaches (docs/performance.md)."""

ADVICE = {
    "weights": "set compute.weights to bfloat16, which takes half; on a GPU compute.offload too; or use a larger machine",
    "loading the weights": "use a smaller model, or a larger machine",
    "a batch of prompts": "lower tokens.prompt_length",
    "results of a shard": "lower tokens.prompts_per_shard",
    "activations of a shard": "lower tokens.prompts_per_shard, or set cache.keep to true",
    "a shard, and sums over all": "lower tokens.prompts_per_shard or statistics.n_bootstrap",
}
"""What to do about memory, by what takes most of it."""

SHORT_HOURS, GOOD_HOURS, LONG_HOURS = 0.02, 0.5, 4.0
"""Of the longest job of a shard. Its time limit is several times as long (`selfrepair.workflow.resources`), and schedulers let
such jobs wait, or refuse them; an ablation that is stopped keeps what it has finished. Short jobs are mostly start."""
MANY = 200
"""Shards: with fewer, short ones do no harm."""

KEPT_ON_DISK = "lower tokens.prompts, or point results/ at a larger disk"
LET_GO = "set cache.keep to false, which leaves no activations on disk"


@dataclass(frozen=True)
class Stage:
    """The jobs of a rule, or of rules that are alike, in a run.

    Attributes:
        name: The rule; "tables" and "figures" stand for all of these.
        jobs: How many there are.
        tokens: Tokens of prompts that they read, a prompt counted once a job.
        operations: Floating-point operations of their matrix products.
        hours: At the rate asked for, one job after the other.
        mem_mb: Memory of the largest.
        gpu_mb: GPU memory of the largest; 0 where they use none.
        disk_mb: What they write, all together.
    """

    name: str
    jobs: int
    tokens: int
    operations: Amount
    hours: Amount
    mem_mb: int
    gpu_mb: int
    disk_mb: Amount


@dataclass(frozen=True)
class RunPlan:
    """What a model on a corpus takes.

    Attributes:
        model, corpus: Their names in the config.
        stages: Empty where nothing says how large the model is.
        unknown: Why there are none, and what to do; empty where there are.
        longest_hours: Of a job of a shard.
        better_shards: tokens.prompts_per_shard that makes this about `GOOD_HOURS`, where it is far from that; else 0.
    """

    model: str
    corpus: str
    stages: list[Stage]
    unknown: str = ""
    longest_hours: Amount = 0
    better_shards: int = 0

    @property
    def kept_mb(self) -> Amount:
        """Disk that is left taken when all is done."""
        return sum(stage.disk_mb for stage in self.stages)


@dataclass(frozen=True)
class Plan:
    """What a config takes.

    Attributes:
        tflops: Rate of matrix products.
        rate_is: "given", "measured" or "stated".
        memory_mb, disk_mb: Memory of the machine, and free disk.
        runs: Every model on every corpus.
        does_not_fit: A line for each thing that will not, with what to do.
    """

    tflops: Amount
    rate_is: str
    memory_mb: int
    disk_mb: int
    runs: list[RunPlan]
    does_not_fit: list[str]

    def as_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self), indent=2)


def make_plan(
    config: Mapping[str, Any], manifest: str, *, tflops: Amount, rate_is: str, memory_mb: int, disk_mb: int
) -> Plan:
    """Plan a run.

    Args:
        config: The merged config, checked.
        manifest: The path of a model snapshot's manifest with the name left open as ``{name}``.
        tflops: Rate of large matrix products; times are for `SHARE` of it.
        rate_is: Where that is from, for readers.
        memory_mb: Memory of the machine.
        disk_mb: Free disk.
    """
    runs, wrong = [], []
    for model in config["run"]["models"]:
        settings, snapshot = config["models"][model], Path(manifest.format(name=model))
        costs = costs_of(settings, snapshot, config)
        if costs is None:
            unknown = (
                f"nothing says how large {model} is: give models.{model}.shape, or take its snapshot first "
                f"(snakemake {snapshot.as_posix()})"
            )
            runs += [RunPlan(model, corpus, [], unknown) for corpus in config["run"]["corpora"]]
            continue
        for number, corpus in enumerate(config["run"]["corpora"]):
            # A snapshot serves every corpus.
            jobs = [
                job
                for job in run_jobs(config)
                if number == 0 or job[0] not in ("snapshot_model", "check_model", "check_published")
                # One page shows all runs.
                if job[0] != "write_explorer" or not any(run.stages for run in runs)
            ]
            stages = _stages(costs, jobs, tflops * SHARE)
            longest = _longest_hours(costs, jobs, tflops * SHARE)
            better = _better_shards(config["tokens"], longest)
            runs.append(RunPlan(model, corpus, stages, longest_hours=longest, better_shards=better))
        wrong += _too_large(costs, model, memory_mb)
    kept = sum(run.kept_mb for run in runs)
    if kept > disk_mb:
        advice = f"{LET_GO}, {KEPT_ON_DISK}" if config["cache"]["keep"] else KEPT_ON_DISK
        wrong.append(shortage("the whole run", "disk", kept, disk_mb, advice))
    return Plan(tflops, rate_is, memory_mb, disk_mb, runs, wrong)


def check_fits(config: Mapping[str, Any], manifest: str, memory_mb: int, overridden: Collection[str] = ()) -> None:
    """Check that every job of the models whose sizes are known fits in memory.

    Args:
        config: The merged config, checked.
        manifest: As for `make_plan`.
        memory_mb: Memory of the machine.
        overridden: Rules whose memory the user has set by hand.

    Raises:
        ValueError: A line for each model that does not fit.
    """
    problems: list[str] = []
    for model in config["run"]["models"]:
        if costs := costs_of(config["models"][model], Path(manifest.format(name=model)), config):
            problems += _too_large(costs, model, memory_mb, overridden)
    if problems:
        raise ValueError("\n".join(["this run does not fit:", *(f"  {problem}" for problem in problems)]))


def check_device(device: str) -> None:
    """Check that the device on which models are to run is in this machine.

    Args:
        device: ``compute.device`` of the config.

    Raises:
        ValueError: torch does not see it.
    """
    if device == "cpu":
        return
    import torch  # late: it takes seconds, and is not asked on the CPU

    kind, _, number = device.partition(":")
    there = torch.backends.mps.is_available() if kind == "mps" else torch.cuda.is_available()
    if not there:
        raise ValueError(
            f"compute.device is {device}, but torch sees no such device here: set cpu, or install the torch build for your "
            "driver (README, GPU)"
        )
    if number and int(number) >= torch.cuda.device_count():
        raise ValueError(
            f"compute.device is {device}, but this machine has {torch.cuda.device_count()}, counted from 0"
        )


def run_jobs(config: Mapping[str, Any]) -> list[tuple[str, str | None, int]]:
    """Rules of a run of one model on one corpus, with kind of ablation and number of jobs, in the order of the stages.

    Figures are ``draw_figure``. Held to what Snakemake plans by tests/workflow/test_resources.py.
    """
    tokens, kinds = config["tokens"], list(config["ablations"])
    main, shards = main_kind(config["ablations"]), tokens["prompts"] // tokens["prompts_per_shard"]
    others = tokens["prompts_per_shard"] - 1
    computed = {kind: config["ablations"][kind].get("tokens", "all") for kind in kinds}
    heads = {kind: config["ablations"][kind]["heads"] for kind in kinds}
    of_chosen = [kind for kind in kinds if kind == main or heads[kind] in ("all", "chosen")]
    noise = main == "resample" and min(config["analyses"]["noise_donors"], others) > 1
    control = main == "resample" and computed[main] == "all" and others > tokens["donors"]
    sweeps = [kind for kind in kinds if computed[kind] == "all" and heads[kind] != "chosen"]
    # Kinds whose table "heads" something reads.
    tabulated = set(of_chosen) | set(sweeps) | {main}
    figures = 16 + bool(sweeps) + (computed[main] == "all") + control + noise
    return [
        ("snapshot_model", None, 1),
        ("check_model", None, 1),
        ("check_published", None, 1),
        ("tokenize_corpus", None, 1),
        ("check_prompts", None, 1),
        ("cache_activations", None, shards),
        ("find_thresholds", None, 1),
        *([("average_activations", None, 1)] if "mean" in kinds else []),
        *(("ablate_heads", kind, shards) for kind in kinds),
        ("choose_heads", None, 1),
        ("freeze_layernorm", main, shards),
        ("measure_neurons", main, shards),
        *([("project_other_donor", None, shards)] if control else []),
        *([("measure_donor_noise", None, shards)] if noise else []),
        ("reinforce_heads", None, shards),
        ("move_residual", None, shards),
        ("ablate_layers", None, shards),
        *(("tabulate_heads", kind, 1) for kind in kinds if kind in tabulated),
        *([("tabulate_token_noise", main, 1)] if computed[main] == "all" else []),
        *(("tabulate_layernorm_scale", kind, 1) for kind in of_chosen),
        *(("tabulate_ablation_type", kind, 1) for kind in of_chosen),
        ("tabulate_layernorm_claim", main, 1),
        ("tabulate_frozen_layernorm", main, 1),
        ("tabulate_neurons", main, 1),
        ("tabulate_reinforcement", main, 1),
        ("tabulate_repair", main, 1),
        ("tabulate_moved_residual", main, 1),
        ("tabulate_layer_ablations", main, 1),
        *([("tabulate_selection_control", main, 1)] if control else []),
        *([("tabulate_donor_noise", main, 1)] if noise else []),
        ("tabulate_published", main, 1),
        ("tabulate_checks", main, 1),
        ("draw_figure", main, figures),
        ("write_findings", main, 1),
        ("write_explorer", main, 1),
    ]


def _stages(costs: Costs, jobs: list[tuple[str, str | None, int]], tflops: Amount) -> list[Stage]:
    """Stages of some jobs: a rule each (a kind of ablation each), tables together, figures together."""
    needs: dict[str, list[tuple[int, Need]]] = {}
    for rule, kind, count in jobs:
        name = f"{rule} ({kind})" if rule == "ablate_heads" else rule
        name = "tables" if rule.startswith(("tabulate_", "check_", "choose_")) else name
        name = "figures" if rule in ("draw_figure", "write_findings", "write_explorer") else name
        needs.setdefault(name, []).append((count, costs.of(rule, kind)))
    order = sorted(needs, key=lambda name: (name in ("tables", "figures"), name == "figures"))
    return [_stage(name, needs[name], tflops) for name in order]


def _longest_hours(costs: Costs, jobs: list[tuple[str, str | None, int]], tflops: Amount) -> Amount:
    """Of one job of a shard, without its start."""
    return max(costs.of(rule, kind).operations for rule, kind, _ in jobs) / (tflops * 1e12) / 3600


def _better_shards(tokens: Mapping[str, Any], longest: Amount) -> int:
    """Prompts of a shard whose longest job takes about `GOOD_HOURS`; 0 where shards do as they are."""
    now, prompts = tokens["prompts_per_shard"], tokens["prompts"]
    many = prompts // now > MANY
    if not longest > LONG_HOURS and not (many and longest < SHORT_HOURS):
        return 0
    # A power of two, of which most numbers of prompts hold a whole number.
    better = 2 ** max(0, floor(log2(now * GOOD_HOURS / longest)))
    better = max(min(better, prompts), tokens["donors"] + 1)
    return better if better != now else 0


def _stage(name: str, needs: list[tuple[int, Need]], tflops: Amount) -> Stage:
    operations = sum(count * need.operations for count, need in needs)
    return Stage(
        name=name,
        jobs=sum(count for count, _ in needs),
        tokens=sum(count * need.tokens for count, need in needs),
        operations=operations,
        hours=operations / (tflops * 1e12) / 3600,
        mem_mb=max(need.mem_mb for _, need in needs),
        gpu_mb=max(need.gpu_mb for _, need in needs),
        disk_mb=sum(count * need.disk for count, need in needs) / MB,
    )


def _too_large(costs: Costs, model: str, memory_mb: int, overridden: Collection[str] = ()) -> list[str]:
    """The jobs of a model that want more memory than there is, one line for each thing to do about it."""
    found: dict[str, tuple[int, str]] = {}
    for rule, kind, _ in run_jobs(costs.config):
        need = costs.of(rule, kind)
        if need.mem_mb <= memory_mb or rule in overridden:
            continue
        parts = {part: size for part, size in need.memory.items() if part in ADVICE}
        advice = ADVICE[max(parts, key=lambda part: parts[part])]
        found[advice] = max(found.get(advice, (0, "")), (need.mem_mb, rule))
    return [shortage(f"{rule} of {model}", "memory", mb, memory_mb, advice) for advice, (mb, rule) in found.items()]
