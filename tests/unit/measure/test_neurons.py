"""Neurons of one MLP: they add up to it in every architecture, and are what the authors' own functions give."""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import selfrepair
from selfrepair.engine.clean import run_clean
from selfrepair.engine.replay import SuffixReplay
from selfrepair.files.hdf5 import heads_of, open_hdf5
from selfrepair.measure.activations import CachedActivations
from selfrepair.measure.neurons import (
    NeuronEffects,
    curve_points,
    heads_that_reach,
    measure_neurons,
    neuron_effects,
    reads_head,
    summarise,
    top_percent,
)
from selfrepair.measure.shard import Shard
from selfrepair.model.model import Model

from conftest import CONFIGS, ORACLE, in_bfloat16, random_model

HEADS = [(0, 2), (1, 1)]
EFFECTS = ("clean", "ablated")


def measure(
    model: Model, tokens: Tensor, donors: Tensor, heads: list[tuple[int, int]], layer: int, selected: np.ndarray
) -> Iterator[NeuronEffects]:
    clean, donor = run_clean(model, tokens), run_clean(model, donors)
    return neuron_effects(model, tokens, clean, donor.z.__getitem__, heads, selected, layer)


def on_grid(parts: Iterable[NeuronEffects], name: str, shape: tuple[int, ...]) -> np.ndarray:
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
    # In parallel models the MLP does not read the heads of its own layer.
    before = neuron_layer if model.parallel else neuron_layer + 1
    heads = [(0, 2), (1, 0), (1, 3), (2, 1)]
    assert [reads_head(model, neuron_layer, layer) for layer, _ in heads] == [layer < before for layer, _ in heads]
    heads = [pair for pair in heads if pair[0] < before]
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
    hf = AutoModelForCausalLM.from_pretrained(ORACLE / "tiny_gpt2", dtype=torch.float64).eval()
    model = selfrepair.load_model(hf, dtype="float64")
    parts = list(measure(model, tokens, donors, heads, 3, np.ones((1, 4, 31), bool)))
    for name, array in wanted.items():
        got = on_grid(parts, name, (1, 4, 31, 256))[0]
        assert np.abs(got - np.moveaxis(array, 0, -1)).max() < 1e-10, name
    assert np.abs(wanted["ablated"] - wanted["clean"]).max() > 0.01


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-5), ("float64", 1e-6)])
def test_smollm2_has_the_authors_neurons(smollm2: Path, dtype: str, tolerance: float) -> None:
    """Tokens of largest direct effect and others; float64 is off by transformers' float32 rotary tables alone."""
    with np.load(ORACLE / "smollm2_layers_28_29.npz") as oracle, np.load(ORACLE / "smollm2_neurons.npz") as neurons:
        tokens, donors = (torch.from_numpy(oracle[name][0]) for name in ("tokens", "donor_tokens"))
        wanted = dict(neurons)
    head = (int(wanted["ablated_head"][0]), int(wanted["ablated_head"][1]))
    selected = np.zeros((1, 4, 63), bool)
    selected[0, wanted["prompt"], wanted["pos"]] = True
    parts = list(measure(selfrepair.load_model(smollm2, dtype=dtype), tokens, donors, [head], 29, selected))
    clean, ablated = (on_grid(parts, name, (1, 4, 63, 1536))[0, wanted["prompt"], wanted["pos"]] for name in EFFECTS)
    for name, got in (("direct_effect", clean), ("ablated_direct_effect", ablated)):
        assert np.abs(np.take_along_axis(got, wanted["neuron"].astype(int), 1) - wanted[name]).max() < tolerance, name
    change = np.abs(ablated - clean)
    np.testing.assert_allclose(change.sum(1), wanted["total_absolute_change"], rtol=2e-4)
    # The neurons of the excerpt are those that change most here, too.
    largest = np.sort(change, axis=1)[:, ::-1][:, :50]
    np.testing.assert_allclose(np.take_along_axis(change, wanted["neuron"].astype(int), 1), largest, atol=2 * tolerance)


def test_top_tokens_alone_or_all_of_them_give_the_same(
    tokens: np.ndarray, donors: np.ndarray, rng: np.random.Generator
) -> None:
    model = selfrepair.load_model(random_model("gpt2"), dtype="float64")
    ids, donor_ids = torch.from_numpy(tokens), torch.from_numpy(donors)
    shape = (2, 6, 9, model.W_out[2].shape[0])
    some = rng.random(shape[:3]) < 0.1
    every = on_grid(measure(model, ids, donor_ids, HEADS, 2, np.ones(shape[:3], bool)), "ablated", shape)
    alone = on_grid(measure(model, ids, donor_ids, HEADS, 2, some), "ablated", shape)
    np.testing.assert_allclose(alone[some], every[some], atol=1e-10)
    assert np.isnan(alone[~some]).all()
    assert not list(measure(model, ids, donor_ids, HEADS, 2, np.zeros(shape[:3], bool)))


def test_bfloat16_is_off_by_its_rounding(tokens: np.ndarray, donors: np.ndarray) -> None:
    ids, donor_ids = torch.from_numpy(tokens), torch.from_numpy(donors)
    selected = np.ones((2, 6, 9), bool)
    shape = (2, 6, 9, 48)
    hf = in_bfloat16(random_model("llama", torch.float32))
    models = selfrepair.load_model(copy.deepcopy(hf).float()), selfrepair.load_model(hf, weights="bfloat16")
    exact, rounded = (on_grid(measure(model, ids, donor_ids, HEADS, 2, selected), "ablated", shape) for model in models)
    off = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 1e-4 < off < 0.1


def test_neurons_that_do_not_add_up_are_refused(tokens: np.ndarray, donors: np.ndarray) -> None:
    model = selfrepair.load_model(random_model("llama"), dtype="float64")
    model.W_out = [1.01 * weight for weight in model.W_out]
    with pytest.raises(ValueError, match="neurons of layer 2 do not add up to the MLP of LlamaForCausalLM"):
        list(measure(model, torch.from_numpy(tokens), torch.from_numpy(donors), HEADS, 2, np.ones((2, 6, 9), bool)))


def effects_of(clean: list[list[float]], ablated: list[list[float]]) -> NeuronEffects:
    values = [torch.tensor(rows, dtype=torch.float64) for rows in (clean, ablated)]
    at = torch.arange(len(clean))
    return NeuronEffects(at, at, at, values[0], values[1], values[0].sum(-1) + 0.25, at.double())


def test_summary_by_hand() -> None:
    found = summarise(effects_of([[1.0, -2.0, 0.5, 0.5]], [[0.5, -1.0, 0.5, 0.75]]), top_neurons=3)
    assert found["neuron"].values.tolist() == [[1, 3, 2]]
    assert found["direct_effect"].values.tolist() == [[-2.0, 0.5, 0.5]]
    assert found["ablated_direct_effect"].values.tolist() == [[-1.0, 0.75, 0.5]]
    assert found["neurons"].values.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(found["share_of_change"], [[1 / 1.75, 1.5 / 1.75, 1, 1]])
    np.testing.assert_allclose(found["share_of_repair"], [[0.8, 1, 1, 1]])
    np.testing.assert_allclose(found["share_of_direct_effect"], [[0.5, 0.75, 0.875, 1]])
    assert found["total_absolute_change"].item() == 1.75
    assert found["mlp_direct_effect"].item() == 0.25
    assert found["mlp_ablated_direct_effect"].item() == 1.0


def test_rounding_alone_is_no_change() -> None:
    """As at a first token that all prompts share; a change that is small but real stays."""
    clean = [[1.0, -2.0, 0.5]] * 2
    found = summarise(effects_of(clean, [[1.0, -2.0 + 1e-15, 0.5], [1.0, -2.0 + 1e-9, 0.5]]), top_neurons=1)
    assert found["ablated_direct_effect"].values[0] == found["direct_effect"].values[0]
    assert np.isnan(found["share_of_change"].values[0]).all()
    assert found["total_absolute_change"].values[0] == 0
    assert found["neuron"].values[1] == 1
    assert found["ablated_direct_effect"].values[1] > -2


def test_points_of_curves() -> None:
    for n_neurons in (1, 7, 32, 1536, 11008):
        points = curve_points(n_neurons)
        assert points[0] == 1
        assert points[-1] == n_neurons
        assert top_percent(n_neurons) in points
        assert len(points) <= 51
    assert (top_percent(1536), top_percent(3072), top_percent(32)) == (15, 30, 1)


def test_heads_that_the_mlp_does_not_read_are_left_out() -> None:
    model = selfrepair.load_model(random_model("gpt_neox"), dtype="float64")
    assert heads_that_reach(model, 2, [(2, 0), (1, 3), (0, 0)]) == [(1, 3), (0, 0)]
    assert heads_that_reach(model, 1, [(1, 3)]) == []
    with pytest.raises(ValueError, match=r"neuron_layer is 3: .* has layers 0 to 2; null means the last"):
        heads_that_reach(model, 3, [(1, 3)])


@pytest.mark.parametrize(
    ("name", "neuron_layer", "heads", "note"),
    [
        (
            "gpt_neox",
            None,
            [(2, 1), (2, 0)],
            "no chosen head comes before the MLP of layer 2, which runs beside the attention of its layer; analyses.heads can "
            "name heads of layers 0 to 1",
        ),
        (
            "gpt_neox",
            0,
            [(0, 1)],
            "no chosen head comes before the MLP of layer 0, which runs beside the attention of its layer; "
            "analyses.neuron_layer can name layer 1 or a later one",
        ),
        (
            "llama",
            0,
            [(2, 1)],
            "no chosen head comes before the MLP of layer 0; analyses.heads can name heads of layer 0 or "
            "analyses.neuron_layer can name layer 2",
        ),
    ],
)
def test_an_mlp_that_reads_no_head_gives_its_reason(
    tmp_path: Path, name: str, neuron_layer: int | None, heads: list[tuple[int, int]], note: str
) -> None:
    """After the ablations are paid for there is nothing to stop for."""
    model = selfrepair.load_model(random_model(name), dtype="float64")
    none = CachedActivations.__new__(CachedActivations)  # nothing of the clean run is looked at
    shard = Shard(model, slice(0, 4), torch.zeros(4, 9, dtype=torch.long), np.zeros((4, 1), int), none, None, None)
    out = tmp_path / "neurons.h5"
    measure_neurons(
        shard,
        kind="resample",
        heads=heads,
        neuron_layer=neuron_layer,
        top_neurons=5,
        out=out,
        provenance={},
    )
    with open_hdf5(out, "neurons") as dataset:
        assert heads_of(dataset) == heads
        assert dataset.attrs["note"] == note
        assert dataset.attrs["n_neurons"] == 0
