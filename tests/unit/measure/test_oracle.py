"""Agreement with the authors' own functions (tests/data/oracle)."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import AutoModelForCausalLM

import selfrepair
from selfrepair.engine.clean import run_clean
from selfrepair.model.model import Model

from conftest import ORACLE

QUANTITIES = (
    "direct_effect",
    "ablated_direct_effect",
    "logit_change",
    "self_repair",
    "self_repair_from_heads",
    "self_repair_from_mlps",
    "self_repair_from_layernorm",
    "ablated_scale",
)

# What the authors' own functions are off by in float32, logits (tests/data/oracle). Machines round differently: twice that.
GPT2_NOISE, SMOLLM2_NOISE = 7e-6, 5e-5


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max())


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return difference(got, wanted) / float(np.abs(wanted).max())


def load_oracle(name: str) -> dict[str, np.ndarray]:
    with np.load(ORACLE / f"{name}.npz") as file:
        return dict(file)


def ablate(model: Model, oracle: dict[str, np.ndarray], batch: int, kind: str = "resample") -> xr.Dataset:
    donors = oracle["donor_tokens"][batch] if kind == "resample" else None
    heads = [(int(layer), int(head)) for layer, head in oracle["heads"]]
    return selfrepair.ablate_heads(model, oracle["tokens"][batch], donors, heads=heads, kind=kind)


@pytest.fixture(scope="module")
def gpt2_oracle() -> dict[str, np.ndarray]:
    return load_oracle("tiny_gpt2")


@pytest.fixture(scope="module")
def smollm2_oracle() -> dict[str, np.ndarray]:
    return load_oracle("smollm2_layers_28_29")


def tiny_gpt2(dtype: str) -> Model:
    hf = AutoModelForCausalLM.from_pretrained(ORACLE / "tiny_gpt2", dtype=getattr(torch, dtype)).eval()
    return selfrepair.load_model(hf, dtype=dtype)


@pytest.mark.parametrize("batch", [0, 1])
def test_tiny_gpt2_float64(gpt2_oracle: dict[str, np.ndarray], batch: int) -> None:
    dataset = ablate(tiny_gpt2("float64"), gpt2_oracle, batch)
    for name in QUANTITIES:
        assert relative(dataset[name].values, gpt2_oracle[name][:, batch]) < 1e-12, name
    assert relative(dataset["clean_scale"].values, gpt2_oracle["clean_scale"][batch]) < 1e-12


@pytest.mark.parametrize("kind", ["mean", "zero"])
def test_tiny_gpt2_mean_and_zero(gpt2_oracle: dict[str, np.ndarray], kind: str) -> None:
    model = tiny_gpt2("float64")
    for batch in (0, 1):
        dataset = ablate(model, gpt2_oracle, batch, kind)
        assert relative(dataset["logit_change"].values, gpt2_oracle[f"{kind}_logit_change"][:, batch]) < 1e-12
        assert relative(dataset["ablated_scale"].values, gpt2_oracle[f"{kind}_ablated_scale"][:, batch]) < 1e-12


def test_tiny_gpt2_float32_is_off_by_rounding_alone(gpt2_oracle: dict[str, np.ndarray]) -> None:
    dataset = ablate(tiny_gpt2("float32"), gpt2_oracle, 0)
    for name in QUANTITIES[:-1]:
        assert dataset[name].dtype == np.float32
        assert difference(dataset[name].values, gpt2_oracle[name][:, 0]) < 2 * GPT2_NOISE, name


def test_clean_direct_effects_of_every_component(gpt2_oracle: dict[str, np.ndarray]) -> None:
    model = tiny_gpt2("float64")
    for batch in (0, 1):
        clean = run_clean(model, torch.from_numpy(gpt2_oracle["tokens"][batch]))
        heads = clean.head_direct_effect.movedim(-1, 1).numpy()
        assert relative(heads, gpt2_oracle["clean_head_direct_effect"][batch]) < 1e-12
        assert relative(clean.mlp_direct_effect.numpy(), gpt2_oracle["clean_mlp_direct_effect"][batch]) < 1e-12
        assert relative(clean.correct_logit.numpy(), gpt2_oracle["clean_correct_logit"][batch]) < 1e-12


def test_smollm2_float32(smollm2: Path, smollm2_oracle: dict[str, np.ndarray]) -> None:
    model = selfrepair.load_model(smollm2)
    for kind in ("resample", "mean", "zero"):
        dataset = ablate(model, smollm2_oracle, 0, kind)
        names = QUANTITIES[:-1] if kind == "resample" else ("logit_change",)
        for name in names:
            wanted = smollm2_oracle[name if kind == "resample" else f"{kind}_{name}"][:, 0]
            assert difference(dataset[name].values, wanted) < 2 * SMOLLM2_NOISE, (kind, name)


def test_smollm2_float64(smollm2: Path, smollm2_oracle: dict[str, np.ndarray]) -> None:
    # transformers makes rotary tables in float32, which is all that is left of the difference.
    dataset = ablate(selfrepair.load_model(smollm2, dtype="float64"), smollm2_oracle, 0)
    for name in QUANTITIES:
        assert relative(dataset[name].values, smollm2_oracle[name][:, 0]) < 1e-6, name
