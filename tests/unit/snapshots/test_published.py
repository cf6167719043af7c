"""Which published model a model is, by its config."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, PretrainedConfig

from selfrepair.files.sealed import read_json
from selfrepair.snapshots.manifest import publish, staging
from selfrepair.snapshots.published import check_published, differences, read_facts
from selfrepair.workflow.config import check_published as check_config

from conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("error")

RESOURCES = REPOSITORY / "resources" / "published"
FACTS = RESOURCES / "models.json"
NEOX: dict[str, Any] = {"vocab_size": 50304, "max_position_embeddings": 2048}
MODELS = {
    "gpt2-small": GPT2Config(),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "pythia-160m": GPTNeoXConfig(
        **NEOX, num_hidden_layers=12, num_attention_heads=12, hidden_size=768, intermediate_size=3072
    ),
    "pythia-410m": GPTNeoXConfig(
        **NEOX, num_hidden_layers=24, num_attention_heads=16, hidden_size=1024, intermediate_size=4096
    ),
}
OTHERS = {
    "a llama of 12 x 12": LlamaConfig(num_hidden_layers=12, num_attention_heads=12, hidden_size=768),
    "distilled": GPT2Config(n_layer=6),
    "narrower": GPT2Config(n_embd=384),
    "more tokens": GPT2Config(vocab_size=50304),
    "longer": GPT2Config(n_positions=2048),
    "another activation": GPT2Config(activation_function="relu"),
    "sequential": GPTNeoXConfig(**{**MODELS["pythia-160m"].to_dict(), "use_parallel_residual": False}),
}


def _check(folder: Path, config: PretrainedConfig, published: str | None) -> Any:
    manifest, out = folder / "snapshot" / "manifest.json", folder / "published.json"
    with staging(manifest) as staged:
        config.save_pretrained(staged)
        publish(manifest, staged, {"kind": "model", "source": "path:mine", "license": None})
    check_published(model_manifest=manifest, facts=FACTS, model="mine", published=published, out=out)
    return read_json(out)


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_only_the_model_itself_passes(name: str, tmp_path: Path) -> None:
    config = {**MODELS, **OTHERS}[name]
    for published in MODELS:
        if name == published:
            assert _check(tmp_path, config, published) == {"published": published}
        else:
            with pytest.raises(ValueError, match=f"models.mine.published is {published}, but the model has .*name the"):
                _check(tmp_path, config, published)
    assert _check(tmp_path, config, None) == {"published": None}


def test_models_of_one_shape_are_told_apart() -> None:
    """These have as many layers and heads."""
    told = differences(MODELS["pythia-160m"].to_dict(), "gpt2-small", read_facts(FACTS))
    assert told == ["the model has model_type gpt_neox, gpt2-small has model_type gpt2"]
    told = differences(OTHERS["narrower"].to_dict(), "gpt2-small", read_facts(FACTS))
    assert told == ["the model has n_embd 384, gpt2-small has n_embd 768"]


def test_every_published_model_has_its_facts() -> None:
    facts = read_facts(FACTS)
    values = pd.read_csv(RESOURCES / "self_repair_by_head.csv").groupby("model")
    schema = yaml.safe_load((REPOSITORY / "config" / "config.schema.yaml").read_text())
    published = schema["properties"]["models"]["additionalProperties"]["properties"]["published"]
    assert set(facts) == set(published["enum"]) == set(values.groups)
    for name, config in facts.items():
        shape = (
            config.get("n_layer", config.get("num_hidden_layers")),
            config.get("n_head", config.get("num_attention_heads")),
        )
        assert shape == (values["layer"].max()[name] + 1, values["head"].max()[name] + 1)


@pytest.mark.parametrize("scheme", ["path", "hub"])
def test_what_is_known_is_checked_before_anything_runs(scheme: str, tmp_path: Path) -> None:
    """A path's own config, or that of a snapshot which was taken of the same source."""
    source = f"path:{tmp_path / 'mine'}" if scheme == "path" else f"hub:owner/name@{'0' * 40}"
    config = {"run": {"models": ["m"]}, "models": {"m": {"source": source, "published": "gpt2-small"}}}
    manifest = str(tmp_path / "{name}" / "manifest.json")
    check_config(config, manifest, FACTS)
    folder = tmp_path / ("mine" if scheme == "path" else "m")
    MODELS["pythia-160m"].save_pretrained(folder)
    (folder / "manifest.json").write_text(json.dumps({"source": source}))
    with pytest.raises(ValueError, match=r"models\.m\.published is gpt2-small, but the model has model_type gpt_neox"):
        check_config(config, manifest, FACTS)
    if scheme == "hub":
        (folder / "manifest.json").write_text(json.dumps({"source": "hub:another"}))
        check_config(config, manifest, FACTS)
    MODELS["gpt2-small"].save_pretrained(folder)
    check_config(config, manifest, FACTS)
