"""Weights that are not the model's are refused by name, by the snapshot and by `load_model` alike; sound ones are read."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, RopeScalingType
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification, LlamaModel

from selfrepair.model.loading import load_model
from selfrepair.snapshots import weights
from selfrepair.snapshots.folder import read_headers
from selfrepair.snapshots.models import snapshot_model
from selfrepair.snapshots.weights import compare, load_checked, load_gguf

from conftest import CONFIGS, random_model
from tiny_model import save_tiny_model

Tensors = dict[str, Tensor]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def change_weights(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Save the folder's weights as `change` leaves or returns them."""
    tensors = load_file(folder / "model.safetensors")
    changed = change(tensors)
    save_file(tensors if changed is None else changed, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def adding(**tensors: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda there: {**there, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def as_type(dtype: torch.dtype, part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor.to(dtype) if part in name else tensor for name, tensor in tensors.items()}


def stretched(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.cat([tensors[name], tensors[name][:1]])}


def filled(name: str, value: float) -> Callable[[Tensors], Tensors]:
    """One row of a tensor set to a value."""
    return lambda tensors: {**tensors, name: torch.cat([tensors[name][:1].fill_(value), tensors[name][1:]])}


def refusals(folder: Path, elsewhere: Path) -> list[str]:
    """What the snapshot and `load_model` say of a folder that both must refuse."""
    manifest = elsewhere / "snapshot" / "manifest.json"
    with pytest.raises(ValueError, match=str(folder)) as snapshot:
        snapshot_model(manifest, source=f"path:{folder}")
    assert list(manifest.parent.iterdir()) == []
    with pytest.raises(ValueError, match=str(folder)) as loading:
        load_model(folder)
    said = [str(snapshot.value), str(loading.value)]
    assert all(len(words.splitlines()) == 1 for words in said)
    return said


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A sound Llama of two layers, untied."""
    save_tiny_model(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (without(Q_PROJ), {}, [f"1 missing ({Q_PROJ})"]),
        (without("model.norm.weight"), {}, ["1 missing (model.norm.weight)"]),
        (without("lm_head.weight"), {}, ["1 missing (lm_head.weight)", "take the whole model"]),
        (without("model.embed_tokens.weight", "lm_head.weight"), {"tie_word_embeddings": True}, ["2 missing"]),
        (None, {"num_hidden_layers": 3}, ["9 missing (model.layers.2.", "and 6 more"]),
        (None, {"num_hidden_layers": 1}, ["9 unexpected (model.layers.1.", "and 6 more"]),
        (None, {"vocab_size": 10}, ["2 of another shape", "lm_head.weight [9, 16], wanted [10, 16]"]),
        (None, {"num_key_value_heads": 4}, ["4 of another shape", "k_proj.weight [8, 16], wanted [16, 16]"]),
        (None, {"attention_bias": True}, ["8 missing", "k_proj.bias"]),
        (adding(model__layers__0__mlp__gate__weight=torch.ones(4)), {}, ["1 unexpected (model.layers.0.mlp.gate.weight)"]),
        (adding(model__layers__0__self_attn__q_proj__weight_scale=torch.ones(1)), {}, ["1 unexpected", "weight_scale"]),
        (stretched(Q_PROJ), {}, [f"1 of another shape ({Q_PROJ} [17, 16], wanted [16, 16])"]),
        (prefixed("module."), {}, ["21 missing", "21 unexpected (module.lm_head.weight"]),
        (prefixed("transformer."), {}, ["21 missing", "21 unexpected"]),
        (prefixed("base_model.model."), {}, ["21 missing", "21 unexpected"]),
        (prefixed("model.model."), {}, ["missing", "unexpected"]),
        (as_type(torch.float8_e4m3fn, "proj"), {}, ["14 tensors are F8_E4M3", "without their scales"]),
        (as_type(torch.float8_e5m2, "q_proj"), {}, ["2 tensors are F8_E5M2"]),
        (as_type(torch.int8, "mlp"), {}, ["6 tensors are I8"]),
        (as_type(torch.uint8, "proj"), {}, ["14 tensors are U8"]),
        (
            adding(layers__0__self_attn__q_proj__weight=torch.zeros(16, 16)),
            {},
            ["1 given twice", f"{Q_PROJ} by layers.0.self_attn.q_proj.weight and {Q_PROJ}"],
        ),
        (None, {"tie_word_embeddings": True}, ["lm_head.weight", "embed_tokens.weight differ", "tie_word_embeddings"]),
    ],
)  # fmt: skip
def test_weights_that_are_not_the_models_are_refused_by_name(
    change: Callable[[Tensors], Tensors] | None, config: dict[str, object], words: list[str], tiny: Path, tmp_path: Path
) -> None:
    if change is not None:
        change_weights(tiny, change)
    change_config(tiny, **config)
    for said in refusals(tiny, tmp_path):
        assert [word for word in words if word not in said] == [], said


@pytest.mark.parametrize("kind", ["classifier", "embedding", "classifier of a tied model"])
def test_another_kind_of_model_is_refused_with_its_class(kind: str, tiny: Path, tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(tiny)
    whole.config.tie_word_embeddings = "tied" in kind
    other = (LlamaModel if kind == "embedding" else LlamaForSequenceClassification)(whole.config)
    other.save_pretrained(tiny)
    for said in refusals(tiny, tmp_path):
        assert f"says that they are a {type(other).__name__}; wanted a causal language model" in said
        assert ("score.weight" in said) == (kind != "embedding")
        assert ("lm_head.weight" in said) == ("tied" not in kind)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mistral"}, "says model_type mistral, but its architectures name LlamaForCausalLM"),
        ({"model_type": "gemma"}, "says model_type gemma, but its architectures name LlamaForCausalLM"),
        (
            {"architectures": ["Gemma2ForCausalLM"]},
            "says model_type llama, but its architectures name Gemma2ForCausalLM",
        ),
        (
            {"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModelForCausalLM": "own.OwnForCausalLM"}},
            "OwnForCausalLM, whose code comes with it (auto_map) and is never run",
        ),
    ],
)
def test_a_config_of_two_minds_is_refused_though_the_keys_match(
    config: dict[str, object], words: str, tiny: Path, tmp_path: Path
) -> None:
    change_config(tiny, **config)
    for said in refusals(tiny, tmp_path):
        assert words in said


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": None},
        {"architectures": ["LLaMAForCausalLM"]},
        {"architectures": ["LlamaModel"]},
        {"auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}},
    ],
)
def test_a_class_that_is_only_spelled_otherwise_is_read(config: dict[str, object], tiny: Path) -> None:
    change_config(tiny, **config)
    load_checked(tiny, "it", device_map="meta")


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_missing_agrees_with_what_transformers_left_random(name: str, tmp_path: Path) -> None:
    whole = random_model(name, torch.float32)
    whole.save_pretrained(tmp_path)
    names = sorted(load_file(tmp_path / "model.safetensors"))
    assert compare(whole, read_headers(tmp_path, "it"), tmp_path)[0].missing == set()
    for dropped in (names[0], names[len(names) // 2], names[-1]):
        whole.save_pretrained(tmp_path)
        change_weights(tmp_path, without(dropped))
        torch.manual_seed(1)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
        random = {key for key, tensor in whole.state_dict().items() if not torch.equal(tensor, loaded[key])}
        faults, _ = compare(whole, read_headers(tmp_path, "it"), tmp_path)
        assert random
        assert faults.missing == random
        with pytest.raises(ValueError, match=f"{len(random)} missing"):
            load_checked(tmp_path, "it", device_map="meta")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_covered_family_is_read_as_it_was_saved(name: str, tmp_path: Path) -> None:
    whole = random_model(name, torch.float32)
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_model(tmp_path).hf.state_dict()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in whole.state_dict().items())


def tie(folder: Path) -> Tensors:
    """Tie the embeddings of the model in a folder, and give its tensors."""
    change_config(folder, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


@pytest.mark.parametrize("held", ["both", "model.embed_tokens.weight", "lm_head.weight"])
def test_sound_tied_embeddings_are_read(held: str, tiny: Path, tmp_path: Path) -> None:
    tensors = tie(tiny)
    wanted = tensors["lm_head.weight"].clone()
    left_out = {"model.embed_tokens.weight", "lm_head.weight"} - {held}
    change_weights(tiny, lambda _: tensors if held == "both" else without(*left_out)(tensors))
    snapshot_model(tmp_path / "snapshot" / "manifest.json", source=f"path:{tiny}")
    for folder in (tiny, tmp_path / "snapshot"):
        model = load_model(folder)
        assert torch.equal(model.W_U, wanted)
        assert torch.equal(model.hf.get_input_embeddings().weight, wanted)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_prefix_that_transformers_maps_is_read(prefix: str, tiny: Path, tmp_path: Path) -> None:
    """All keys with the base model's name once more, or once less; the unembedding goes by its own."""
    before = load_file(tiny / "model.safetensors")

    def renamed(tensors: Tensors) -> Tensors:
        return {
            name if name.startswith("lm_head") else prefix + (name if prefix else name.removeprefix("model.")): tensor
            for name, tensor in tensors.items()
        }

    change_weights(tiny, renamed)
    snapshot_model(tmp_path / "snapshot" / "manifest.json", source=f"path:{tiny}")
    loaded = load_model(tmp_path / "snapshot").hf.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in before.items())


def old_buffers(name: str, length: int = 64) -> Tensors:
    """What old checkpoints of an architecture hold beside its parameters, in all three layers."""
    mask = torch.ones(1, 1, length, length).tril()
    frequencies = (10000.0 ** -(torch.arange(4) / 4)).half()
    per_layer: dict[str, Tensors] = {
        "gpt2": {"h.{}.attn.bias": mask, "h.{}.attn.masked_bias": torch.tensor(-1e4)},
        "gpt_neox": {
            "gpt_neox.layers.{}.attention.bias": mask.bool(),
            "gpt_neox.layers.{}.attention.masked_bias": torch.tensor(-1e9).half(),
            "gpt_neox.layers.{}.attention.rotary_emb.inv_freq": frequencies[:1],
        },
        "llama": {"model.layers.{}.self_attn.rotary_emb.inv_freq": frequencies},
    }
    return {key.format(layer): tensor.clone() for layer in range(3) for key, tensor in per_layer[name].items()}


def as_published(name: str, folder: Path) -> Tensors:
    """Save a random model as its architecture's first checkpoints were written; its parameters by the model's own names."""
    model = random_model(name, torch.float32)
    model.save_pretrained(folder)
    renamed = {"gpt2": ("transformer.", ""), "gpt_neox": ("lm_head.", "embed_out."), "llama": ("", "")}[name]
    change_weights(folder, lambda tensors: {key.replace(*renamed): tensor for key, tensor in tensors.items()})
    return model.state_dict()


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
def test_buffers_that_the_model_computes_are_left_out_and_named(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parameters = as_published(name, tmp_path)
    extra = old_buffers(name)
    change_weights(tmp_path, lambda tensors: {**tensors, **extra})
    with caplog.at_level(logging.INFO, logger="selfrepair"):
        load_checked(tmp_path, "it", device_map="meta")
        loaded = load_model(tmp_path).hf.state_dict()
    assert (
        sum(f"it: left out, since the model computes them itself: {min(extra)}" in line for line in caplog.messages)
        == 1
    )
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in parameters.items())


@pytest.mark.parametrize(
    ("name", "key", "tensor"),
    [
        ("gpt2", "h.1.attn.bias", torch.ones(1, 1, 64, 64)),  # every position sees every other
        ("gpt2", "h.1.attn.bias", torch.ones(32)),  # a bias, not a mask
        ("gpt2", "h.3.attn.bias", torch.ones(1, 1, 64, 64).tril()),  # a layer that the model has not
        ("gpt2", "h.1.crossattention.bias", torch.ones(1, 1, 64, 64).tril()),
        ("gpt2", "h.1.attn.bias_k", torch.ones(32)),
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias", torch.zeros(())),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias", torch.ones(96)),
        ("gpt_neox", "gpt_neox.layers.5.attention.bias", torch.ones(1, 1, 64, 64).tril()),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", 500000.0 ** -(torch.arange(4) / 4)),  # another theta
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", 10000.0 ** -(torch.arange(8) / 8)),  # of wider heads
        ("llama", "model.layers.7.self_attn.rotary_emb.inv_freq", 10000.0 ** -(torch.arange(4) / 4)),
    ],
)
def test_what_only_looks_like_a_buffer_is_refused(name: str, key: str, tensor: Tensor, tmp_path: Path) -> None:
    as_published(name, tmp_path)
    change_weights(tmp_path, lambda tensors: {**tensors, key: tensor})
    for options in ({"device_map": "meta"}, {}):
        with pytest.raises(ValueError, match=f"1 unexpected .*{key.split('.', 1)[1]}"):
            load_checked(tmp_path, "it", **options)


def test_an_ignore_list_hides_no_missing_weight(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = type(AutoModelForCausalLM.from_pretrained(tiny))
    monkeypatch.setattr(llama, "_keys_to_ignore_on_load_missing", [r"q_proj"], raising=False)
    monkeypatch.setattr(llama, "_keys_to_ignore_on_load_unexpected", [r"surplus"], raising=False)
    change_weights(tiny, without(Q_PROJ))
    change_weights(tiny, adding(surplus=torch.ones(2)))
    for said in refusals(tiny, tmp_path):
        assert f"1 missing ({Q_PROJ}); 1 unexpected (surplus)" in said


def test_both_unembeddings_of_a_gpt_neox_are_one_too_many(tmp_path: Path) -> None:
    as_published("gpt_neox", tmp_path)
    change_weights(tmp_path, lambda tensors: {**tensors, "lm_head.weight": tensors["embed_out.weight"] + 1})
    with pytest.raises(ValueError, match=r"1 given twice \(lm_head.weight by embed_out.weight and lm_head.weight\)"):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(value: float, tiny: Path) -> None:
    change_weights(tiny, filled(Q_PROJ, value))
    with pytest.raises(ValueError, match=f"1 weights hold infinite values or NaN .{Q_PROJ}"):
        load_model(tiny)


def test_large_finite_weights_are_no_reason(tiny: Path) -> None:
    """Their sum is infinite in float32, they are not."""
    change_weights(tiny, filled(Q_PROJ, 1e38))
    load_checked(tiny, "it", dtype=torch.float32)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": 18}, "hidden size (18) is not a multiple"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "not a multiple"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4, not a multiple of num_key_value_heads 3"),
        ({"num_key_value_heads": 0}, "not a multiple of num_key_value_heads 0"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"hidden_size": "wide"}, "config.json describes no model"),
        ({"num_hidden_layers": None}, "config.json"),
        ({"vocab_size": -1}, "config.json"),
        ({"rope_parameters": {"rope_type": "unheard-of", "rope_theta": 1.0}}, "config.json"),
        ({"hidden_act": "unheard-of"}, "config.json"),
        ({"transformers_weights": "other.safetensors"}, "takes the weights from 'other.safetensors'"),
    ],
)
def test_a_config_that_describes_no_model_is_said(
    config: dict[str, object], words: str, tiny: Path, tmp_path: Path
) -> None:
    change_config(tiny, **config)
    for said in refusals(tiny, tmp_path):
        assert words in said


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "mistral", "opt", "phi", "qwen2"])
def test_heads_that_do_not_divide_are_said_in_every_family(name: str, tmp_path: Path) -> None:
    random_model(name, torch.float32).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("n_head", "num_attention_heads", "num_key_value_heads"):
        if key in config:
            config[key] = 5
    (tmp_path / "config.json").write_text(json.dumps({**config, "head_dim": None}))
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        load_model(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_outline_reads_no_weights(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parameters stay on the meta device, so that a snapshot needs no memory for them."""
    hf = load_checked(tiny, "it", device_map="meta", dtype=torch.float32)
    assert all(parameter.is_meta for parameter in hf.parameters())
    with pytest.raises(ValueError, match=r"23 tensors of the model in memory are on the meta device"):
        load_model(hf)


def test_a_model_in_memory_is_the_users_own() -> None:
    """No file, no keys: what is in memory is measured, embeddings of a fresh random model too."""
    assert load_model(random_model("llama", torch.float32)).n_layers == 3


def test_a_weight_that_loading_changes_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = weights._load

    def changes_one(*args: Any, **options: Any) -> Any:
        hf, info = own(*args, **options)
        with torch.no_grad():
            hf.get_parameter(Q_PROJ)[0, 0] += 1
        return hf, info

    load_checked(tiny, "it", dtype=torch.float64)
    monkeypatch.setattr(weights, "_load", changes_one)
    with pytest.raises(ValueError, match=f"1 weights are other numbers in the model than in the file .{Q_PROJ}"):
        load_checked(tiny, "it", dtype=torch.float64)


def test_a_copy_of_a_snapshot_that_lost_a_tensor_is_refused(tiny: Path, tmp_path: Path) -> None:
    snapshot_model(tmp_path / "snapshot" / "manifest.json", source=f"path:{tiny}")
    shutil.copytree(tmp_path / "snapshot", tmp_path / "copy")
    (tmp_path / "copy" / "manifest.json").unlink()
    change_weights(tmp_path / "copy", without(Q_PROJ))
    with pytest.raises(ValueError, match=Q_PROJ):
        load_model(tmp_path / "copy")


def write_gguf(
    path: Path,
    change: Callable[[dict[str, np.ndarray]], object] = lambda _: None,
    name: str = "llama",
    say: Callable[[GGUFWriter], None] = lambda _: None,
) -> None:
    """A random Llama of one layer as a GGUF file, its tensors as `change` leaves them; `say` has it say more of itself."""
    writer = GGUFWriter(path, name)
    writer.add_context_length(32)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(24)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(12)
    say(writer)
    shapes = {
        **{"token_embd": (12, 16), "output_norm": (16,), "output": (12, 16)},
        **{"blk.0.attn_norm": (16,), "blk.0.attn_q": (16, 16), "blk.0.attn_k": (8, 16), "blk.0.attn_v": (8, 16)},
        **{
            "blk.0.attn_output": (16, 16),
            "blk.0.ffn_norm": (16,),
            "blk.0.ffn_gate": (24, 16),
            "blk.0.ffn_up": (24, 16),
        },
        **{"blk.0.ffn_down": (16, 24)},
    }
    random = np.random.default_rng(0)
    tensors = {f"{part}.weight": random.normal(size=shape).astype(np.float32) for part, shape in shapes.items()}
    change(tensors)
    for part, tensor in tensors.items():
        writer.add_tensor(part, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_sound_gguf_file_is_read(tmp_path: Path) -> None:
    given: dict[str, np.ndarray] = {}
    write_gguf(tmp_path / "model.gguf", given.update)
    loaded = load_gguf(tmp_path / "model.gguf").state_dict()
    assert np.array_equal(loaded["model.layers.0.mlp.down_proj.weight"].numpy(), given["blk.0.ffn_down.weight"])
    assert np.array_equal(loaded["lm_head.weight"].numpy(), given["output.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("blk.0.attn_q.weight"), f"1 missing .{Q_PROJ}"),
        (lambda tensors: tensors.pop("token_embd.weight"), "1 missing .model.embed_tokens.weight"),
        # Llama 3's stretched frequencies, which transformers would leave out: another model.
        (
            lambda tensors: tensors.update({"rope_freqs.weight": np.ones(2, np.float32)}),
            "1 unexpected .rope_freqs.weight",
        ),
        (
            lambda tensors: tensors.update({"blk.0.attn_q.bias": np.ones(16, np.float32)}),
            "1 unexpected .blk.0.attn_q.bias",
        ),
        (lambda tensors: tensors.update({"blk.1.attn_q.weight": np.ones((16, 16), np.float32)}), "1 unexpected .blk.1"),
        (lambda tensors: tensors["blk.0.attn_k.weight"].fill(np.nan), "1 weights hold infinite values or NaN"),
    ],
)
def test_a_gguf_file_of_other_tensors_is_refused(
    change: Callable[[dict[str, np.ndarray]], object], words: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "model.gguf", change)
    with pytest.raises(ValueError, match=f"model.gguf: .*{words}") as caught:
        load_gguf(tmp_path / "model.gguf")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["mamba", "bloom", "unheard-of"])
def test_a_gguf_architecture_is_refused_before_its_weights_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "model.gguf", name=name)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=r"model\.gguf"):
        load_gguf(tmp_path / "model.gguf")


def test_a_gguf_file_that_says_more_than_transformers_reads_is_refused(tmp_path: Path) -> None:
    """Rope that is scaled, as in Gemma 3 4B: transformers would run the model without it. Sizes of a head say nothing new."""
    write_gguf(tmp_path / "sound.gguf", say=lambda writer: writer.add_value_length(4))
    load_gguf(tmp_path / "sound.gguf")

    def scale(writer: GGUFWriter) -> None:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)

    write_gguf(tmp_path / "model.gguf", say=scale)
    words = r"model\.gguf: transformers leaves out .*\(rope\.scaling\.\w+: \w+.*, rope\.scaling\.\w+: .*\)"
    with pytest.raises(ValueError, match=words) as caught:
        load_gguf(tmp_path / "model.gguf")
    assert len(str(caught.value).splitlines()) == 1
