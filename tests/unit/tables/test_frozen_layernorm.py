"""The closed form beside runs that are really frozen: equal in a planted model, an error where they are made to differ."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selfrepair.files.hdf5 import open_hdf5, write_hdf5
from selfrepair.quantities import ABLATION_KINDS
from selfrepair.tables.frozen_layernorm import tabulate_frozen_layernorm

from planted.layernorm import HEAD
from planted.layernorm_run import PlantedRun

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("kind", ABLATION_KINDS)
def test_freezing_agrees_with_the_closed_form(planted_run: PlantedRun, kind: str, tmp_path: Path) -> None:
    out = tmp_path / "frozen.parquet"
    tabulate_frozen_layernorm(
        **planted_run.inputs(kind), chosen_heads=planted_run.chosen, frozen=planted_run.frozen(kind), out=out
    )
    table = pd.read_parquet(out)
    assert [*zip(table["layer"], table["head"], strict=True)] == [HEAD, (0, 1)]
    assert (table["largest_difference"] < 1e-9).all()
    assert (table["layernorm_part_left"] < 1e-9).all()
    first = table.iloc[0]
    assert first["really_frozen_logit_change"] == pytest.approx(first["frozen_layernorm_logit_change"], abs=1e-9)
    # With the scale frozen nothing is repaired: the logit falls by what ablation takes from the head.
    heads = planted_run.heads(kind).iloc[0]
    removed = heads["ablated_direct_effect"] - heads["direct_effect"]
    assert first["really_frozen_logit_change"] == pytest.approx(removed, rel=1e-6)
    assert first["logit_change"] > first["really_frozen_logit_change"] + 0.1


def test_frozen_runs_that_do_not_agree_are_an_error(planted_run: PlantedRun, tmp_path: Path) -> None:
    frozen = []
    for number, path in enumerate(planted_run.frozen("zero")):
        with open_hdf5(path, "frozen_layernorm") as dataset:
            changed = dataset.load()
        if number == 0:
            change = changed["frozen_layernorm_logit_change"].values
            row, prompt, pos = np.argwhere(np.isfinite(change))[0]
            change[row, prompt, pos] += 0.0625
        frozen.append(tmp_path / path.name)
        attrs = {"coordinates": "layer head_index"}
        with write_hdf5(frozen[-1], kind="frozen_layernorm", provenance={}, attrs=attrs) as file:
            file.put_dataset(changed)
    inputs = {**planted_run.inputs("zero"), "chosen_heads": planted_run.chosen, "out": tmp_path / "out.parquet"}
    with pytest.raises(ValueError, match=r"\(layer 0, head 0\) is 0\.0625 logits from what .* rounding explains"):
        tabulate_frozen_layernorm(frozen=frozen, **inputs)
    assert not (tmp_path / "out.parquet").exists()
    with pytest.raises(ValueError, match="other tokens than the heads' top tokens"):
        tabulate_frozen_layernorm(frozen=frozen[::-1], **inputs)
