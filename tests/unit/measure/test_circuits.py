"""Heads that answer one another: against hooked runs of the whole model, and planted models in which the answer is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import selfrepair
from selfrepair.engine.clean import by_head, run_clean
from selfrepair.engine.single_attention import Attentions
from selfrepair.engine.sweep import sweep
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.moved_residual import moved_changes
from selfrepair.measure.reinforcement import ADDED, _added, reinforce_heads
from selfrepair.model.calls import hooked
from selfrepair.model.model import Model
from selfrepair.quantities import PARTS, held
from selfrepair.tables.reinforcement import CONTROLS, tabulate_reinforcement
from selfrepair.tables.repair import LayerRepair, PairRepair
from selfrepair.tables.statistics import Resamples
from selfrepair.workflow.progress import Progress

from conftest import random_model
from planted import backup
from written import write_settings

pytestmark = pytest.mark.filterwarnings("error")

ARCHITECTURES = ["gpt2", "llama", "gpt_neox"]
TOLERANCE = {"gpt2": 1e-11, "llama": 1e-6, "gpt_neox": 1e-6}
"""GPT-2 is float64 throughout; the others compute rotary tables in float32, which differ between lengths."""


def load(name: str) -> Model:
    return selfrepair.load_model(random_model(name), dtype="float64")


def quiet() -> Progress:
    return Progress(1, "", "head", show=False)


# --- self-reinforcement ----------------------------------------------------------------------------------------------


def head_effects(model: Model, tokens: torch.Tensor, layer: int, resid: torch.Tensor) -> torch.Tensor:
    """Direct effects [prompt, pos-1, head] of a layer with ``resid`` put into a forward pass of the whole model.

    By hooks and output weights alone, with the clean run's scale.
    """
    seen = {}

    def put(_, args, kwargs):
        return ((resid, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": resid})

    def register():
        return [
            model.layers[layer].register_forward_pre_hook(put, with_kwargs=True),
            model.attention_out(layer).register_forward_pre_hook(lambda _, args: seen.update(z=args[0])),
        ]

    final = []
    with torch.no_grad():
        with hooked(lambda: [model.final_norm_module.register_forward_pre_hook(lambda _, args: final.append(args[0]))]):
            model.hf(input_ids=tokens, use_cache=False)
        with hooked(register):
            model.hf(input_ids=tokens, use_cache=False)
    write = torch.einsum("pthd,hdm->pthm", by_head(model, seen["z"]) - model.value_constant[layer], model.W_O[layer])
    d = model.direction(tokens[:, 1:]) / model.final_norm.scale(final[0][:, :-1])[..., None]
    return torch.einsum("pthm,ptm->pth", write[:, :-1], d)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reinforcement_is_that_of_a_hooked_run(name: str, tokens: np.ndarray) -> None:
    model = load(name)
    ids = torch.from_numpy(tokens)
    clean = run_clean(model, ids)
    rng = np.random.default_rng(5)
    selected = rng.random((3, 4, 6, 9)) < 0.1
    scales = [1.0, 4.0]
    numbers = np.arange(10, 16)
    found = reinforce_heads(Attentions(model, 10), ids, clean, selected, scales, 7, numbers, quiet())
    wanted = np.zeros((3, 4, 6, len(ADDED), len(scales)))
    lengths = np.zeros((3, 4, 6))
    for layer in range(3):
        write = torch.einsum("pthd,hdm->pthm", clean.z[layer] - model.value_constant[layer], model.W_O[layer])
        for prompt in range(6):
            heads, positions = np.nonzero(selected[layer, :, prompt])
            added = _added(write[prompt, positions], heads, np.random.default_rng([7, layer, numbers[prompt]]))
            for row, (head, pos) in enumerate(zip(heads, positions, strict=True)):
                before = clean.resid_pre[layer][prompt, pos]
                lengths[layer, head, prompt] += float(write[prompt, pos, head].norm() / before.norm())
                assert torch.equal(added[row, 0], write[prompt, pos, head])
                for which in range(len(ADDED)):
                    assert float(added[row, which].norm()) == pytest.approx(float(write[prompt, pos, head].norm()))
                    for at, scale in enumerate(scales):
                        resid = clean.resid_pre[layer].clone()
                        resid[prompt, pos] = before + scale * added[row, which]
                        effect = head_effects(model, ids, layer, resid)[prompt, pos, head]
                        wanted[layer, head, prompt, which, at] += float(effect)
    np.testing.assert_allclose(found["reinforced_direct_effect"], wanted, atol=TOLERANCE[name])
    np.testing.assert_allclose(found["relative_length"], lengths, atol=1e-12)
    clean_effects = np.einsum("lpth,lhpt->lhp", clean.head_direct_effect.numpy(), selected)
    np.testing.assert_allclose(found["direct_effect"], clean_effects, atol=1e-12)
    changes = np.abs(wanted - clean_effects[..., None, None])
    assert changes.max((0, 1, 2)).min() > 1e-2


def test_controls_do_not_depend_on_the_shard(tokens: np.ndarray) -> None:
    model = load("gpt2")
    ids = torch.from_numpy(tokens)
    selected = np.random.default_rng(5).random((3, 4, 6, 9)) < 0.2

    def run(rows: slice) -> np.ndarray:
        clean = run_clean(model, ids[rows])
        numbers = np.arange(6)[rows]
        attentions = Attentions(model, 10)
        found = reinforce_heads(attentions, ids[rows], clean, selected[:, :, rows], [1.0], 0, numbers, quiet())
        return found["reinforced_direct_effect"]

    np.testing.assert_allclose(np.concatenate([run(slice(2)), run(slice(2, 6))], axis=2), run(slice(6)), atol=1e-12)


def write_reinforcement(path: Path, sums: dict[str, np.ndarray], selected: np.ndarray, scales: list[float]) -> None:
    layers, heads, prompts = sums["direct_effect"].shape
    with write_hdf5(path, kind="reinforcement", provenance={}) as file:
        file.dims(layer=layers, head=heads, prompt=prompts, added=len(ADDED), scale=len(scales))
        file.put("scale", ("scale",), np.array(scales, float))
        file.put("n_selected", ("layer", "head", "prompt"), selected.sum(-1))
        for name, values in sums.items():
            more = ("added", "scale") if values.ndim == 5 else ()
            file.put(name, ("layer", "head", "prompt", *more), values)


def test_planted_heads_are_labelled(tmp_path: Path) -> None:
    """A head that reads what it writes reinforces itself, its negative represses itself, by the amounts of the formula."""
    model = selfrepair.load_model(backup.reinforcing_model(), dtype="float64")
    rng = np.random.default_rng(1)
    tokens = torch.from_numpy(rng.integers(0, 6, size=(24, 12)))
    clean = run_clean(model, tokens)
    effects = clean.head_direct_effect.permute(0, 3, 1, 2).numpy()
    selected = effects > np.quantile(effects, 0.8, axis=(2, 3), keepdims=True)
    selected[0, 3] = np.random.default_rng(2).random((24, 11)) < 0.2  # writes nothing, so it has no largest
    scales = [1.0, 3.0]
    sums = reinforce_heads(Attentions(model, 12), tokens, clean, selected, scales, 0, np.arange(24), quiet())

    def normed(resid: np.ndarray) -> np.ndarray:
        centred = resid - resid.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    resid = clean.resid_pre[0].numpy()
    for head in (backup.REINFORCING, backup.REPRESSING, backup.INDIFFERENT):
        write = ((clean.z[0] - model.value_constant[0])[:, :, head] @ model.W_O[0][head]).numpy()
        d = (model.direction(tokens[:, 1:]) / clean.scale[..., None]).numpy() @ model.W_O[0][head, 0].numpy()
        for at, scale in enumerate(scales):
            # Attention is even, so that a position has 1 / (number of positions up to it) in its own average.
            change = backup.read(normed(resid + scale * write), head) - backup.read(normed(resid), head)
            wanted = (change / np.arange(1, 13))[:, :-1] * d
            found = sums["reinforced_direct_effect"][0, head, :, 0, at] - sums["direct_effect"][0, head]
            np.testing.assert_allclose(found, np.where(selected[0, head], wanted, 0).sum(-1), atol=1e-11)

    write_reinforcement(tmp_path / "0.h5", sums, selected, scales)
    tabulate_reinforcement(
        shards=[tmp_path / "0.h5"],
        heads_table=write_settings(tmp_path / "heads.parquet", n_prompts=24, n_bootstrap=200),
        out=tmp_path / "table.parquet",
    )
    table = pd.read_parquet(tmp_path / "table.parquet")
    labels = table.groupby("head")["label"].agg(list)
    assert labels[backup.REINFORCING] == ["reinforcing"] * 2
    assert labels[backup.REPRESSING] == ["repressing"] * 2
    assert labels[backup.INDIFFERENT] == ["neither"] * 2
    assert labels[3] == ["neither"] * 2
    for _, row in table.iterrows():
        means = sums["reinforced_direct_effect"][0, row["head"], :, :, scales.index(row["scale"])].sum(0)
        means = means / selected[0, row["head"]].sum()
        mean = sums["direct_effect"][0, row["head"]].sum() / selected[0, row["head"]].sum()
        assert row["change"] == pytest.approx(means[0] - mean, abs=1e-12)
        for number, control in enumerate(CONTROLS, start=1):
            assert row[f"change_beyond_{control}"] == pytest.approx(means[0] - means[number], abs=1e-12)


# --- the next layer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_moved_residual_is_that_of_a_hooked_run(name: str, tokens: np.ndarray) -> None:
    model = load(name)
    ids = torch.from_numpy(tokens)
    clean = run_clean(model, ids)
    heads = [(1, 2), (0, 3), (2, 0), (1, 0)]
    selected = np.random.default_rng(5).random((4, 6, 9)) < 0.3
    found = moved_changes(Attentions(model, 10), ids, clean, heads, selected)
    for row, (layer, _) in enumerate(heads):
        if layer == 2:
            assert np.isnan(found[row]).all()
            continue
        moved = head_effects(model, ids, layer + 1, clean.resid_pre[layer])
        change = (moved - clean.head_direct_effect[layer + 1]).numpy()
        wanted = np.where(selected[row, :, :, None], change, 0).sum(1)
        np.testing.assert_allclose(found[row], wanted, atol=1e-11 if name == "gpt2" else 1e-6)
        assert np.abs(wanted).max() > 1e-2


# --- who repairs whom ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zero", "resample"])
def test_planted_backup_head_carries_all_repair(kind: str) -> None:
    model = selfrepair.load_model(backup.backup_model(), dtype="float64")
    tokens, donors = backup.backup_prompts()
    ids = torch.from_numpy(tokens)
    primary, taking_over = backup.PRIMARY, backup.BACKUP
    every = [(layer, head) for layer in range(3) for head in range(4)]
    dataset = selfrepair.ablate_heads(model, tokens, donors if kind == "resample" else None, heads=every, kind=kind)
    at = dataset.isel(head=every.index(primary), pos=backup.ASKED)
    # The head that is ablated predicted the answer, and its loss is made up for by heads, not by MLPs.
    assert float(at["direct_effect"].min()) > 1
    heads, mlps, _ = (at[part].values for part in held(PARTS, at))
    removed = (at["direct_effect"] - at["ablated_direct_effect"]).values
    assert (heads > 0.9 * removed).all()
    assert not mlps.any()

    selected = np.zeros((12, *dataset["logit_change"].shape[1:]), bool)
    selected[..., backup.ASKED] = True
    clean, donor = run_clean(model, ids), run_clean(model, torch.from_numpy(donors))

    def zero(layer: int) -> torch.Tensor:
        return model.value_constant[layer].expand(*tokens.shape, -1, -1)

    replacement = donor.z.__getitem__ if kind == "resample" else zero
    repair = sweep(model, ids, clean, replacement, every, quiet(), selected)
    by_head = repair["repair_by_head"].values.copy()
    row = by_head[every.index(primary)]
    np.testing.assert_allclose(row[:, *taking_over], heads, atol=1e-12)
    row[:, *taking_over] = 0
    # Nothing else is repaired, and by nothing else.
    assert not by_head.any()
    assert not repair["repair_by_mlp"].values.any()

    pairs, layers = PairRepair(), LayerRepair(Resamples.drawn(len(tokens), 30, 0), parallel=False)
    pairs.add(repair)
    layers.add(repair)
    assert pairs.strongest(5) == [(primary, "head", *taking_over)]
    table = layers.table().set_index(["layer", "by", "by_layer"])
    assert table["repair"][0, "heads", 1] == pytest.approx(heads.mean() / 4)
    assert table["repair_low"][0, "heads", 1] > 0
    assert table.drop((0, "heads", 1))["repair"].abs().max() == 0
