"""Every counted token of the chosen heads, in their order, as the ablations files hold it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selfrepair.tables.token_noise import TOKEN_COLUMNS, tabulate_token_noise

from planted.layernorm_run import PlantedRun
from written import write_settings

pytestmark = pytest.mark.filterwarnings("error")


def test_rows_are_the_tokens_of_the_ablations(planted_run: PlantedRun, tmp_path: Path) -> None:
    """From position 2 on: those before count nowhere."""
    inputs = planted_run.inputs("resample")
    inputs["heads_table"] = write_settings(tmp_path / "heads.parquet", tokens="all", first_position=2)
    tabulate_token_noise(**inputs, chosen_heads=planted_run.chosen, out=tmp_path / "tokens.parquet")
    table = pd.read_parquet(tmp_path / "tokens.parquet")
    # The chosen heads are the first two of the ablations.
    measured = planted_run.token_values("resample", *TOKEN_COLUMNS)
    rows = {name: values[:2, :, 2:] for name, values in zip(TOKEN_COLUMNS, measured, strict=True)}
    rank, prompt, pos = np.indices(rows["direct_effect"].shape)
    wanted = {"rank": rank + 1, "layer": 0 * rank, "head": rank, "prompt": prompt, "pos": pos + 2, **rows}
    wanted["selected"] = planted_run.top_tokens()[:2, :, 2:]
    assert list(table) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(table[name], values.ravel(), err_msg=name)


def test_top_tokens_alone_are_refused(planted_run: PlantedRun, tmp_path: Path) -> None:
    inputs = planted_run.inputs("resample")
    inputs["heads_table"] = write_settings(tmp_path / "heads.parquet", tokens="top")
    with pytest.raises(ValueError, match="hold top tokens alone: set ablations"):
        tabulate_token_noise(**inputs, chosen_heads=planted_run.chosen, out=tmp_path / "tokens.parquet")
