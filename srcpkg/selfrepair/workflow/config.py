"""Checks of the workflow's config before anything runs, with errors that say what to do."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from selfrepair.snapshots.manifest import json_or_nothing, refuse_place
from selfrepair.snapshots.names import CONFIG
from selfrepair.snapshots.published import differences, read_facts
from selfrepair.snapshots.shapes import shape_differences, shape_of_folder
from selfrepair.snapshots.sources import joined_name, source_files, sources_of

RESULTS = Path("results")
"""Where everything is written, below the working directory."""


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
            *_one_folder(config["run"]),
            *_beside_parts(config["models"]),
            *_chosen(config["ablations"]),
            *_prompts(config["tokens"]),
            *_no_tokens(config["tokens"], config["statistics"]),
            *_weights(config["compute"]),
        ]
    if problems:
        raise ValueError(
            "\n".join(["config is wrong:", *(f"  {problem}" for problem in problems), f"  (see {schema})"])
        )


def check_sources(config: dict[str, Any], manifests: Mapping[str, str]) -> None:
    """Check that what the run takes from a path is there, or has been taken already, and can be read without losing anything.

    Without it a mistyped path would go unseen: a file that is there and cannot be made again serves Snakemake as it is, here
    the snapshot of the former source. And Snakemake removes a manifest before a job can look whose it is.

    Args:
        config: The merged config, checked.
        manifests: By section (models, corpora), the path of a snapshot's manifest with the name left open as ``{name}``.

    Raises:
        ValueError: One line for each source that is wrong.
    """
    problems = []
    for section, manifest in manifests.items():
        for name in config["run"][section]:
            place = Path(manifest.format(name=name))
            problems += [
                f"{section}.{name}.source {found}" for found in _of_source(section, config[section][name], place)
            ]
    if problems:
        raise ValueError("\n".join(["config is wrong:", *(f"  {problem}" for problem in problems)]))


def check_published(config: dict[str, Any], manifest: str, facts: Path) -> None:
    """Check that models which are compared with published ones are these, as far as their configs are at hand already.

    Args:
        config: The merged config, checked.
        manifest: The path of a model snapshot's manifest with the name left open as ``{name}``.
        facts: resources/published/models.json.

    Raises:
        ValueError: One line for each model that is another.
    """
    problems = []
    for name in config["run"]["models"]:
        settings = config["models"][name]
        if (published := settings.get("published")) is None:
            continue
        sources = sources_of(settings)
        snapshot = Path(manifest.format(name=name))
        # A path is what the next snapshot reads; of other sources a snapshot says what they are, once there is one.
        folders = [source.path for source in sources if source.scheme == "path"]
        folders += [snapshot.parent] if _source_of(snapshot) == joined_name(sources) else []
        known = [model for folder in folders if (model := json_or_nothing(folder / CONFIG))]
        found = differences(known[0], published, read_facts(facts)) if known else []
        problems += [f"models.{name}.published is {published}, but {difference}" for difference in found]
    if problems:
        advice = "name the published model that it is, or leave the key out"
        raise ValueError("\n".join(["config is wrong:", *(f"  {problem}: {advice}" for problem in problems)]))


def check_shapes(config: dict[str, Any], manifest: str) -> None:
    """Check that models are as large as the config says, as far as they are at hand already.

    Args:
        config: The merged config, checked.
        manifest: The path of a model snapshot's manifest with the name left open as ``{name}``.

    Raises:
        ValueError: One line for each model that has another shape.
    """
    problems = []
    for name in config["run"]["models"]:
        settings = config["models"][name]
        if "shape" not in settings:
            continue
        sources, snapshot = sources_of(settings), Path(manifest.format(name=name))
        folders = [sources[0].path] if sources[0].scheme == "path" else []
        folders += [snapshot.parent] if _source_of(snapshot) == joined_name(sources) else []
        known = [shape for folder in folders if (shape := shape_of_folder(folder))]
        found = shape_differences(settings["shape"], known[0]) if known else []
        problems += [f"models.{name}.shape {difference}" for difference in found]
    if problems:
        raise ValueError("\n".join(["config is wrong:", *(f"  {problem}" for problem in problems)]))


def main_kind(ablations: Mapping[str, Any]) -> str:
    """The kind of ablation that figures of one kind show: resample, or the first where it is not run."""
    return "resample" if "resample" in ablations else next(iter(ablations))


def shard_names(prompts: int, prompts_per_shard: int) -> list[str]:
    """Names of the shards that hold a run's first prompts, in their order: a run with fewer prompts has fewer.

    Args:
        prompts: `tokens.prompts` of the config, a multiple of the other.
        prompts_per_shard: `tokens.prompts_per_shard`.
    """
    return [f"{shard:05d}" for shard in range(prompts // prompts_per_shard)]


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


def _one_folder(run: Mapping[str, Any]) -> list[str]:
    """Names that are one folder where the file system takes upper case for lower case."""
    problems = []
    for section in ("models", "corpora"):
        names: dict[str, str] = {}
        for name in run[section]:
            other = names.setdefault(name.lower(), name)
            if other != name:
                problems.append(f"run.{section} names {other!r} and {name!r}, one folder on many disks: rename one")
    return problems


def _beside_parts(models: Mapping[str, Any]) -> list[str]:
    """What is said of one package where a model's file is in parts, each with its own."""
    return [
        f"models.{name} has parts and {key}: name the packages and their sha256 in its parts alone, and remove {key}"
        for name, settings in models.items()
        for key in ("source", "wheel_sha256")
        if "parts" in settings and key in settings
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


def _weights(compute: Mapping[str, Any]) -> list[str]:
    if "weights" in compute and compute["dtype"] != "float32":
        return [
            f"compute.weights is {compute['weights']}, which goes with compute.dtype float32, not {compute['dtype']}: "
            "leave one out"
        ]
    return []


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


def _of_source(section: str, settings: Mapping[str, Any], manifest: Path) -> Iterator[str]:
    """What is wrong with a source, to follow its name."""
    source = sources_of(settings)[0]  # of several, all are packages
    try:
        refuse_place(manifest.parent)
        if source.scheme != "path":
            return
        if not source.path.exists():
            if _source_of(manifest) != str(source):
                yield (
                    f"is {source}, but {source.path.absolute()} does not exist: correct the path (relative to the working "
                    "directory)"
                )
            return
        if overlaps := list(_overlap(source.path, section)):
            yield overlaps[0]
            return
        source_files(str(source), {"models": "model", "corpora": "corpus"}[section], format=settings.get("format"))
    except (ValueError, OSError) as error:
        yield f"is {source}: {error}"


def _overlap(source: Path, section: str) -> Iterator[str]:
    """A source among the results, where it may be replaced; or a folder of texts with the results among them."""
    real, results = Path(os.path.realpath(source)), Path(os.path.realpath(RESULTS))
    if results in (real, *real.parents):
        yield f"is {source}, which lies in {RESULTS}, where files are replaced: move it elsewhere, or name its own source"
    elif section == "corpora" and real in results.parents:
        yield f"is {source}, which holds {RESULTS}, where files are written: give the texts a folder of their own"


def _source_of(manifest: Path) -> str | None:
    """What a snapshot was taken from; None where there is none."""
    return json_or_nothing(manifest).get("source")
