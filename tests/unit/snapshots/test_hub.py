"""Snapshots from a hub: a loopback server stands for the Hugging Face hub, and each snapshot runs in its own process.

huggingface_hub and datasets read HF_ENDPOINT and HF_HOME when they are imported, hence the processes.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import selfrepair.snapshots.sources
from selfrepair.snapshots.manifest import verify_manifest

from hub_server import REVISION, Hub, serve
from tiny_model import save_tiny_model

PACKAGE_ROOT = Path(selfrepair.snapshots.sources.__file__).parents[2]

RUN = """
import json, sys
from pathlib import Path
from selfrepair.snapshots.{module} import {function}
try:
    {function}(Path(sys.argv[1]), **json.loads(sys.argv[2]))
except (ValueError, ConnectionError) as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


LEAVE = """
import gc, sys
from pathlib import Path
from selfrepair.snapshots.corpora import snapshot_corpus
gc.disable()
snapshot_corpus(Path(sys.argv[1]), source=sys.argv[2], documents=1)
files = [value for value in gc.get_objects() if type(value).__name__ == "HfFileSystemFile"]
print(sum(not file.closed for file in files), "of", len(files) > 0, "open")
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as running:
        yield running


def _snapshot(
    kind: str, manifest: Path, endpoint: str, home: Path, **options: object
) -> subprocess.CompletedProcess[str]:
    names = {"model": ("models", "snapshot_model"), "corpus": ("corpora", "snapshot_corpus")}
    module, function = names[kind]
    return _run(RUN.format(module=module, function=function), endpoint, home, str(manifest), json.dumps(options))


def _run(program: str, endpoint: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(PACKAGE_ROOT),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_model_at_a_pinned_revision_downloads_only_what_is_read(hub: Hub, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    save_tiny_model(repository)
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "README.md", "modeling_own.py"):
        (repository / name).write_bytes(b"not wanted")
    (repository / "onnx").mkdir()
    (repository / "onnx" / "model.onnx").write_bytes(b"not wanted")
    hub.repositories["models", "someone/tiny"] = repository
    manifest = tmp_path / "snapshot" / "manifest.json"
    source = f"hub:someone/tiny@{REVISION}"
    result = _snapshot("model", manifest, hub.url, tmp_path / "home", source=source, license="apache-2.0")
    assert result.returncode == 0, result.stderr
    assert "\r" not in result.stderr
    read = verify_manifest(manifest, "model")
    assert set(read["files"]) == {path.name for path in manifest.parent.iterdir()} - {"manifest.json"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(read["files"])
    assert hub.downloaded() == set(read["files"]) - {"snapshot_files.json"}
    assert (manifest.parent / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()
    assert (read["revision"], read["version"]) == (REVISION, None)
    assert (read["model_type"], read["architecture"]) == ("llama", "LlamaForCausalLM")
    assert (read["weights"], read["license"]) == ("float32 safetensors", "apache-2.0")


@pytest.mark.parametrize("kind", ["model", "corpus"])
def test_what_the_hub_does_not_have_is_said_in_one_line(kind: str, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    hub.repositories["models" if kind == "model" else "datasets", "someone/there"] = tmp_path / "repository"
    for source, words in (
        (f"hub:someone/absent@{REVISION}", "does not exist, or is private"),
        ("hub:someone/there@" + "f" * 40, "has no revision ffff"),
    ):
        manifest = tmp_path / "snapshot" / "manifest.json"
        result = _snapshot(kind, manifest, hub.url, tmp_path / "home", source=source)
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("ValueError"), result.stderr
        assert words in last
        assert hub.url in last
        assert source.split(":")[1].split("@")[0] in last
        assert list(manifest.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["model", "corpus"])
def test_a_hub_that_does_not_answer_is_said_with_what_to_do(kind: str, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    manifest = tmp_path / "manifest.json"
    result = _snapshot(kind, manifest, endpoint, tmp_path / "home", source=f"hub:someone/there@{REVISION}")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ConnectionError"), result.stderr
    assert f"'someone/there' at {endpoint} cannot be reached" in last
    assert "HF_ENDPOINT" in last
    assert "path:" in last
    assert not manifest.exists()


def test_pickle_weights_are_refused_before_any_download(hub: Hub, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    save_tiny_model(repository)
    (repository / "model.safetensors").rename(repository / "pytorch_model.bin")
    hub.repositories["models", "someone/pickled"] = repository
    manifest = tmp_path / "snapshot" / "manifest.json"
    result = _snapshot("model", manifest, hub.url, tmp_path / "home", source=f"hub:someone/pickled@{REVISION}")
    assert "only pickle weights (pytorch_model.bin): refused, safetensors only" in result.stderr
    assert hub.downloaded() == set()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bloom"}, "is a bloom model, which the definitions do not cover"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config (gptq): quantised weights"),
    ],
)
def test_a_model_is_refused_by_its_config_before_weights_are_asked_for(
    config: dict[str, object], words: str, hub: Hub, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    save_tiny_model(repository, shard_size="4KB")
    whole = json.loads((repository / "config.json").read_text())
    (repository / "config.json").write_text(json.dumps({**whole, **config}))
    hub.repositories["models", "someone/other"] = repository
    manifest = tmp_path / "snapshot" / "manifest.json"
    result = _snapshot("model", manifest, hub.url, tmp_path / "home", source=f"hub:someone/other@{REVISION}")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError"), result.stderr
    assert words in last
    assert hub.downloaded() == {"config.json", "model.safetensors.index.json"}
    assert not [line for line in hub.requests if line.endswith(".safetensors")]
    assert list(manifest.parent.iterdir()) == []


def test_a_repository_that_lacks_what_its_index_names_is_refused_before_weights_are_asked_for(
    hub: Hub, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    save_tiny_model(repository, shard_size="4KB")
    shard = sorted(repository.glob("model-*.safetensors"))[1]
    shard.unlink()
    hub.repositories["models", "someone/partial"] = repository
    manifest = tmp_path / "snapshot" / "manifest.json"
    result = _snapshot("model", manifest, hub.url, tmp_path / "home", source=f"hub:someone/partial@{REVISION}")
    assert f"lacks {shard.name}, which its model.safetensors.index.json names" in result.stderr
    assert hub.downloaded() == {"config.json", "model.safetensors.index.json"}


def test_a_gated_model_is_said(hub: Hub, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    save_tiny_model(repository)
    hub.repositories["models", "someone/gated"] = repository
    hub.gated.add("someone/gated")
    manifest = tmp_path / "snapshot" / "manifest.json"
    result = _snapshot("model", manifest, hub.url, tmp_path / "home", source=f"hub:someone/gated@{REVISION}")
    assert "is gated: accept its terms" in result.stderr.strip().splitlines()[-1]
    assert not manifest.exists()


@pytest.fixture
def news(hub: Hub, tmp_path: Path) -> str:
    repository = tmp_path / "repository"
    (repository / "world").mkdir(parents=True)
    rows = [{"title": f"n{number}", "body": f"Story number {number}."} for number in range(5)]
    (repository / "world" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = "---\nconfigs:\n- config_name: world\n  data_files:\n  - split: train\n    path: world/train.jsonl\n---\n"
    (repository / "README.md").write_text(card)
    hub.repositories["datasets", "someone/news"] = repository
    return f"hub:someone/news@{REVISION}"


def test_data_set_with_configuration_split_and_column(news: str, hub: Hub, tmp_path: Path) -> None:
    manifest = tmp_path / "snapshot" / "manifest.json"
    options = {"source": news, "config": "world", "split": "train", "text_column": "body", "documents": 3}
    result = _snapshot("corpus", manifest, hub.url, tmp_path / "home", **options)
    assert result.returncode == 0, result.stderr
    read = verify_manifest(manifest, "corpus")
    assert (read["n_documents"], read["config"], read["split"], read["revision"]) == (3, "world", "train", REVISION)
    rows = [json.loads(line) for line in (manifest.parent / "documents.jsonl").read_text().splitlines()]
    assert rows == [{"id": f"train:{number}", "text": f"Story number {number}."} for number in range(3)]


def test_parquet_that_is_left_in_the_middle_is_closed(hub: Hub, tmp_path: Path) -> None:
    """Threads that read on when the process ends may abort it: seen in one of six."""
    repository = tmp_path / "repository"
    (repository / "data").mkdir(parents=True)
    rows = pd.DataFrame({"text": [f"word {number} " * 200 for number in range(20_000)]})
    rows.to_parquet(repository / "data" / "train-00000-of-00001.parquet", row_group_size=1000)
    hub.repositories["datasets", "someone/parquet"] = repository
    manifest = tmp_path / "snapshot" / "manifest.json"
    result = _run(LEAVE, hub.url, tmp_path / "home", str(manifest), f"hub:someone/parquet@{REVISION}")
    assert (result.returncode, result.stdout) == (0, "0 of True open\n"), result.stderr
    assert verify_manifest(manifest, "corpus")["n_documents"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text_column": "text"}, "no text in column 'text', its columns are title, body"),
        ({"text_column": "body", "config": "local"}, "world"),
        ({"text_column": "body", "split": "test"}, "test"),
    ],
)
def test_wrong_column_configuration_or_split(
    options: dict[str, str], words: str, news: str, hub: Hub, tmp_path: Path
) -> None:
    manifest = tmp_path / "snapshot" / "manifest.json"
    result = _snapshot("corpus", manifest, hub.url, tmp_path / "home", source=news, **options)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError"), result.stderr
    assert words in last
    assert "someone/news" in last
    assert not manifest.exists()


def test_a_folder_of_the_same_name_is_not_mistaken_for_the_data_set(
    news: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "news").mkdir(parents=True)
    result = _snapshot("corpus", tmp_path / "s" / "manifest.json", hub.url, tmp_path / "home", source=news)
    assert "which would be read instead" in result.stderr
