"""Checks of the workflow's config before anything runs, with errors that say what to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from selfrepair.sealed import read_json
from selfrepair.snapshots.sources import parse_source


def check_config(config: dict[str, Any], schema: Path) -> None:
    """Check a config against its schema, and what a schema cannot say.

    Args:
        config: The merged config.
        schema: JSON Schema, as YAML.

    Raises:
        ValueError: One line for each thing wrong.
    """
    validator = Draft202012Validator(yaml.safe_load(schema.read_text(encoding="utf-8")))
    problems = [
        f"{'.'.join(map(str, error.absolute_path)) or 'the config'}: {error.message}"
        for error in validator.iter_errors(config)
    ]
    if not problems:
        problems = [
            *_unknown_names(config),
            *_chosen(config["ablations"]),
            *_prompts(config["tokens"]),
            *_no_tokens(config["tokens"], config["statistics"]),
        ]
    if problems:
        raise ValueError(
            "\n".join(["config is wrong:", *(f"  {problem}" for problem in problems), f"  (see {schema})"])
        )


def check_sources(config: dict[str, Any], manifests: Mapping[str, str]) -> None:
    """Check that what the run takes from a path is there, or has been taken already.

    Without it a mistyped path would go unseen: a file that is there and cannot be made again serves Snakemake as it is, here
    the snapshot of the former source.

    Args:
        config: The merged config, checked.
        manifests: By section (models, corpora), the path of a snapshot's manifest with the name left open as ``{name}``.

    Raises:
        ValueError: One line for each source that is wrong.
    """
    problems = []
    for section, manifest in manifests.items():
        for name in config["run"][section]:
            source = parse_source(config[section][name]["source"])
            missing = source.scheme == "path" and not source.path.exists()
            if missing and _source_of(Path(manifest.format(name=name))) != str(source):
                problems.append(
                    f"{section}.{name}.source is {source}, but {source.path.absolute()} does not exist: correct the path "
                    "(relative to the working directory)"
                )
    if problems:
        raise ValueError("\n".join(["config is wrong:", *(f"  {problem}" for problem in problems)]))


def main_kind(ablations: Mapping[str, Any]) -> str:
    """The kind of ablation that figures of one kind show: resample, or the first where it is not run."""
    return "resample" if "resample" in ablations else next(iter(ablations))


def shard_names(tokens: dict[str, Any]) -> list[str]:
    """Names of the shards that hold ``tokens.prompts`` prompts."""
    return [f"{shard:05d}" for shard in range(tokens["prompts"] // tokens["prompts_per_shard"])]


def shard_prompts(shard: str, tokens: dict[str, Any]) -> list[int]:
    """First prompt of a shard, and the one after its last."""
    size = tokens["prompts_per_shard"]
    return [int(shard) * size, (int(shard) + 1) * size]


def _unknown_names(config: dict[str, Any]) -> list[str]:
    return [
        f"run.{section} names {name!r}, which is not under {section}: {', '.join(config[section])}"
        for section in ("models", "corpora")
        for name in config["run"][section]
        if name not in config[section]
    ]


def _chosen(ablations: dict[str, Any]) -> list[str]:
    main = main_kind(ablations)
    if ablations[main]["heads"] != "chosen":
        return []
    return [f"ablations.{main}.heads is chosen, but heads are chosen by their {main} ablation: use all, or name heads"]


def _prompts(tokens: dict[str, Any]) -> list[str]:
    problems = []
    size, prompts = tokens["prompts_per_shard"], tokens["prompts"]
    if prompts % size:
        near = [count for count in (prompts // size * size, (prompts // size + 1) * size) if count]
        problems.append(
            f"tokens.prompts is {prompts}, no multiple of tokens.prompts_per_shard {size}: use {' or '.join(map(str, near))}"
        )
    if tokens["donors"] >= size:
        problems.append(f"tokens.donors is {tokens['donors']}, but a shard of {size} prompts holds {size - 1} others")
    return problems


def _no_tokens(tokens: dict[str, Any], statistics: dict[str, Any]) -> list[str]:
    positions, first = tokens["prompt_length"] - 1, statistics["first_position"]
    if first >= positions:
        return [
            f"statistics.first_position is {first}, but prompts of {tokens['prompt_length']} tokens have {positions} "
            f"positions that predict: use at most {positions - 1}"
        ]
    n_tokens = tokens["prompts"] * (positions - first)
    if int(statistics["top_fraction"] * n_tokens) < 1:
        return [
            f"statistics.top_fraction is {statistics['top_fraction']}, which takes none of {n_tokens} tokens: raise it to "
            f"{1 / n_tokens:.2g} or more, or raise tokens.prompts"
        ]
    return []


def _source_of(manifest: Path) -> str | None:
    """What a snapshot was taken from; None where there is none."""
    return read_json(manifest).get("source") if manifest.is_file() else None
