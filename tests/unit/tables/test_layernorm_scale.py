"""Shares of tokens by the ratio of final scales, of a planted model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selfrepair.files.sealed import write_json
from selfrepair.quantities import ABLATION_KINDS
from selfrepair.tables.layernorm_scale import tabulate_layernorm_scale

from planted.layernorm_run import PlantedRun

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("kind", ABLATION_KINDS)
def test_the_scale_shrinks_where_it_was_planted(planted_run: PlantedRun, kind: str, tmp_path: Path) -> None:
    files = {"summary": tmp_path / "ratio.parquet", "histogram": tmp_path / "histogram.parquet"}
    tabulate_layernorm_scale(**planted_run.inputs(kind), chosen_heads=planted_run.chosen, **files)
    ratio = pd.read_parquet(files["summary"])
    planted = ratio[ratio["rank"] == 1]
    assert (planted["share_above_1_low"] == 1).all()
    # A head that writes nothing changes no scale.
    silent = ratio[ratio["rank"] == 2]
    assert (silent["share_above_1"] == 0).all()
    assert (silent["share_unchanged"] == 1).all()


@pytest.mark.parametrize("kind", ABLATION_KINDS)
def test_scale_ratios_are_shares_of_tokens(planted_run: PlantedRun, kind: str, tmp_path: Path) -> None:
    ratios, histogram = tmp_path / "ratio.parquet", tmp_path / "histogram.parquet"
    tabulate_layernorm_scale(
        **planted_run.inputs(kind), chosen_heads=planted_run.chosen, summary=ratios, histogram=histogram
    )
    table, bins = pd.read_parquet(ratios), pd.read_parquet(histogram)
    clean, ablated = planted_run.token_values(kind, "clean_scale", "ablated_scale")
    ratio = clean[None] / ablated
    masks = {"top": planted_run.top_tokens(), "all": np.ones_like(ratio, bool)}
    for _, row in table.iterrows():
        rows = slice(None) if row["rank"] == 0 else slice(row["rank"] - 1, row["rank"])
        values = ratio[rows][masks[row["selection"]][rows]]
        assert row["n_tokens"] == values.size
        assert row["share_above_1"] == pytest.approx(np.mean(values > 1 + 1e-12))
        assert row["mean_ratio"] == pytest.approx(values.mean())
        assert row["mean_ratio_low"] <= row["mean_ratio"] <= row["mean_ratio_high"]
        its = bins[(bins["rank"] == row["rank"]) & (bins["selection"] == row["selection"])]
        assert its["n_tokens"].sum() == values.size
        assert its["share"].sum() == pytest.approx(1)
        for low, high, count in its[["ratio_low", "ratio_high", "n_tokens"]].itertuples(index=False):
            assert count == np.sum((values >= low) & (values < high))
    assert set(table["rank"]) == {0, 1, 2}
    # The planted head counts for so much that ratios lie outside the bins where nothing takes its place.
    assert (
        kind == "resample"
        or bins[(bins["ratio_low"] == 1.5) & (bins["selection"] == "all") & (bins["rank"] == 1)]["n_tokens"].item() > 0
    )


def test_heads_that_were_not_ablated_are_named(planted_run: PlantedRun, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.json"
    write_json(chosen, {"heads": [[0, 0], [1, 7]]})
    with pytest.raises(
        ValueError, match=r"lacks heads \[\(1, 7\)\], which .*chosen\.json names: name them under ablations"
    ):
        tabulate_layernorm_scale(
            **planted_run.inputs("zero"), chosen_heads=chosen, summary=tmp_path / "a", histogram=tmp_path / "b"
        )
