"""Correlation over the next layer's heads: one in a planted model, and that of means in made-up sums."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import selfrepair
from selfrepair.engine.clean import run_clean
from selfrepair.engine.single_attention import Attentions
from selfrepair.engine.sweep import sweep
from selfrepair.measure.moved_residual import moved_changes
from selfrepair.tables.moved_residual import tabulate_moved_residual
from selfrepair.workflow.progress import Progress

from planted import backup
from written import repair_of, write_ablations, write_moved, write_settings

pytestmark = pytest.mark.filterwarnings("error")


def tabulated(folder: Path, n_prompts: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Correlations and their points, of the files in a folder."""
    files = {"correlations": folder / "correlations.parquet", "heads": folder / "points.parquet"}
    tabulate_moved_residual(
        ablations=[folder / "ablations.h5"],
        moved=[folder / "moved.h5"],
        heads_table=write_settings(folder / "heads.parquet", n_prompts=n_prompts),
        tables=files,
    )
    correlations, points = (pd.read_parquet(path) for path in files.values())
    return correlations, points


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
    with Progress(1, "", "head", show=False) as bar:
        swept = sweep(model, ids, clean, donor.z.__getitem__, heads, bar, selected)
    write_ablations(tmp_path / "ablations.h5", swept)
    write_moved(tmp_path / "moved.h5", moved, heads)
    correlations, points = tabulated(tmp_path, len(tokens))
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


def test_correlation_is_that_of_means_over_tokens(tmp_path: Path, rng: np.random.Generator) -> None:
    heads = [(0, 1)]
    counts = rng.integers(0, 4, size=(1, 6))
    by_head, by_mlp = rng.normal(size=(1, 6, 3, 5)), rng.normal(size=(1, 6, 3))
    moved = rng.normal(size=(1, 6, 5))
    write_ablations(tmp_path / "ablations.h5", repair_of(by_head, by_mlp, counts, heads))
    write_moved(tmp_path / "moved.h5", moved, heads)
    correlations, points = tabulated(tmp_path, 6)
    x, y = by_head[0, :, 1].sum(0) / counts.sum(), moved[0].sum(0) / counts.sum()
    np.testing.assert_allclose(points["change_when_ablated"], x)
    np.testing.assert_allclose(points["change_when_moved"], y)
    assert correlations["correlation"].iloc[0] == pytest.approx(np.corrcoef(x, y)[0, 1])
    drawn = np.random.default_rng(0).integers(6, size=(50, 6))
    resampled = [np.corrcoef(by_head[0, some, 1].sum(0), moved[0, some].sum(0))[0, 1] for some in drawn]
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert correlations["correlation_low"].iloc[0] == pytest.approx(low)
    assert correlations["correlation_high"].iloc[0] == pytest.approx(high)


def test_heads_without_a_next_layer_give_an_empty_list(tmp_path: Path) -> None:
    heads = [(2, 1)]
    counts = np.full((1, 6), 9)
    repair = repair_of(np.zeros((1, 6, 3, 4)), np.zeros((1, 6, 3)), counts, heads)
    write_ablations(tmp_path / "ablations.h5", repair)
    write_moved(tmp_path / "moved.h5", np.full((1, 6, 4), np.nan), heads)
    correlations, points = tabulated(tmp_path, 6)
    assert correlations["note"].tolist() == ["in the last layer: no layer follows"]
    assert points.empty


def test_one_head_in_the_next_layer_has_nothing_to_correlate(tmp_path: Path, rng: np.random.Generator) -> None:
    heads = [(0, 0), (2, 0)]
    counts = np.full((2, 6), 3)
    repair = repair_of(rng.normal(size=(2, 6, 3, 1)), np.zeros((2, 6, 3)), counts, heads)
    write_ablations(tmp_path / "ablations.h5", repair)
    write_moved(tmp_path / "moved.h5", rng.normal(size=(2, 6, 1)), heads)
    correlations, points = tabulated(tmp_path, 6)
    notes = ["one head in the next layer: nothing to correlate", "in the last layer: no layer follows"]
    assert correlations["note"].tolist() == notes
    assert correlations["correlation"].isna().all()
    assert points[["layer", "next_layer", "next_head"]].to_numpy().tolist() == [[0, 1, 0]]
    assert points["change_when_ablated"].notna().all()
