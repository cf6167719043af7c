"""Whatever is put in a config, a text or a file of results: it is read, or refused in a sentence. No other error, no hang.

A few cases of each run here; `make fuzz` runs for long. What was found is kept: as an ``example`` beside the test, or as a test
of the module at fault.
"""

import copy
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from unit.files.test_bit_rot import KINDS, same

from selfrepair.files.sealed import write_json
from selfrepair.snapshots.corpora import snapshot_corpus
from selfrepair.snapshots.folder import read_config, read_headers
from selfrepair.snapshots.manifest import read_manifest, verify_manifest
from selfrepair.workflow.config import check_config, check_models, check_sources, read_config_file, write_in_one_way
from selfrepair.workflow.records import edited, record_path

REPOSITORY = Path(__file__).parents[2]
SCHEMA = REPOSITORY / "config" / "config.schema.yaml"
DEFAULT = read_config_file(REPOSITORY / "config" / "config.yaml")
MANIFESTS = {section: f"results/snapshots/{section}/{{name}}/manifest.json" for section in ("models", "corpora")}

# The same cases every time, where other tests run too.
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("short", max_examples=60, derandomize=True, **COMMON)
settings.register_profile("long", max_examples=10_000, **COMMON)
settings.load_profile(os.environ.get("FUZZ", "short"))

pytestmark = pytest.mark.filterwarnings("ignore")


@contextmanager
def folder() -> Iterator[Path]:
    """A working folder of its own."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def said(error: ValueError) -> None:
    """What a user is told: something, in few lines, and no stack or schema."""
    lines = str(error).splitlines()
    assert lines
    assert "Traceback" not in str(error)
    assert "is not valid under any of the given schemas" not in str(error)
    assert "does not match" not in str(error)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 5_000_000)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["all", "chosen", "top", "path:", "path:~nosuchuser/x", "path:{a}", "hub:a/b@c", "package:a==1", "cuda", "../x"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | SCALARS, inner, max_size=3),
    max_leaves=6,
)


def places(config: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a config has values."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield (*path, key)
            yield from places(value, (*path, key))


PLACES = list(places(DEFAULT))


@st.composite
def configs(draw: st.DrawFn) -> dict[Any, Any]:
    """The default config with a few values changed, removed or added."""
    config: Any = copy.deepcopy(DEFAULT)
    for _ in range(draw(st.integers(1, 3))):
        *outer, last = draw(st.sampled_from(PLACES))
        at = config
        for key in outer:
            at = at.get(key) if isinstance(at, dict) else None
        if not isinstance(at, dict):
            continue
        match draw(st.integers(0, 3)):
            case 0:
                at.pop(last, None)
            case 1:
                at[draw(st.text(max_size=8) | st.just(f"{last}s"))] = draw(VALUES)
            case _:
                at[last] = draw(VALUES)
    return config


def without(section: str, key: str) -> dict[Any, Any]:
    config = copy.deepcopy(DEFAULT)
    del config[section][key]
    return config


@given(configs())
@example(without("tokens", "prompts"))
@example(without("tokens", "prompt_length"))
def test_a_config_is_taken_or_refused(config: dict[Any, Any]) -> None:
    with folder():
        try:
            check_config(config, SCHEMA)
            check_sources(config, MANIFESTS)
            check_models(config, MANIFESTS["models"])
            write_in_one_way(config)
        except ValueError as error:
            said(error)


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | VALUES.map(lambda value: yaml.safe_dump(value).encode())
)
def test_a_config_file_is_read_or_refused(content: bytes) -> None:
    with folder():
        Path("mine.yaml").write_bytes(content)
        with suppress(ValueError):
            assert isinstance(read_config_file(Path("mine.yaml")), dict)


LINES = st.lists(
    st.binary(max_size=40)
    | st.text(max_size=40).map(str.encode)
    | VALUES.map(lambda value: json.dumps(value, default=str, skipkeys=True).encode())
    | st.text(max_size=30).map(lambda text: json.dumps({"text": text, "id": 1}).encode()),
    max_size=6,
)


@pytest.mark.parametrize(
    "name", ["texts.txt", "texts.jsonl", "texts.jsonl.gz", "dump.xml", "dump.xml.bz2", "folder/a.txt"]
)
@given(lines=LINES, format=st.sampled_from([None, "text", "lines", "jsonl", "wikitext"]), whole=st.booleans())
def test_a_text_is_read_or_refused(name: str, lines: list[bytes], format: str | None, whole: bool) -> None:
    with folder():
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\n".join(lines))
        source = f"path:{path if whole or path.parent == Path() else path.parent}"
        try:
            snapshot_corpus(Path("results/snapshots/corpora/mine/manifest.json"), source=source, format=format)
        except ValueError as error:
            said(error)
        else:
            assert verify_manifest(Path("results/snapshots/corpora/mine/manifest.json"), "corpus")


@functools.cache
def whole_file(kind: str) -> tuple[Path, bytes, Any]:
    """A file of a kind in a folder that lasts, its bytes, and what is read in it."""
    write, read = KINDS[kind]
    path = write(Path(tempfile.mkdtemp(prefix="fuzz")))
    return path, path.read_bytes(), read(path)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_damage_is_refused_or_changes_nothing(kind: str, data: st.DataObject) -> None:
    """Bytes cut out, put in, exchanged or set to zero; single flipped bits: test_bit_rot."""
    path, content, wanted = whole_file(kind)
    read: Callable[[Path], Any] = KINDS[kind][1]
    start = data.draw(st.integers(0, len(content)), label="start")
    stop = data.draw(st.integers(start, min(len(content), start + 5000)), label="stop")
    put = data.draw(
        st.binary(max_size=64) | st.just(bytes(stop - start)) | st.just(content[stop:][: stop - start]), label="put"
    )
    damaged = content[:start] + put + content[stop:]
    assume(damaged != content)
    path.write_bytes(damaged)
    try:
        assert same(read(path), wanted)
    except ValueError as error:
        said(error)
    finally:
        path.write_bytes(content)


FIELDS = st.dictionaries(
    st.sampled_from(
        ["schema_version", "kind", "source", "license", "files", "weights", "outputs", "edited", "config", "code"]
    ),
    VALUES
    | st.dictionaries(st.sampled_from(["model.safetensors", "../x", "/etc/passwd", "config.json"]), VALUES)
    | st.just({"config.json": {"sha256": "0" * 64, "bytes": 3}})
    | st.just(1)
    | st.just("model"),
    max_size=7,
)


@given(FIELDS)
@example({"outputs": 1})
def test_a_manifest_or_record_of_other_fields_is_refused(fields: dict[str, Any]) -> None:
    """Sealed as ours are: written by another version, or by hand."""
    with folder():
        manifest = Path("results/snapshots/models/mine/manifest.json")
        with suppress(TypeError, ValueError):  # what JSON cannot hold
            write_json(manifest, fields)
            write_json(record_path(manifest), fields)
        for read in (read_manifest, verify_manifest):
            with suppress(ValueError):
                read(manifest, "model")
        assert isinstance(edited(manifest), str)


@given(
    st.binary(max_size=300),
    st.binary(max_size=300) | VALUES.map(lambda value: json.dumps(value, default=str, skipkeys=True).encode()),
)
def test_a_models_files_are_read_or_refused(weights: bytes, config: bytes) -> None:
    with folder() as home:
        Path("config.json").write_bytes(config)
        header = len(weights).to_bytes(8, "little")
        Path("model.safetensors").write_bytes(header + weights if len(weights) % 2 else weights)
        for read in (read_config, read_headers):
            try:
                read(home, "models.mine")
            except ValueError as error:
                said(error)
