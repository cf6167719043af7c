"""Means over the strongest head's tokens, and the tokens themselves, of a planted model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selfrepair.quantities import ABLATION_KINDS
from selfrepair.tables.ablation_type import tabulate_ablation_type

from planted.layernorm import HEAD
from planted.layernorm_run import PlantedRun

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("kind", ABLATION_KINDS)
def test_the_norm_repairs_what_was_planted(planted_run: PlantedRun, kind: str, tmp_path: Path) -> None:
    files = {"tokens": tmp_path / "tokens.parquet", "means": tmp_path / "means.parquet"}
    tabulate_ablation_type(**planted_run.inputs(kind), chosen_heads=planted_run.chosen, **files)
    tokens, means = (pd.read_parquet(path) for path in files.values())
    assert means["selection"].tolist() == ["top", "all"]
    assert (means["residual_norm_ratio_high"] < 1).all()
    np.testing.assert_allclose(means["self_repair_from_layernorm"], means["self_repair"], rtol=1e-9)
    # The planted head is the first.
    assert set(zip(tokens["layer"], tokens["head"], strict=True)) == {HEAD}
    (effect,) = planted_run.token_values(kind, "direct_effect")
    np.testing.assert_array_equal(tokens["direct_effect"], effect[0].ravel())
    np.testing.assert_array_equal(tokens["selected"], planted_run.top_tokens()[0].ravel())
    for _, row in means.iterrows():
        counted = tokens[tokens["selected"]] if row["selection"] == "top" else tokens
        assert row["n_tokens"] == len(counted)
        for name in ("direct_effect", "logit_change", "residual_norm_ratio"):
            assert row[name] == pytest.approx(counted[name].mean())
