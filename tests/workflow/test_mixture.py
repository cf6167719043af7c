"""A whole run of a mixture of experts: a change of experts in every file and table, and neurons that are off by themselves."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from selfrepair.quantities import CHOSEN_EXPERTS
from workflow.conftest import enlarge
from workflow.running import Space

from conftest import MakeOnce
from tiny_model import WORDS

SHARDS = ("00000", "00001")
NEURON_FIGURES = ("neuron_share", "neuron_concentration", "erasure_neurons", "neuron_consistency")
NEURON_TABLES = ("neuron_share", "neuron_concentration", "erasure_neurons", "erasure_quadrants", "neuron_consistency")
NOTE = (
    "layer 1 is a mixture of experts: its neurons differ from token to token; "
    "analyses.neuron_layer can name a dense layer (0)"
)


def save_mixture(folder: Path) -> None:
    """Two layers, the second a mixture of four experts of which each token chooses two."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    config = Qwen3MoeConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        mlp_only_layers=[0],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = Qwen3MoeForCausalLM(config).eval()
    enlarge(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def mixture(fresh: Space, make_once: MakeOnce) -> Space:
    """After a full run of every figure. Only to be read."""

    def fill(folder: Path) -> None:
        space = fresh.copy(folder / "space")
        save_mixture(space.work / "model")
        space.change("analyses.heads", [[0, 1], [1, 2]])
        space.make()

    return Space(make_once("mixture", fill) / "space")


def of_shards(space: Space, folder: str, name: str, axis: int) -> np.ndarray:
    """A variable of all shards, by HDF5 alone."""
    parts = []
    for shard in SHARDS:
        with h5py.File(space.run / folder / f"{shard}.h5") as file:
            parts.append(file[name][...])
    return np.concatenate(parts, axis)


def section(space: Space, figure: str) -> str:
    text = (space.run / "findings.md").read_text(encoding="utf-8")
    return text.split(f"## {figure}\n", 1)[1].split("\n## ", 1)[0]


def test_every_figure_is_there_with_its_finding(mixture: Space) -> None:
    for name in mixture.figures:
        assert (mixture.run / "figures" / f"{name}.png").is_file(), name
        assert section(mixture, name).strip()


def test_chosen_experts_and_their_effects_are_kept(mixture: Space) -> None:
    chosen = of_shards(mixture, "activations", "chosen_experts", 1)
    effects = of_shards(mixture, "activations", "expert_direct_effect", 1)
    assert chosen.shape == effects.shape == (2, 8, 15, 2)
    assert chosen.dtype == np.int16
    assert (chosen[0] == -1).all()
    assert not effects[0].any()
    assert set(np.unique(chosen[1])) <= set(range(4))
    assert (chosen[1, ..., 0] != chosen[1, ..., 1]).all()
    # Qwen3's mixture is its chosen experts alone.
    of_mlp = of_shards(mixture, "activations", "mlp_direct_effect", 1)
    np.testing.assert_allclose(effects[1].sum(-1), of_mlp[1], atol=1e-5)


def test_a_change_of_experts_is_in_tables_and_findings(mixture: Space) -> None:
    for kind in ("resample", "mean", "zero"):
        values = of_shards(mixture, f"ablations/{kind}", CHOSEN_EXPERTS, 1)
        assert values.shape == (8, 8, 15)
        assert np.abs(values).max() > 0.01
        table = pd.read_parquet(mixture.run / "tables" / kind / "heads.parquet")
        rows = table[table["selection"] == "all"]
        np.testing.assert_allclose(rows[CHOSEN_EXPERTS], values.astype(float).mean((1, 2)), atol=1e-6)
        for name in ("layers", "model"):
            assert CHOSEN_EXPERTS in pd.read_parquet(mixture.run / "tables" / kind / f"{name}.parquet")
    assert CHOSEN_EXPERTS in pd.read_parquet(mixture.run / "tables" / "resample" / "layer_ablation.parquet")
    assert "come from a change of the chosen experts" in section(mixture, "mlp_repair")


def test_neurons_are_off_with_the_reason_in_files_tables_and_findings(mixture: Space) -> None:
    for shard in SHARDS:
        with h5py.File(mixture.run / "neurons" / "resample" / f"{shard}.h5") as file:
            assert file.attrs["note"].decode() == NOTE
            assert {name for name in file if name != "head_row"} == {"layer", "head_index"}
    for name in NEURON_TABLES:
        for table in (
            pd.read_parquet(mixture.run / "tables" / "resample" / f"{name}.parquet"),
            pd.read_csv(mixture.run / "tables" / "resample" / f"{name}.csv"),
        ):
            assert table.to_dict("list") == {"rank": [1, 2], "layer": [0, 1], "head": [1, 2], "note": [NOTE] * 2}
    for name in NEURON_FIGURES:
        assert f"- No neurons are compared: {NOTE}." in section(mixture, name)
    checks = pd.read_parquet(mixture.run / "tables" / "resample" / "checks.parquet").set_index("measurement")
    assert checks.loc["neurons", "repeated"] == 0
    assert (checks["repeated"].drop("neurons") > 0).all()


def test_a_dense_layer_that_is_named_is_measured(mixture: Space, tmp_path: Path) -> None:
    space = mixture.copy(tmp_path / "space")
    space.change("analyses.neuron_layer", 0)
    space.make()
    for name in NEURON_TABLES:
        table = pd.read_parquet(space.run / "tables" / "resample" / f"{name}.parquet")
        assert "note" not in table
        assert table.attrs["neuron_layer"] == 0
        assert table.attrs["n_neurons"] == 32
        assert set(table["layer"]) == {0}  # layer 0 does not read the head of layer 1
    assert "No neurons are compared" not in (space.run / "findings.md").read_text(encoding="utf-8")
