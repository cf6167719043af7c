"""Ablating only what the top tokens need gives what ablating everything gives there."""

import numpy as np
import pytest
import torch
import xarray as xr

import selfrepair
from selfrepair.engine.clean import run_clean
from selfrepair.engine.heads import check_heads
from selfrepair.engine.sweep import sweep
from selfrepair.workflow.progress import Progress

from conftest import VOCAB, random_model


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "mistral", "opt", "phi"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
def test_selected_tokens_alone(name: str, share: float, rng: np.random.Generator) -> None:
    model = selfrepair.load_model(random_model(name), dtype="float64")
    tokens = torch.from_numpy(rng.integers(3, VOCAB, size=(5, 40)))
    heads = check_heads(model, [(0, 1), (1, 0), (1, 3), (2, 2)])
    selected = rng.random((len(heads), 5, 39)) < share
    clean, donor = run_clean(model, tokens), run_clean(model, tokens.flip(0))

    def run(only_selected: bool) -> xr.Dataset:
        with Progress(len(heads), "", "head", show=False) as bar:
            return sweep(model, tokens, clean, donor.z.__getitem__, heads, bar, selected, only_selected)

    everything, alone = run(False), run(True)
    for quantity in (*model.quantities, "ablated_scale"):
        wanted = np.where(selected, everything[quantity], np.nan)
        # Tables of rotary angles are float32, and so differ a little between prompt lengths.
        assert np.allclose(alone[quantity], wanted, atol=1e-6, equal_nan=True), quantity
    for sums, part, of in (
        ("repair_by_head", "heads", ("by_layer", "by_head")),
        ("repair_by_mlp", "mlps", ("by_layer",)),
    ):
        assert np.allclose(alone[sums], everything[sums], atol=1e-6)
        by_prompt = np.where(selected, everything[f"self_repair_from_{part}"], 0).sum(-1)
        assert np.allclose(everything[sums].sum(of), by_prompt, atol=1e-6)
    assert np.array_equal(alone["n_selected"], selected.sum(-1))
    assert bool(np.isnan(alone["logit_change"]).all()) == (not selected.any())
