"""Checks of the workflow's config before anything runs, with errors that say what to do."""

from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator


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
            *_prompts(config["tokens"]),
            *_no_tokens(config["tokens"], config["statistics"]),
        ]
    if problems:
        raise ValueError(
            "\n".join(["config is wrong:", *(f"  {problem}" for problem in problems), f"  (see {schema})"])
        )


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
