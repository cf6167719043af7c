"""The schema is valid and says what every key means; configs that are wrong are refused with what to do."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from selfrepair.files.sealed import write_json
from selfrepair.workflow.config import check_config, check_sources, shard_names, shard_prompts, write_in_one_way

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
    ("value", "message"),
    [
        ({"parts": [PART]}, "models.mine has no file: wanted text"),
        ({"parts": [PART, PART], "file": "a.gguf"}, "models.mine.parts has .* twice: once is enough"),
        ({"parts": [], "file": "a.gguf"}, "models.mine.parts is empty: wanted parts in a list"),
        ({"parts": [PART], "file": "a.gguf", "source": "path:x"}, "models.mine has parts and source: name"),
        (
            {"parts": [{**PART, "source": "path:x"}], "file": "a.gguf"},
            r"models.mine.parts\[0\].source is 'path:x': wanted package:NAME==VERSION",
        ),
    ],
)
def test_what_is_wrong_with_parts_is_named(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"config is wrong: {message}"):
        check_config(changed("models.mine", value), SCHEMA)


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


def test_what_does_not_run_need_not_be_right() -> None:
    config = load(CONFIG / "config.yaml")
    config["models"]["other"] = {"source": f"hub:no such name@{'0' * 40}"}
    config["models"]["mine"] = {"weights": "w", "source": "path:./model/"}
    config["run"]["models"] = ["mine"]
    write_in_one_way(config)
    assert config["models"]["mine"] == {"source": "path:model", "weights": "w"}
    assert list(config["models"]["mine"]) == ["source", "weights"]
