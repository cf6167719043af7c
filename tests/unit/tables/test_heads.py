"""Condensed heads of a planted model: what repairs, and by how much."""

import pytest

from selfrepair.quantities import ABLATION_KINDS

from planted.layernorm_run import PlantedRun

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("kind", ABLATION_KINDS)
def test_the_planted_head_is_repaired_by_the_norm_alone(planted_run: PlantedRun, kind: str) -> None:
    heads = planted_run.heads(kind)
    row = heads[(heads["layer"] == 0) & (heads["head"] == 0) & (heads["selection"] == "top")].iloc[0]
    assert row["self_repair_from_heads"] == row["self_repair_from_mlps"] == 0
    assert row["self_repair_from_layernorm"] == pytest.approx(row["self_repair"], rel=1e-9)
    assert row["self_repair_low"] > 0.1
