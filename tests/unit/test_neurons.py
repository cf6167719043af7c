"""Neurons of one MLP: they add up to it in every architecture, and are what the authors' own functions give."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import selfrepair
from selfrepair.clean import run_clean
from selfrepair.models import Model
from selfrepair.neurons import (
    NeuronEffects,
    curve_points,
    measure_neurons,
    neuron_effects,
    reads_head,
    summarise,
    top_percent,
)
from selfrepair.replay import SuffixReplay

from conftest import CONFIGS, ORACLE, random_model


def measure(
    model: Model, tokens: Tensor, donors: Tensor, heads: list[tuple[int, int]], layer: int, selected: np.ndarray
) -> Iterator[NeuronEffects]:
    clean, donor = run_clean(model, tokens), run_clean(model, donors)
    return neuron_effects(model, tokens, clean, donor.z.__getitem__, heads, selected, layer)


def on_grid(parts: Iterator[NeuronEffects], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An attribute as an array [head, prompt, pos-1, ...], NaN where nothing was measured."""
    grid = np.full(shape, np.nan)
    for part in parts:
        grid[part.row, part.prompt, part.pos] = getattr(part, name).numpy()
    return grid


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("neuron_layer", [1, 2])
def test_neurons_add_up_to_their_mlp(
    name: str, neuron_layer: int, tokens: np.ndarray, donors: np.ndarray, rng: np.random.Generator
) -> None:
    """Clean with the output bias, and in what changes when a head is ablated."""
    model = selfrepair.load_model(random_model(name), dtype="float64")
    ids, donor_ids = torch.from_numpy(tokens), torch.from_numpy(donors)
    heads = [pair for pair in [(0, 2), (1, 0), (1, 3), (2, 1)] if reads_head(model, neuron_layer, pair[0])]
    assert len(heads) == {1: 3, 2: 4}[neuron_layer] - (model.parallel * (2 if neuron_layer == 1 else 1))
    selected = rng.random((len(heads), 6, 9)) < 0.3
    clean = run_clean(model, ids)
    replay = SuffixReplay(model, ids, clean)
    bias = getattr(model.mlp_out(neuron_layer), "bias", None)
    constant = torch.zeros_like(clean.scale) if bias is None else replay.scaled @ bias.detach()
    donor = run_clean(model, donor_ids)
    seen = np.zeros_like(selected)
    for part in neuron_effects(model, ids, clean, donor.z.__getitem__, heads, selected, neuron_layer):
        where = part.prompt, part.pos
        seen[part.row, part.prompt, part.pos] = True
        torch.testing.assert_close(
            part.clean.sum(-1) + constant[where], clean.mlp_direct_effect[neuron_layer][where], atol=1e-6, rtol=0
        )
        for token in range(len(part.row)):
            layer, head = heads[part.row[token]]
            one = torch.zeros(1, 6, 9, dtype=torch.bool)
            one[0, part.prompt[token], part.pos[token]] = True
            ((_, alone),) = replay.ablate(layer, [head], donor.z[layer], one)
            wanted = float(alone.repair_by_mlp[0, :, neuron_layer].sum())
            assert float((part.ablated - part.clean)[token].sum()) == pytest.approx(wanted, abs=1e-6)
    assert np.array_equal(seen, selected)


@pytest.mark.parametrize("batch", [0, 1])
def test_tiny_gpt2_has_the_authors_neurons(batch: int) -> None:
    with np.load(ORACLE / "tiny_gpt2.npz") as oracle:
        tokens, donors = (torch.from_numpy(oracle[name][batch]) for name in ("tokens", "donor_tokens"))
        heads = [tuple(oracle["neuron_ablated_head"].tolist())]
        wanted = {
            "clean": oracle["neuron_direct_effect"][batch],
            "ablated": oracle["neuron_ablated_direct_effect"][batch],
        }
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(ORACLE / "tiny_gpt2", dtype=torch.float64).eval()
    model = selfrepair.load_model(hf, dtype="float64")
    parts = list(measure(model, tokens, donors, heads, 3, np.ones((1, 4, 31), bool)))
    for name, array in wanted.items():
        got = on_grid(iter(parts), name, (1, 4, 31, 256))[0]
        assert np.abs(got - np.moveaxis(array, 0, -1)).max() < 1e-10, name
    assert np.abs(wanted["ablated"] - wanted["clean"]).max() > 0.01
