"""Heads that answer one another: against hooked runs of the whole model, and planted models in which the answer is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import selfrepair
from selfrepair.engine.clean import by_head, run_clean
from selfrepair.engine.single_attention import Attentions
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.files.sealed import write_json
from selfrepair.files.tables import write_table
from selfrepair.measure.ablations import sweep
from selfrepair.measure.moved_residual import moved_changes
from selfrepair.measure.reinforcement import ADDED, _added, reinforce_heads
from selfrepair.model.calls import hooked
from selfrepair.model.model import Model
from selfrepair.quantities import PARTS
from selfrepair.tables.repair import (
    CONTROLS,
    _regression,
    _repairs,
    condense_reinforcement,
    correlate_next_layer,
    repair_by_layer,
    strongest_pairs,
    tabulate_repair,
)
from selfrepair.tables.statistics import estimate_weights
from selfrepair.workflow.progress import Progress

from conftest import random_model
from planted import backup

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


def settings_table(path: Path, **attrs: object) -> Path:
    table = pd.DataFrame({"layer": [0]})
    table.attrs = {"ablation": "resample", "parallel_attention_mlp": False, **attrs}
    write_table(table, path, table.attrs)
    return path


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
    condense_reinforcement(
        shards=[tmp_path / "0.h5"],
        heads_table=settings_table(tmp_path / "heads.parquet"),
        out=tmp_path / "table.parquet",
        n_bootstrap=200,
        bootstrap_seed=0,
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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_add_up_to_self_repair_and_intervals_are_over_prompts(
    name: str, tokens: np.ndarray, donors: np.ndarray, tmp_path: Path
) -> None:
    """From files of two shards, of which one holds top tokens alone, as sweeps of all heads write them."""
    model = load(name)
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    selected = np.random.default_rng(5).random((12, 6, 9)) < 0.3
    parts = [slice(0, 4), slice(4, 6)]
    shards = [tmp_path / "0.h5", tmp_path / "1.h5"]
    for path, part in zip(shards, parts, strict=True):
        ids = torch.from_numpy(tokens[part])
        clean, donor = run_clean(model, ids), run_clean(model, torch.from_numpy(donors[part]))
        replacement = donor.z.__getitem__
        swept = sweep(model, ids, clean, replacement, heads, quiet(), selected[:, part], part.start > 0)
        write_ablations(path, swept)
    whole = selfrepair.ablate_heads(model, tokens, donors)

    def condensed(quantity: str, pair: tuple[int, int]) -> float:
        row = heads.index(pair)
        return float(whole[quantity].values[row][selected[row]].mean())

    chosen = [(1, 2), (0, 3)]
    write_json(tmp_path / "chosen.json", {"heads": chosen})
    names = ("by_layer", "rows", "pairs")
    tabulate_repair(
        shards=shards,
        thresholds=write_thresholds(tmp_path / "thresholds.h5", selected),
        chosen_heads=tmp_path / "chosen.json",
        heads_table=settings_table(tmp_path / "heads.parquet", parallel_attention_mlp=model.parallel),
        tables={name: tmp_path / f"{name}.parquet" for name in names},
        n_bootstrap=50,
        bootstrap_seed=0,
    )
    by_layer, rows, pairs = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in names)
    for layer, head in chosen:
        of_head = rows[(rows["layer"] == layer) & (rows["head"] == head)]
        repair = of_head.groupby("by")["repair"].sum()
        for by, quantity in (
            ("head", "self_repair_from_heads"),
            ("mlp", "self_repair_from_mlps"),
            ("layernorm", "self_repair_from_layernorm"),
            ("all", "self_repair"),
        ):
            wanted = condensed(quantity, (layer, head))
            assert repair[by] == pytest.approx(wanted, abs=TOLERANCE[name])
            assert abs(wanted) > 1e-4
        assert (of_head["n_tokens"] == selected[heads.index((layer, head))].sum()).all()

    # The last layer's MLP, of heads of the layer before: each head's ratio of sums, resample by resample.
    drawn = [np.arange(6), *np.random.default_rng(0).integers(6, size=(50, 6))]
    repair = np.where(selected, whole["self_repair_from_mlps"], 0).sum(-1)[8:]
    if not model.parallel:
        means = [(repair[:, some].sum(1) / selected[8:, some].sum((1, 2))).mean() for some in drawn]
        cell = by_layer.set_index(["layer", "by", "by_layer"]).loc[(2, "mlp", 2)]
        wanted = [means[0], *np.quantile(means[1:], [0.025, 0.975])]
        assert cell[["repair", "repair_low", "repair_high"]].tolist() == pytest.approx(wanted, abs=TOLERANCE[name])
        assert cell["n_heads"] == 4
    assert (by_layer["repair_low"] < by_layer["repair_high"]).all()
    strongest = pairs[pairs["by"] == "head"].set_index("rank")["repair"].abs()
    assert strongest.index.tolist() == [1, 2, 3, 4, 5, 6]
    assert strongest.is_monotonic_decreasing
    both = rows.merge(pairs, on=["layer", "head", "by", "by_layer", "by_head"])
    assert len(both) > 0
    for end in ("", "_low", "_high"):
        np.testing.assert_array_equal(both[f"repair{end}_x"], both[f"repair{end}_y"])


def write_ablations(path: Path, dataset: xr.Dataset) -> None:
    with write_hdf5(path, kind="ablations", provenance={}) as file:
        file.put_dataset(dataset)


def write_thresholds(path: Path, selected: np.ndarray) -> Path:
    """Top tokens of heads in order, 4 a layer; those of a head with few are listed more than once."""
    n_pos = selected.shape[2]
    tokens = [np.flatnonzero(of_head) for of_head in selected]
    longest = max(map(len, tokens))
    attrs = {"n_pos": n_pos, "n_prompts": selected.shape[1]}
    with write_hdf5(path, kind="thresholds", provenance={}, attrs=attrs) as file:
        file.dims(layer=len(selected) // 4, head=4, top=longest)
        top = np.stack([np.resize(of_head, longest) for of_head in tokens]).reshape(-1, 4, longest)
        file.put("top_tokens", ("layer", "head", "top"), top)
    return path


def repair_of(by_head: np.ndarray, by_mlp: np.ndarray, counts: np.ndarray, heads: list[tuple[int, int]]) -> xr.Dataset:
    """Sums by prompt, as ablations files hold them."""
    return xr.Dataset(
        {
            "repair_by_head": (("head", "prompt", "by_layer", "by_head"), by_head),
            "repair_by_mlp": (("head", "prompt", "by_layer"), by_mlp),
            "n_selected": (("head", "prompt"), counts),
            "layer": (("head",), np.array([layer for layer, _ in heads])),
            "head_index": (("head",), np.array([head for _, head in heads])),
        }
    )


SIX_HEADS = [(layer, head) for layer in range(3) for head in range(2)]


def test_strongest_pairs_are_the_largest_means_of_either_sign() -> None:
    by_head, by_mlp = np.zeros((6, 2, 3, 2)), np.zeros((6, 2, 3))
    by_head[1, :, 2, 0], by_head[2, 0, 2, 1], by_head[0, :, 1, 1] = 0.5, -1.5, 0.1
    by_mlp[5, 0, 2], by_mlp[3, 1, 1] = -2, 0.25
    # The largest sum is of many tokens.
    by_head[4, :, 2, 0] = 8
    counts = np.full((6, 2), 1)
    counts[4] = 50
    repair = repair_of(by_head, by_mlp, counts, SIX_HEADS)
    assert strongest_pairs(repair, 2) == [
        ((1, 0), "head", 2, 1),
        ((0, 1), "head", 2, 0),
        ((2, 1), "mlp", 2, None),
        ((1, 1), "mlp", 1, None),
    ]
    assert len(strongest_pairs(repair, 10)) == 6


@pytest.mark.parametrize("parallel", [False, True])
def test_repair_by_layer_means_over_the_heads_of_a_layer(parallel: bool, rng: np.random.Generator) -> None:
    by_head, by_mlp = rng.normal(size=(6, 4, 3, 2)), rng.normal(size=(6, 4, 3))
    counts = rng.integers(0, 3, size=(6, 4)) + np.eye(6, 4, dtype=int)
    counts[4:, 0] = 1
    weights = estimate_weights(4, 30, 0)
    table = repair_by_layer(repair_of(by_head, by_mlp, counts, SIX_HEADS), parallel, weights)
    table = table.set_index(["layer", "by", "by_layer"])
    n_tokens = counts.sum(1)
    assert table["repair"][0, "heads", 2] == pytest.approx((by_head[:2, :, 2].sum((1, 2)) / n_tokens[:2]).mean())
    assert table["repair"][1, "mlp", 2] == pytest.approx((by_mlp[2:4, :, 2].sum(1) / n_tokens[2:4]).mean())
    assert (1, "heads", 1) not in table.index
    assert ((1, "mlp", 1) in table.index) != parallel


def test_a_model_where_nothing_follows_has_empty_tables() -> None:
    repair = repair_of(np.zeros((1, 4, 1, 1)), np.zeros((1, 4, 1)), np.ones((1, 4), int), [(0, 0)])
    weights = estimate_weights(4, 30, 0)
    table = repair_by_layer(repair, True, weights)
    assert table.empty
    assert {"layer", "by", "by_layer", "n_heads", "repair", "repair_low", "repair_high"} == set(table)
    assert strongest_pairs(repair, 6) == []
    assert _repairs([], repair, {}, weights).empty


@pytest.mark.parametrize("kind", ["zero", "resample"])
def test_planted_backup_head_carries_all_repair(kind: str, tmp_path: Path) -> None:
    model = selfrepair.load_model(backup.backup_model(), dtype="float64")
    tokens, donors = backup.backup_prompts()
    ids = torch.from_numpy(tokens)
    primary, taking_over = backup.PRIMARY, backup.BACKUP
    every = [(layer, head) for layer in range(3) for head in range(4)]
    dataset = selfrepair.ablate_heads(model, tokens, donors if kind == "resample" else None, heads=every, kind=kind)
    at = dataset.isel(head=every.index(primary), pos=backup.ASKED)
    # The head that is ablated predicted the answer, and its loss is made up for by heads, not by MLPs.
    assert float(at["direct_effect"].min()) > 1
    heads, mlps, _ = (at[part].values for part in PARTS)
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

    assert strongest_pairs(repair, 5) == [(primary, "head", *taking_over)]
    table = repair_by_layer(repair, False, estimate_weights(len(tokens), 30, 0)).set_index(["layer", "by", "by_layer"])
    assert table["repair"][0, "heads", 1] == pytest.approx(heads.mean() / 4)
    assert table["repair_low"][0, "heads", 1] > 0
    assert table.drop((0, "heads", 1))["repair"].abs().max() == 0


def test_planted_backup_head_does_without_the_layer_before(tmp_path: Path) -> None:
    """It answers alike to the ablation and to a residual stream without the layer: a correlation of one over heads."""
    model = selfrepair.load_model(backup.backup_model(), dtype="float64")
    tokens, donors = backup.backup_prompts()
    ids = torch.from_numpy(tokens)
    clean, donor = run_clean(model, ids), run_clean(model, torch.from_numpy(donors))
    heads = [backup.PRIMARY, (2, 1)]
    selected = np.zeros((2, len(tokens), tokens.shape[1] - 1), bool)
    selected[..., backup.ASKED] = True
    moved = moved_changes(Attentions(model, tokens.shape[1]), ids, clean, heads, selected)
    write_ablations(tmp_path / "ablations.h5", sweep(model, ids, clean, donor.z.__getitem__, heads, quiet(), selected))
    write_moved(tmp_path / "moved.h5", moved, heads)
    correlations, points = correlate(tmp_path)
    first, last = correlations.iloc[0], correlations.iloc[1]
    assert first[["correlation", "correlation_low", "correlation_high"]].tolist() == pytest.approx([1, 1, 1])
    assert (first["next_layer"], first["n_heads"]) == (1, 4)
    assert np.isnan(last["correlation"])
    assert last["note"] == "in the last layer: no layer follows"
    assert points["next_head"].tolist() == [0, 1, 2, 3]
    backup_row = points[points["next_head"] == backup.BACKUP[1]].iloc[0]
    assert backup_row["change_when_ablated"] > 1
    assert backup_row["change_when_moved"] > 1
    others = points[points["next_head"] != backup.BACKUP[1]]
    assert not others[["change_when_ablated", "change_when_moved"]].to_numpy().any()


def write_moved(path: Path, moved: np.ndarray, heads: list[tuple[int, int]]) -> None:
    with write_hdf5(path, kind="moved_residual", provenance={}) as file:
        file.dims(head=len(heads), prompt=moved.shape[1], next_head=moved.shape[2])
        file.put("layer", ("head",), np.array([layer for layer, _ in heads]))
        file.put("head_index", ("head",), np.array([head for _, head in heads]))
        file.put("moved_change", ("head", "prompt", "next_head"), moved)


def correlate(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    correlate_next_layer(
        ablations=[folder / "ablations.h5"],
        moved=[folder / "moved.h5"],
        heads_table=settings_table(folder / "heads.parquet"),
        tables={"correlations": folder / "correlations.parquet", "heads": folder / "points.parquet"},
        n_bootstrap=50,
        bootstrap_seed=0,
    )
    return pd.read_parquet(folder / "correlations.parquet"), pd.read_parquet(folder / "points.parquet")


def test_correlation_is_that_of_means_over_tokens(tmp_path: Path, rng: np.random.Generator) -> None:
    heads = [(0, 1)]
    counts = rng.integers(0, 4, size=(1, 6))
    by_head, by_mlp = rng.normal(size=(1, 6, 3, 5)), rng.normal(size=(1, 6, 3))
    moved = rng.normal(size=(1, 6, 5))
    write_ablations(tmp_path / "ablations.h5", repair_of(by_head, by_mlp, counts, heads))
    write_moved(tmp_path / "moved.h5", moved, heads)
    correlations, points = correlate(tmp_path)
    x, y = by_head[0, :, 1].sum(0) / counts.sum(), moved[0].sum(0) / counts.sum()
    np.testing.assert_allclose(points["change_when_ablated"], x)
    np.testing.assert_allclose(points["change_when_moved"], y)
    assert correlations["correlation"].iloc[0] == pytest.approx(np.corrcoef(x, y)[0, 1])
    drawn = np.random.default_rng(0).integers(6, size=(50, 6))
    resampled = [np.corrcoef(by_head[0, some, 1].sum(0), moved[0, some].sum(0))[0, 1] for some in drawn]
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert correlations["correlation_low"].iloc[0] == pytest.approx(low)
    assert correlations["correlation_high"].iloc[0] == pytest.approx(high)


def test_heads_without_a_next_layer_give_an_empty_list(tmp_path: Path, tokens: np.ndarray) -> None:
    heads = [(2, 1)]
    counts = np.full((1, 6), 9)
    repair = repair_of(np.zeros((1, 6, 3, 4)), np.zeros((1, 6, 3)), counts, heads)
    write_ablations(tmp_path / "ablations.h5", repair)
    write_moved(tmp_path / "moved.h5", np.full((1, 6, 4), np.nan), heads)
    correlations, points = correlate(tmp_path)
    assert correlations["note"].tolist() == ["in the last layer: no layer follows"]
    assert points.empty


# --- regression ------------------------------------------------------------------------------------------------------


def test_regression_is_that_of_least_squares(rng: np.random.Generator) -> None:
    x = rng.normal(100, 1, size=(2, 3, 4, 20))
    y = 0.7 * x + rng.normal(0, 0.3, size=x.shape)
    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 1]])

    def mean(values: np.ndarray) -> np.ndarray:
        return weights @ values.sum(-1).reshape(-1, 4).T / (weights.sum(1, keepdims=True) * 20)

    slope, r_squared = _regression(x, y, mean)
    for row, drawn in enumerate(([0, 1, 2, 3], [0, 0, 2, 3])):
        for number, (component, layer) in enumerate(np.ndindex(2, 3)):
            of_x, of_y = x[component, layer, drawn].ravel(), y[component, layer, drawn].ravel()
            assert slope[row, number] == pytest.approx(np.polyfit(of_x, of_y, 1)[0])
            assert r_squared[row, number] == pytest.approx(np.corrcoef(of_x, of_y)[0, 1] ** 2)


def test_regression_on_what_does_not_vary_has_no_value(rng: np.random.Generator) -> None:
    constant, varying = np.ones((1, 1, 4, 5)), rng.normal(size=(1, 1, 4, 5))

    def mean(values: np.ndarray) -> np.ndarray:
        return values.mean((2, 3)).reshape(1, -1)

    for x, y in ((constant, varying), (varying, constant)):
        assert np.isnan(_regression(x, y, mean)).all()
