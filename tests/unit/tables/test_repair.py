"""Who repairs whom: rows add up to self-repair of a real sweep; pairs and layers by made-up sums."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import selfrepair
from selfrepair.engine.clean import run_clean
from selfrepair.engine.sweep import sweep
from selfrepair.files.sealed import write_json
from selfrepair.tables.repair import LayerRepair, PairRepair, prompts_of_half, tabulate_repair
from selfrepair.tables.statistics import Resamples
from selfrepair.workflow.progress import Progress

from conftest import random_model
from written import repair_of, write_ablations, write_settings, write_thresholds

pytestmark = pytest.mark.filterwarnings("error")

TOLERANCE = {"gpt2": 1e-11, "llama": 1e-6, "gpt_neox": 1e-6}
"""GPT-2 is float64 throughout; the others compute rotary tables in float32, which differ between lengths."""
SIX_HEADS = [(layer, head) for layer in range(3) for head in range(2)]


@pytest.mark.parametrize("name", TOLERANCE)
def test_rows_add_up_to_self_repair_and_intervals_are_over_prompts(
    name: str, tokens: np.ndarray, donors: np.ndarray, tmp_path: Path
) -> None:
    """From files of two shards, of which one holds top tokens alone, as sweeps of all heads write them."""
    model = selfrepair.load_model(random_model(name), dtype="float64")
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    selected = np.random.default_rng(5).random((12, 6, 9)) < 0.3
    parts = [slice(0, 4), slice(4, 6)]
    shards = [tmp_path / "0.h5", tmp_path / "1.h5"]
    for path, part in zip(shards, parts, strict=True):
        ids = torch.from_numpy(tokens[part])
        clean, donor = run_clean(model, ids), run_clean(model, torch.from_numpy(donors[part]))
        replacement = donor.z.__getitem__
        with Progress(1, "", "head", show=False) as bar:
            swept = sweep(model, ids, clean, replacement, heads, bar, selected[:, part], part.start > 0)
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
        heads_table=write_settings(tmp_path / "heads.parquet", parallel_attention_mlp=model.parallel),
        tables={name: tmp_path / f"{name}.parquet" for name in names},
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


def test_strongest_pairs_are_the_largest_means_of_either_sign() -> None:
    by_head, by_mlp = np.zeros((6, 2, 3, 2)), np.zeros((6, 2, 3))
    by_head[1, :, 2, 0], by_head[2, 0, 2, 1], by_head[0, :, 1, 1] = 0.5, -1.5, 0.1
    by_mlp[5, 0, 2], by_mlp[3, 1, 1] = -2, 0.25
    # The largest sum is of many tokens.
    by_head[4, :, 2, 0] = 8
    counts = np.full((6, 2), 1)
    counts[4] = 50
    pairs = PairRepair()
    for prompt in range(2):
        pairs.add(repair_of(by_head, by_mlp, counts, SIX_HEADS).isel(prompt=[prompt]))
    assert pairs.strongest(2) == [
        ((1, 0), "head", 2, 1),
        ((0, 1), "head", 2, 0),
        ((2, 1), "mlp", 2, None),
        ((1, 1), "mlp", 1, None),
    ]
    assert len(pairs.strongest(10)) == 6


@pytest.mark.parametrize("parallel", [False, True])
def test_repair_by_layer_means_over_the_heads_of_a_layer(parallel: bool, rng: np.random.Generator) -> None:
    by_head, by_mlp = rng.normal(size=(6, 4, 3, 2)), rng.normal(size=(6, 4, 3))
    counts = rng.integers(0, 3, size=(6, 4)) + np.eye(6, 4, dtype=int)
    counts[4:, 0] = 1
    layers = LayerRepair(Resamples.drawn(4, 30, 0), parallel)
    for prompts in (slice(0, 3), slice(3, 4)):
        layers.add(repair_of(by_head, by_mlp, counts, SIX_HEADS).isel(prompt=prompts))
    table = layers.table().set_index(["layer", "by", "by_layer"])
    n_tokens = counts.sum(1)
    assert table["repair"][0, "heads", 2] == pytest.approx((by_head[:2, :, 2].sum((1, 2)) / n_tokens[:2]).mean())
    assert table["repair"][1, "mlp", 2] == pytest.approx((by_mlp[2:4, :, 2].sum(1) / n_tokens[2:4]).mean())
    assert (1, "heads", 1) not in table.index
    assert ((1, "mlp", 1) in table.index) != parallel


def test_a_model_where_nothing_follows_has_empty_tables() -> None:
    repair = repair_of(np.zeros((1, 4, 1, 1)), np.zeros((1, 4, 1)), np.ones((1, 4), int), [(0, 0)])
    layers, pairs = LayerRepair(Resamples.drawn(4, 30, 0), True), PairRepair()
    layers.add(repair)
    pairs.add(repair)
    table = layers.table()
    assert table.empty
    assert {"layer", "by", "by_layer", "n_heads", "repair", "repair_low", "repair_high"} == set(table)
    assert pairs.strongest(6) == []


@pytest.mark.parametrize(
    ("sums", "half"),
    [
        ([1, 1, 1, 1], 2),
        ([10, 1, 1], 1),
        ([-1, 2, -9], 1),
        ([3, 3, 3, -2], 2),
        ([0, 5, 0, 4, 0, 3], 2),
        ([-1, -1, -1], 2),
    ],
)
def test_the_fewest_prompts_that_carry_half(sums: list[float], half: int) -> None:
    assert prompts_of_half(np.array(sums, float)) == half
