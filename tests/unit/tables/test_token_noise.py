"""Every counted token of the chosen heads, in their order, as the ablations files hold it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from selfrepair.tables.counted_tokens import Ablations, read_ablations, unchanged
from selfrepair.tables.token_noise import TOKEN_COLUMNS, tabulate_token_noise

from planted.layernorm_run import PlantedRun
from written import write_settings

pytestmark = pytest.mark.filterwarnings("error")


def files_in(folder: Path) -> dict[str, Path]:
    return {"tokens_out": folder / "tokens.parquet", "heads_out": folder / "spread.parquet"}


def test_rows_are_the_tokens_of_the_ablations(planted_run: PlantedRun, tmp_path: Path) -> None:
    """From position 2 on: those before count nowhere."""
    inputs = planted_run.inputs("resample")
    inputs["heads_table"] = write_settings(tmp_path / "heads.parquet", tokens="all", first_position=2)
    tabulate_token_noise(**inputs, chosen_heads=planted_run.chosen, **files_in(tmp_path))
    table, spread = (pd.read_parquet(path) for path in files_in(tmp_path).values())
    # The chosen heads are the first two of the ablations.
    measured = planted_run.token_values("resample", *TOKEN_COLUMNS)
    rows = {name: values[:2, :, 2:] for name, values in zip(TOKEN_COLUMNS, measured, strict=True)}
    rank, prompt, pos = np.indices(rows["direct_effect"].shape)
    wanted = {"rank": rank + 1, "layer": 0 * rank, "head": rank, "prompt": prompt, "pos": pos + 2, **rows}
    wanted["selected"] = planted_run.top_tokens()[:2, :, 2:]
    assert list(table) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(table[name], values.ravel(), err_msg=name)
    assert "listed" not in table.attrs
    assert spread[["rank", "layer", "head"]].to_numpy().tolist() == [[1, 0, 0], [2, 0, 1]]
    whole = dict(zip(TOKEN_COLUMNS, measured, strict=True))
    for row, selected in enumerate(planted_run.top_tokens()[:2]):
        repair, change = (whole[name][row][selected] for name in ("self_repair", "logit_change"))
        found = spread.iloc[row]
        assert found["n_tokens"] == len(repair) > 5
        assert found["n_prompts"] == selected.any(1).sum()
        quantiles = found[["self_repair_q10", "self_repair_q50", "self_repair_q90"]]
        np.testing.assert_allclose(quantiles.astype(float), np.quantile(repair, [0.1, 0.5, 0.9]))
        assert found["broken"] == pytest.approx((repair < 0).mean())
        assert found["overcorrected"] == pytest.approx((change > 0).mean())


def test_rounding_neither_breaks_nor_overcorrects(rng: np.random.Generator) -> None:
    """Where the scale and the direct effect are the same but for rounding, whatever sign its change has."""
    shape, eps = (2, 3, 5), np.finfo(np.float32).eps
    effect = rng.normal(2, 0.5, shape).astype(np.float32)
    scale = rng.uniform(1, 3, shape[1:]).astype(np.float32)
    ablations = {"direct_effect": effect, "ablated_direct_effect": effect * (1 + 3 * eps)}
    ablated = np.broadcast_to(scale * (1 - 2 * eps), shape).copy()
    ablated[0, 1, 2] *= 1.001
    ablations["ablated_direct_effect"][1, 0, 0] += 0.01
    of_tokens = {name: (("head", "prompt", "pos"), values) for name, values in ablations.items()}
    dataset = xr.Dataset(
        {**of_tokens, "clean_scale": (("prompt", "pos"), scale), "ablated_scale": (("head", "prompt", "pos"), ablated)}
    )
    assert np.argwhere(~unchanged(dataset)).tolist() == [[0, 1, 2], [1, 0, 0]]


def test_tokens_of_rounding_alone_are_not_counted(
    planted_run: PlantedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an ablation that raises the logit of some; the same tokens stand in all else."""
    name = "selfrepair.tables.token_noise.read_ablations"

    def raised(*inputs: Any) -> Iterator[Ablations]:
        for shard in read_ablations(*inputs):
            change = shard.dataset["logit_change"]
            yield replace(shard, dataset=shard.dataset.assign(logit_change=abs(change), self_repair=-abs(change)))

    monkeypatch.setattr(name, raised)
    spreads = []
    for same in (False, True):
        if same:
            monkeypatch.setattr(
                "selfrepair.tables.token_noise.unchanged", lambda of: np.ones(of["direct_effect"].shape, bool)
            )
        tabulate_token_noise(**planted_run.inputs("resample"), chosen_heads=planted_run.chosen, **files_in(tmp_path))
        spreads.append(pd.read_parquet(tmp_path / "spread.parquet"))
    shares = ["broken", "overcorrected"]
    assert spreads[0][shares].to_numpy().max() > 0.9
    assert spreads[1][shares].to_numpy().max() == 0
    others = [name for name in spreads[0] if not name.startswith(tuple(shares))]
    pd.testing.assert_frame_equal(spreads[0][others], spreads[1][others])


def test_of_many_tokens_a_sample_is_listed_and_said_to_be(
    planted_run: PlantedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tokens of each head; what is counted is counted over all."""
    inputs = planted_run.inputs("resample")
    files = files_in(tmp_path)
    tabulate_token_noise(**inputs, chosen_heads=planted_run.chosen, **files)
    every, spread = (pd.read_parquet(path) for path in files.values())
    monkeypatch.setattr("selfrepair.tables.sample.LISTED", 11)
    tabulate_token_noise(**inputs, chosen_heads=planted_run.chosen, **files)
    table, again = (pd.read_parquet(path) for path in files.values())
    assert (table.attrs["listed"], table.attrs["listed_of"]) == (11, len(every) / 2)
    assert len(table) == 22
    assert len(table.merge(every)) == 22
    first, second = (table[table["rank"] == rank][["prompt", "pos"]].to_numpy() for rank in (1, 2))
    np.testing.assert_array_equal(first, second)
    pd.testing.assert_frame_equal(spread, again)


def test_top_tokens_alone_are_refused(planted_run: PlantedRun, tmp_path: Path) -> None:
    inputs = planted_run.inputs("resample")
    inputs["heads_table"] = write_settings(tmp_path / "heads.parquet", tokens="top")
    with pytest.raises(ValueError, match="hold top tokens alone: set ablations"):
        tabulate_token_noise(**inputs, chosen_heads=planted_run.chosen, **files_in(tmp_path))
