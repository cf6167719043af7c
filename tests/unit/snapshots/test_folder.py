"""Folders whose files cannot be read as a model's are refused in one line that names the file and what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from selfrepair.model.loading import load_model
from selfrepair.snapshots.folder import read_headers, read_json, some
from selfrepair.snapshots.models import snapshot_model

from tiny_model import save_tiny_model

INDEX = "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"


def refused_by_both(folder: Path, elsewhere: Path, *words: str) -> None:
    """Both the snapshot and `load_model` refuse the folder, in one line, with its path and all the words."""
    manifest = elsewhere / "snapshot" / "manifest.json"
    with pytest.raises(ValueError, match=str(folder)) as snapshot:
        snapshot_model(manifest, source=f"path:{folder}")
    assert list(manifest.parent.iterdir()) == []
    with pytest.raises(ValueError, match=str(folder)) as loading:
        load_model(folder)
    for said in (str(snapshot.value), str(loading.value)):
        assert len(said.splitlines()) == 1
        assert [word for word in words if word not in said] == [], said


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "sharded", shard_size="4KB")
    return tmp_path / "sharded"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "config.json is empty"),
        (POINTER, "config.json is a Git LFS pointer"),
        (b"not JSON", "config.json is not JSON"),
        (b'{"model_type": "llama"', "config.json is not JSON"),
        (b'{"model_type": "ll\xe4ma"}', "config.json is not UTF-8"),
        ('{"model_type": "llama"}'.encode("utf-16"), "config.json is not UTF-8"),
        (b"[" * 100_000, "config.json is not JSON"),
        (b"[1, 2]", "config.json holds a list, wanted an object"),
        (b"null", "config.json holds a NoneType, wanted an object"),
        (b"{}", "config.json has no model_type"),
        (b'{"model_type": ["llama"]}', "config.json has model_type ['llama']"),
        (b'{"model_type": "llama", "architectures": "LlamaForCausalLM"}', "architectures 'LlamaForCausalLM': wanted a list"),
        (b'{"model_type": "llama", "architectures": [1]}', "has architectures [1]: wanted a list of class names"),
        (b'{"model_type": "gemma9"}', "is a gemma9 model, which the definitions do not cover"),
        (b'{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}', "quantization_config (gptq)"),
        (b'{"model_type": "llama", "quantization_config": "fp8"}', "has quantization_config: quantised weights"),
        (b'{"model_type": "llama", "compression_config": {"format": "dense"}}', "has compression_config: quantised"),
    ],
)  # fmt: skip
def test_a_config_that_is_none_is_said(content: bytes, words: str, tiny: Path, tmp_path: Path) -> None:
    (tiny / "config.json").write_bytes(content)
    refused_by_both(tiny, tmp_path, words)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("content", "words"), [(b"", "is empty"), (POINTER, "is a Git LFS pointer"), (b"{", "is not JSON")]
)
def test_any_other_json_file_is_named_by_the_snapshot(
    name: str, content: bytes, words: str, tiny: Path, tmp_path: Path
) -> None:
    (tiny / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{tiny}: {name} {words}"):
        snapshot_model(tmp_path / "snapshot" / "manifest.json", source=f"path:{tiny}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"", "model.safetensors is empty"),
        (lambda content: POINTER, "model.safetensors is a Git LFS pointer, not the file itself: run `git lfs pull`"),
        (lambda content: content[:-1], "model.safetensors is not a readable safetensors file"),
        (lambda content: content[: len(content) // 2], "model.safetensors is not a readable safetensors file"),
        (lambda content: content[:100], "model.safetensors is not a readable safetensors file"),
        (lambda content: content[:4], "model.safetensors is not a readable safetensors file"),
        (lambda content: content + b"\0", "model.safetensors is not a readable safetensors file"),
        (lambda content: b"\x80\x02}q\x00." * 100, "model.safetensors is not a readable safetensors file"),
        (lambda content: b"<html>404</html>" * 10, "model.safetensors is not a readable safetensors file"),
        (lambda content: (2).to_bytes(8, "little") + b"{}", "model.safetensors holds no tensors"),
    ],
)
def test_damaged_weights_are_said(damage: Callable[[bytes], bytes], words: str, tiny: Path, tmp_path: Path) -> None:
    path = tiny / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused_by_both(tiny, tmp_path, words)


def test_a_damaged_shard_is_named(sharded: Path, tmp_path: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-10])
    refused_by_both(sharded, tmp_path, f"{shard.name} is not a readable safetensors file", "fetch it again")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", f"{INDEX} is empty"),
        (POINTER, f"{INDEX} is a Git LFS pointer"),
        (b"{", f"{INDEX} is not JSON"),
        (b"[]", f"{INDEX} has no weight_map"),
        (b"{}", f"{INDEX} has no weight_map"),
        (b'{"weight_map": {}}', f"{INDEX} has no weight_map"),
        (b'{"weight_map": ["a.safetensors"]}', f"{INDEX} has no weight_map"),
        (b'{"weight_map": {"lm_head.weight": 1}}', f"{INDEX} has no weight_map"),
        (b'{"weight_map": {"lm_head.weight": "../tiny/model.safetensors"}}', "names ../tiny/model.safetensors: wanted"),
        (
            b'{"weight_map": {"lm_head.weight": "/etc/passwd"}}',
            "names /etc/passwd: wanted safetensors files in the folder",
        ),
        (b'{"weight_map": {"lm_head.weight": "inner/a.safetensors"}}', "names inner/a.safetensors: wanted"),
        (b'{"weight_map": {"lm_head.weight": "..\\\\a.safetensors"}}', "wanted safetensors files in the folder itself"),
        (b'{"weight_map": {"lm_head.weight": "pytorch_model.bin"}}', "names pytorch_model.bin: wanted safetensors"),
        (
            b'{"weight_map": {"lm_head.weight": "absent.safetensors"}}',
            f"lacks absent.safetensors, which its {INDEX} names",
        ),
    ],
)
def test_an_index_that_names_no_shards_of_the_folder_is_said(
    content: bytes, words: str, sharded: Path, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path / "tiny")
    (sharded / INDEX).write_bytes(content)
    refused_by_both(sharded, tmp_path, words)


def change_index(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_an_index_of_other_shards_is_said(sharded: Path, tmp_path: Path) -> None:
    change_index(sharded, lambda places: places.pop("lm_head.weight"))
    refused_by_both(sharded, tmp_path, f"holds other tensors than {INDEX} says (lm_head.weight)")
    first = min(path.name for path in sharded.glob("model-*.safetensors"))
    change_index(sharded, lambda places: places.update({"lm_head.weight": first}))
    refused_by_both(sharded, tmp_path, f"holds other tensors than {INDEX} says")


def test_a_tensor_in_two_shards_is_said(sharded: Path, tmp_path: Path) -> None:
    first, *_, last = sorted(sharded.glob("model-*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(last), name: tensor + 1}, last, metadata={"format": "pt"})
    refused_by_both(sharded, tmp_path, f"{last.name} holds other tensors than {INDEX} says ({name})")


def test_stale_weights_beside_an_index_are_said(tiny: Path, sharded: Path, tmp_path: Path) -> None:
    """What transformers reads is the single file, the index names the shards: which are the model's is not to be guessed."""
    (sharded / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    refused_by_both(sharded, tmp_path, "holds two sets of weights, model.safetensors and the", "remove the one")


def test_an_index_of_the_single_file_is_read(tiny: Path, tmp_path: Path) -> None:
    names = read_headers(tiny, "it")
    (tiny / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    snapshot_model(tmp_path / "snapshot" / "manifest.json", source=f"path:{tiny}")
    assert load_model(tmp_path / "snapshot").n_layers == 2


@pytest.mark.parametrize("beside", [False, True])
def test_an_adapter_is_said(beside: bool, tiny: Path, tmp_path: Path) -> None:
    (tiny / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "someone/base"}')
    if not beside:
        (tiny / "model.safetensors").rename(tiny / "adapter_model.safetensors")
    refused_by_both(tiny, tmp_path, "holds an adapter (adapter_config.json)", "merge it")


def test_pickles_alone_are_said_when_loading_too(tiny: Path, tmp_path: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    refused_by_both(tiny, tmp_path, "only pickle weights (pytorch_model.bin): refused")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ValueError, match=r"it: config.json cannot be read \(Is a directory\): check .* permissions"):
        read_json(tmp_path / "config.json", "it")


def test_some_names_are_given_and_the_rest_counted() -> None:
    assert some({"b", "a"}) == "a, b"
    assert some({"c", "b", "a"}) == "a, b, c"
    assert some({"e", "d", "c", "b", "a"}) == "a, b, c and 2 more"
