"""The schema is valid and says what every key means; configs that are wrong are refused with what to do."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from selfrepair.files.sealed import write_json
from selfrepair.workflow.config import check_config, check_sources, shard_names, shard_prompts

from conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("error")

CONFIG = REPOSITORY / "config"
SCHEMA = CONFIG / "config.schema.yaml"
PART = {"source": "package:data-part1==1.0", "file": "a.1"}


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def merged(config: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """As Snakemake lays one config over another."""
    both = dict(config)
    for key, value in overlay.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return both


def changed(path: str, value: Any) -> dict[str, Any]:
    """The default config with one value set."""
    overlay = value
    for key in reversed(path.split(".")):
        overlay = {key: overlay}
    return merged(load(CONFIG / "config.yaml"), overlay)


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object, with its path."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for key, value in schema.items():
            yield from objects(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for number, value in enumerate(schema):
            yield from objects(value, f"{path}/{number}")


def described(schema: dict[str, Any], root: dict[str, Any]) -> bool:
    if "description" in schema:
        return True
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    inner = root["$defs"].get(name, {})
    # An object without a description of its own describes its keys.
    return "description" in inner or bool((inner or schema).get("properties"))


def test_the_schema_is_a_valid_schema() -> None:
    Draft202012Validator.check_schema(load(SCHEMA))


def test_the_schema_is_closed_and_every_key_is_described() -> None:
    schema = load(SCHEMA)
    found = list(objects(schema))
    assert len(found) >= 10
    for path, part in found:
        assert part.get("additionalProperties") is False or (
            "additionalProperties" in part and "propertyNames" in part
        ), path
        for name, inner in part.get("properties", {}).items():
            assert described(inner, schema), f"{path}/{name} has no description"


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_that_comes_with_the_workflow_is_valid(path: Path) -> None:
    if path == SCHEMA:
        Draft202012Validator.check_schema(load(path))
    else:
        check_config(merged(load(CONFIG / "config.yaml"), load(path)), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("statstics", {}, "the config: .*'statstics' was unexpected"),
        ("tokens.prompt", 8, "tokens: .*'prompt' was unexpected"),
        ("tokens.prompts", -8, "tokens.prompts: -8 is less than the minimum of 2"),
        ("tokens.prompts", 8.5, "tokens.prompts: 8.5 is not of type 'integer'"),
        ("tokens.prompts", 9, "tokens.prompts is 9, no multiple of tokens.prompts_per_shard 8: use 8 or 16"),
        ("tokens.prompts", 4, "tokens.prompts is 4, no multiple of tokens.prompts_per_shard 8: use 8$"),
        ("tokens.donors", 8, "tokens.donors is 8, but a shard of 8 prompts holds 7 others"),
        ("run.models", ["gpt5"], "run.models names 'gpt5', which is not under models: smollm2-135m-instruct"),
        ("run.corpora", ["news"], "run.corpora names 'news', which is not under corpora: wikipedia, lee"),
        ("run.models", [], "run.models: "),
        ("models.mine", {}, "models.mine: 'source' is a required property"),
        ("models.mine", {"parts": [PART]}, "models.mine: 'file' is a required property"),
        ("models.mine", {"parts": [PART, PART], "file": "a.gguf"}, "models.mine.parts: .* has non-unique elements"),
        (
            "models.mine",
            {"parts": [PART], "file": "a.gguf", "source": "path:x"},
            "models.mine has parts and source: name",
        ),
        (
            "models.mine",
            {"parts": [{**PART, "source": "path:x"}], "file": "a.gguf"},
            "models.mine.parts.0.source: 'path:x' does not match",
        ),
        ("models.mine", {"source": "hub:gpt2@main"}, "models.mine.source: 'hub:gpt2@main' does not match"),
        ("models.snapshots", {"source": "path:x"}, "models: .*snapshots"),
        ("compute.dtype", "float16", r"compute.dtype: 'float16' is not one of \['float32', 'float64'\]"),
        ("compute.device", "gpu", "compute.device: 'gpu' does not match"),
        ("ablations.noise", {"heads": "all"}, "ablations: .*'noise' was unexpected"),
        ("ablations.resample.heads", "some", "ablations.resample.heads: 'some' is not valid"),
        ("ablations.resample.heads", [[0, -1]], "ablations.resample.heads: .* is not valid"),
        ("statistics.top_fraction", 0, "statistics.top_fraction: 0 is less than or equal to the minimum of 0"),
        ("statistics.top_fraction", 2, "statistics.top_fraction: 2 is greater than the maximum of 1"),
        (
            "statistics.first_position",
            127,
            "statistics.first_position is 127, .* 127 positions that predict: use at most 126",
        ),
        (
            "statistics.top_fraction",
            1e-5,
            "statistics.top_fraction is 1e-05, which takes none of 4064 tokens: raise it to",
        ),
    ],
)
def test_what_is_wrong_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match="config is wrong:") as caught:
        check_config(changed(path, value), SCHEMA)
    lines = str(caught.value).splitlines()
    assert lines[-1] == f"  (see {SCHEMA})"
    assert len(lines) == 3
    assert re.search(message, lines[1]), lines[1]


def test_everything_wrong_is_named_at_once() -> None:
    config = merged(changed("tokens.prompts", -8), {"compute": {"dtype": "float16"}, "unknown": 1})
    with pytest.raises(ValueError, match="config is wrong:") as caught:
        check_config(config, SCHEMA)
    for part in ("tokens.prompts: -8", "compute.dtype: 'float16'", "'unknown' was unexpected"):
        assert part in str(caught.value)


def test_shards_cover_every_prompt_once() -> None:
    tokens = {"prompts": 24, "prompts_per_shard": 8}
    assert shard_names(**tokens) == ["00000", "00001", "00002"]
    ranges = [range(*shard_prompts(name, tokens)) for name in shard_names(**tokens)]
    assert [prompt for one in ranges for prompt in one] == list(range(24))


@pytest.mark.parametrize("section", ["models", "corpora"])
def test_names_that_differ_by_case_alone_are_refused(section: str) -> None:
    name = load(CONFIG / "config.yaml")["run"][section][0]
    config = changed(f"{section}.{name.upper()}", {"source": "path:elsewhere"})
    check_config(config, SCHEMA)
    config = merged(config, {"run": {section: [name, name.upper()]}})
    with pytest.raises(
        ValueError, match=f"run.{section} names '{name}' and '{name.upper()}', one folder on many disks"
    ):
        check_config(config, SCHEMA)


def test_a_path_must_be_there_until_its_snapshot_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "run": {"models": ["mine"], "corpora": ["web"]},
        "models": {"mine": {"source": "path:model"}, "unused": {"source": "path:elsewhere"}},
        "corpora": {"web": {"source": "package:gensim==4.4.0"}},
    }
    manifests = {"models": "models/{name}.json", "corpora": "corpora/{name}.json"}
    message = f"models.mine.source is path:model, but {tmp_path}/model does not exist: correct the path"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_sources(config, manifests)
    (tmp_path / "model").mkdir()
    check_sources(config, manifests)
    (tmp_path / "model").rmdir()
    (tmp_path / "models").mkdir()
    write_json(tmp_path / "models" / "mine.json", {"source": "path:model"})
    check_sources(config, manifests)
    write_json(tmp_path / "models" / "mine.json", {"source": "path:another"})
    with pytest.raises(ValueError, match=re.escape(message)):
        check_sources(config, manifests)
